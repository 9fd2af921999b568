"""The deployments' classes without a cluster: what shares a batch, what waits, what changes at run time."""

import asyncio
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import (
    FakeAligner,
    FakeDiarizer,
    FakeRecognizer,
    FakeSpeechModel,
    Reference,
    one_word_segment,
    recording,
    window_text,
)
from pydantic import ValidationError

from serve_app import deployments
from serve_app.audio import AudioInfo
from serve_app.deployments.autoscaling import BUSY_S
from serve_app.deployments.calls.audio_ref import AudioSlice
from serve_app.request.calls import AlignCall, DetectCall, DiarizeCall, TranscribeCall
from serve_app.settings import AsrSettings
from serve_app.stage_requests import AsrRequest, Decoding, SpeechRequest, SpeechSearch
from serve_app.stages.asr.fallback import Fallback
from serve_app.transcript import Diarization, Samples, Segment, Token, Window, WindowText

LANGUAGES = ("en", "de", "en", "de", "en", "en")


def replica(name: str, model: Any, *arguments: Any) -> Any:
    """A deployment's class, with this model, in this process."""
    return vars(deployments)[name].func_or_class(lambda: model, *arguments)


def audio(*parts: Samples, start_s: float = 0.0) -> AudioSlice:
    return AudioSlice([[Reference(part)] for part in parts], start_s)


@dataclass
class NotingAligner(FakeAligner):
    """Notes the languages of every batch."""

    batches: list[list[str]] = field(default_factory=list)

    def align(self, requests: Any) -> list[Any]:
        self.batches.append([request.language for request in requests])
        return super().align(requests)


async def align_at_once(aligner: Any) -> list[tuple[Segment, ...]]:
    """One window per language of `LANGUAGES`, each of a request of its own."""
    calls = (
        AlignCall(
            audio=audio(recording(1)),
            request_id=f"request {number}",
            window=Window(0.0, 1.0),
            text=window_text(number, language),
        )
        for number, language in enumerate(LANGUAGES)
    )
    return list(await asyncio.gather(*(aligner.align(call) for call in calls)))


def test_windows_of_different_requests_are_aligned_together_by_language() -> None:
    """Each batch has one language, and every window gets its own answer."""
    model = NotingAligner()
    aligner = replica("Aligner", model, deployments.AlignerConfig(max_batch_size=16))
    answers = asyncio.run(align_at_once(aligner))
    assert sorted(model.batches) == [["de"] * 2, ["en"] * 4]
    assert answers == [(one_word_segment(0.0, 1.0, f"word{number}"),) for number in range(len(LANGUAGES))]


def test_the_aligners_batches_change_at_run_time() -> None:
    """`user_config` of a running replica decides how much a batch holds; wrong keys are refused."""
    model = NotingAligner()

    async def reconfigured() -> None:
        aligner = replica("Aligner", model, deployments.AlignerConfig(max_batch_size=16))
        await align_at_once(aligner)
        model.batches.clear()
        aligner.reconfigure({"max_batch_size": 1})
        await align_at_once(aligner)
        aligner.reconfigure({"max_batch_audio_s": 2.0})
        await align_at_once(aligner)
        with pytest.raises(ValidationError, match="batch_size"):
            aligner.reconfigure({"batch_size": 2})

    asyncio.run(reconfigured())
    assert sorted(model.batches[:6]) == [["de"]] * 2 + [["en"]] * 4
    assert sorted(model.batches[6:]) == [["de"] * 2, ["en"] * 2, ["en"] * 2]


def test_what_a_user_config_leaves_out_stays_as_it_was() -> None:
    """To bound a batch's audio is not to change the size that the device was given."""
    model = NotingAligner()

    async def reconfigured() -> None:
        aligner = replica("Aligner", model, deployments.AlignerConfig(max_batch_size=1))
        aligner.reconfigure({"max_batch_audio_s": 30.0})
        await align_at_once(aligner)

    asyncio.run(reconfigured())
    assert all(len(batch) == 1 for batch in model.batches)


def test_windows_and_searches_have_their_own_samples_and_options() -> None:
    """Wherever the parts that a call came with begin in the file, and however many there are."""
    search = SpeechSearch(onset=0.7)
    wanting_chars: list[bool] = []
    searched: list[SpeechRequest] = []

    class Noting(FakeSpeechModel):
        def find_speech(self, requests: Sequence[SpeechRequest]) -> list[Any]:
            searched.extend(requests)
            return super().find_speech(requests)

    cut: list[Samples] = []

    class Cutting(FakeAligner):
        def align(self, requests: Any) -> list[Any]:
            cut.extend(request.samples for request in requests)
            wanting_chars.extend(request.has_chars for request in requests)
            return super().align(requests)

    two_parts = audio(recording(*[1] * 30), recording(*[2] * 30), start_s=60.0)
    window = Window(89.0, 91.0)

    async def run() -> tuple[Any, Any, Any]:
        part = AudioInfo(90.0, 120.0, is_last=True)
        detector = replica("SpeechDetector", Noting())
        detecting = DetectCall(audio=two_parts, request_id="a", part=part, search=search)
        found = await detector.detect(detecting)
        transcriber = replica(
            "Transcriber",
            FakeRecognizer(Path("/nowhere")),
            deployments.BatchConfig(),
            Fallback(AsrSettings(temperature_fallback=())),
        )
        call = TranscribeCall(audio=two_parts, request_id="a", window=window, decoding=Decoding())
        text = await transcriber.transcribe(call)
        aligner = replica("Aligner", Cutting(), deployments.AlignerConfig())
        aligning = AlignCall(audio=two_parts, request_id="a", window=window, text=text)
        await aligner.align(replace(aligning, has_chars=True))
        aligned = await aligner.align(aligning)
        return found, text, aligned

    found, text, (segment,) = asyncio.run(run())
    assert (searched[0].start_s, searched[0].is_last, len(searched[0].samples)) == (60.0, True, 60 * 16_000)
    assert (searched[0].search, wanting_chars) == (search, [True, False])
    assert [window.start_s for window in found.windows] == [float(second) for second in range(60, 120)]
    assert text.text == " word1"
    assert (segment.start_s, segment.end_s) == (89.0, 91.0)
    assert np.unique(cut[0]).tolist() == [1, 2]
    assert len(cut[0]) == 2 * 16_000


class HeldDiarizer(FakeDiarizer):
    """Gives no answer before `release` is set."""

    def __init__(self) -> None:
        self.begun, self.release = threading.Event(), threading.Event()

    def diarize(self, samples: Samples, **options: Any) -> Diarization:
        self.begun.set()
        assert self.release.wait(10)
        return super().diarize(samples, **options)


def test_a_short_file_does_not_wait_for_the_speakers_of_a_long_one() -> None:
    """The long file's one call may take minutes; the clip's answer comes while it runs."""
    untyped: Any = deployments.Diarizer
    held = HeldDiarizer()
    models = iter([held, FakeDiarizer()])

    async def both() -> tuple[bool, Diarization, Diarization]:
        diarizer = untyped.func_or_class(lambda: next(models))

        def of(seconds: int) -> Any:
            call = DiarizeCall(audio=audio(recording(*[1] * seconds)), request_id=f"{seconds} s")
            return diarizer.diarize(call)

        long = asyncio.create_task(of(61))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            short = await of(10)
        waited = not long.done()
        held.release.set()
        return waited, short, await long

    waited, short, long = asyncio.run(both())
    assert waited
    assert (len(short.turns), len(long.turns)) == (10, 61)


def test_the_threads_of_a_diarizer_count_their_busy_time_apart() -> None:
    """For autoscaling: an hour's work on a long file would hide that a short one runs now."""
    model = HeldDiarizer()

    async def run() -> set[str]:
        diarizer = replica("Diarizer", model)
        diarizer._long.counters.busy_s = 3600.0
        call = DiarizeCall(audio=audio(recording(1)), request_id="short")
        short = asyncio.create_task(diarizer.diarize(call))
        await asyncio.to_thread(model.begun.wait, 10)
        before, later = [await diarizer.record_autoscaling_stats() for _ in range(2)]
        model.release.set()
        await short
        return {name for name in before if later[name] > before[name]}

    assert asyncio.run(run()) == {f"{BUSY_S}diarization_short"}


def test_a_batch_counts_as_busy_time_while_it_runs(measured: dict[str, float]) -> None:
    """A Diarizer that works on one file for minutes is no idle one; in the end each second counted once."""
    model = HeldDiarizer()

    async def run() -> list[float]:
        diarizer = replica("Diarizer", model)
        call = DiarizeCall(audio=audio(recording(1)), request_id="short")
        found = asyncio.create_task(diarizer.diarize(call))
        await asyncio.to_thread(model.begun.wait, 10)
        shown = []
        for _ in range(3):
            await diarizer.check_health()
            shown.append(measured["whisperx_stage_busy_seconds"])
            if len(shown) == 2:
                model.release.set()
                await found
        return shown

    first, second, last = asyncio.run(run())
    assert 0 < first < second < last
    assert last == pytest.approx(measured["whisperx_stage_run_seconds"])


class TokenRecognizer(FakeRecognizer):
    """Gives a token where the window's tokens are wanted, and a sentence of it."""

    def text(self, request: AsrRequest) -> WindowText:
        token = Token(0.0, request.times_until_s, 0.5, 6, (32,))
        return replace(super().text(request), tokens=(token,) if request.times_until_s else ())

    def sentences(self, text: WindowText, window: Window, features: Any) -> tuple[Segment, ...]:
        return (Segment(window.start_s, window.end_s, text.text),)


@pytest.mark.parametrize("word_times", [True, False])
@pytest.mark.parametrize("logprobs", [True, False])
def test_tokens_travel_only_where_they_are_wanted(word_times: bool, logprobs: bool) -> None:
    """They are made for word times, too, of which only the sentences are kept."""
    transcriber = replica(
        "Transcriber", TokenRecognizer(Path("/nowhere")), deployments.BatchConfig(), Fallback()
    )
    call = TranscribeCall(
        audio=audio(recording(1)),
        request_id="a",
        window=Window(0.0, 1.0),
        decoding=Decoding(logprobs=logprobs),
        word_times=word_times,
    )
    text = asyncio.run(transcriber.transcribe(call))
    assert (len(text.tokens), len(text.sentences)) == (logprobs, word_times)


class DoubtfulRecognizer(FakeRecognizer):
    """Is sure of the odd numbers only; the others are likelier the higher the temperature is."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))
        self.batches: list[tuple[float, list[tuple[int, str | None]]]] = []

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[Any]:
        temperature = requests[0].decoding.temperature or 0.0
        self.batches.append((temperature, [(int(r.features[0]), r.language) for r in requests]))
        return [
            replace(
                text,
                avg_logprob=-0.1 if int(request.features[0]) % 2 else temperature - 1.5,
                temperature=temperature,
            )
            for request, text in zip(requests, super().transcribe(requests), strict=True)
        ]

    def decoded_at(self, temperature: float) -> list[tuple[int, str | None]]:
        return [item for of, items in self.batches if of == temperature for item in items]


def transcribed(
    model: DoubtfulRecognizer, samples: Sequence[int], decoding: Decoding, fallback: Fallback
) -> list[WindowText]:
    """All windows of one request, a second each, at once."""

    async def run() -> list[WindowText]:
        transcriber = replica("Transcriber", model, deployments.BatchConfig(max_batch_size=8), fallback)
        calls = (
            TranscribeCall(
                audio=audio(recording(*samples)),
                request_id="request",
                window=Window(float(n), n + 1.0),
                decoding=decoding,
            )
            for n in range(len(samples))
        )
        return list(await asyncio.gather(*(transcriber.transcribe(call) for call in calls)))

    return asyncio.run(run())


def test_doubtful_windows_are_decoded_again_at_higher_temperatures(measured: dict[str, float]) -> None:
    """Only those that fail, in the language first heard, until their text is believable. Each counts once."""
    model = DoubtfulRecognizer()
    texts = transcribed(
        model, (1, 2, 3, 4), Decoding(), Fallback(AsrSettings(temperature_fallback=(0.2, 0.4, 0.6)))
    )
    assert sorted(number for number, _ in model.decoded_at(0.0)) == [1, 2, 3, 4]
    for temperature in (0.2, 0.4, 0.6):
        assert sorted(model.decoded_at(temperature)) == [(2, "en"), (4, "en")]
    assert [(text.attempts, text.temperature) for text in texts] == [(1, 0.0), (4, 0.6)] * 2
    assert [text.text for text in texts] == [" word1", " word2", " word3", " word4"]
    assert all(text.language_probability == 0.9 for text in texts)
    assert (measured["whisperx_windows"], measured["whisperx_fallbacks"]) == (4, 2)


def test_a_language_alone_is_asked_once(measured: dict[str, float]) -> None:
    """No fallback decodes it again, and it is no window that was recognised."""
    model = DoubtfulRecognizer()

    async def run() -> WindowText:
        fallback = Fallback(AsrSettings(temperature_fallback=(0.2, 0.4)))
        transcriber = replica("Transcriber", model, deployments.BatchConfig(), fallback)
        call = TranscribeCall(
            audio=audio(recording(2)),
            request_id="request",
            window=Window(0.0, 1.0),
            decoding=Decoding(),
            only_language=True,
        )
        text: WindowText = await transcriber.transcribe(call)
        return text

    assert asyncio.run(run()).language_probability == 0.9
    assert sum(len(items) for _, items in model.batches) == 1
    assert "whisperx_windows" not in measured


def test_windows_are_decoded_again_only_where_a_fallback_is_wanted() -> None:
    """A request with its own temperature, and a server without a fallback, decode once."""
    for decoding, fallback in (
        (Decoding(temperature=0.3), Fallback()),
        (Decoding(), Fallback(AsrSettings(temperature_fallback=()))),
    ):
        model = DoubtfulRecognizer()
        texts = transcribed(model, (1, 2), decoding, fallback)
        assert len(model.decoded_at(decoding.temperature or 0.0)) == 2
        assert sum(len(items) for _, items in model.batches) == 2
        assert [text.attempts for text in texts] == [1, 1]


@pytest.mark.parametrize(("is_initialized", "shown"), [(True, 3 << 30), (False, None)])
def test_a_replica_on_a_gpu_shows_what_torch_has_of_it(
    monkeypatch: pytest.MonkeyPatch, measured: dict[str, float], is_initialized: bool, shown: int | None
) -> None:
    """And one that computes on none shows nothing; health checks keep it up to date."""
    cuda = SimpleNamespace(is_initialized=lambda: is_initialized, memory_reserved=lambda: 3 << 30)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    aligner = replica("Aligner", FakeAligner(), deployments.AlignerConfig())
    asyncio.run(aligner.check_health())
    assert measured.get("whisperx_gpu_memory_bytes") == shown
    assert measured["whisperx_stage_queued"] == 0
