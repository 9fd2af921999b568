"""The deployments' classes without a cluster: what shares a batch, what waits, what changes at run time."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, one_word_segment, recording, window_text
from pydantic import ValidationError

from serve_app import deployments
from serve_app.batching.turns import DeviceTurns, Turns
from serve_app.options import Options
from serve_app.stages.asr.fallback import Fallback
from serve_app.transcript import (
    SAMPLE_RATE_HZ,
    AsrRequest,
    Audio,
    Decoding,
    Diarization,
    Samples,
    Segment,
    Window,
    WindowText,
)

LANGUAGES = ("en", "de", "en", "de", "en", "en")


@dataclass
class NotingAligner(FakeAligner):
    """Notes the languages of every batch."""

    batches: list[list[str]] = field(default_factory=list)

    def align(self, requests: Any) -> list[Any]:
        self.batches.append([request.language for request in requests])
        return super().align(requests)


def deployed(model: NotingAligner, max_batch_size: int = 16) -> Any:
    untyped: Any = deployments.Aligner  # Serve's decorator turns the class into a Deployment
    return untyped.func_or_class(lambda: model, deployments.AlignerConfig(max_batch_size=max_batch_size))


async def align_at_once(aligner: Any) -> list[tuple[Segment, ...]]:
    """One window per language of `LANGUAGES`, each of a request of its own."""
    audio: asyncio.Future[Audio] = asyncio.get_running_loop().create_future()
    audio.set_result(Audio(recording(1)))
    windows = (
        aligner.align([audio], Window(0.0, 1.0), window_text(number, language), f"request {number}")
        for number, language in enumerate(LANGUAGES)
    )
    return list(await asyncio.gather(*windows))


def test_windows_of_different_requests_are_aligned_together_by_language() -> None:
    """Each batch has one language, and every window gets its own answer."""
    model = NotingAligner()
    answers = asyncio.run(align_at_once(deployed(model)))
    assert sorted(model.batches) == [["de"] * 2, ["en"] * 4]
    assert answers == [(one_word_segment(0.0, 1.0, f"word{number}"),) for number in range(len(LANGUAGES))]


def test_the_aligners_batch_size_changes_at_run_time() -> None:
    """`user_config` of a running replica decides how much a batch holds; wrong keys are refused."""
    model = NotingAligner()

    async def reconfigured() -> None:
        aligner = deployed(model)
        await align_at_once(aligner)
        model.batches.clear()
        aligner.reconfigure({"max_batch_size": 1})
        await align_at_once(aligner)
        aligner.reconfigure({"max_batch_s": 2.0})
        await align_at_once(aligner)
        with pytest.raises(ValidationError, match="batch_size"):
            aligner.reconfigure({"batch_size": 2})

    asyncio.run(reconfigured())
    assert sorted(model.batches[:6]) == [["de"]] * 2 + [["en"]] * 4
    assert sorted(model.batches[6:]) == [["de"] * 2, ["en"] * 2, ["en"] * 2]


def test_what_a_user_config_leaves_out_stays_as_it_was() -> None:
    """To change the wait is not to change the size that the device was given."""
    model = NotingAligner()

    async def reconfigured() -> None:
        aligner = deployed(model, max_batch_size=1)
        aligner.reconfigure({"wait_s": 0.0})
        await align_at_once(aligner)

    asyncio.run(reconfigured())
    assert all(len(batch) == 1 for batch in model.batches)


@dataclass
class WatchedDevice:
    """A model of each stage that notes whether others on its device wait for it, and how long windows are."""

    turns: DeviceTurns
    was_first: list[bool] = field(default_factory=list)
    lengths_s: list[float] = field(default_factory=list)
    lanes = 1

    def new_scan(self) -> None: ...

    def scan(self, audio: Audio, scan: None) -> Iterator[tuple[Window, ...]]:
        self.was_first.append(self.turns.short.taken())
        yield (Window(0.0, 1.0),)

    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        return np.zeros((80, 3000), np.float32)

    def batch_key(self, request: AsrRequest) -> None: ...

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[WindowText]:
        self.was_first.append(self.turns.short.taken())
        self.lengths_s += [request.length_s for request in requests]
        return [window_text(1, "en") for _ in requests]

    def align(self, requests: Any) -> list[Any]:
        self.was_first.append(self.turns.short.taken())
        return [() for _ in requests]


@pytest.mark.parametrize(("file_s", "first"), [(60, True), (121, False)], ids=["a short file", "a long one"])
def test_others_on_a_device_wait_for_short_files_only(
    file_s: int, first: bool, turns: DeviceTurns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage knows from the audio which it is; and the recogniser how long each window is."""
    monkeypatch.setattr(deployments.models, "of_this_device", lambda: turns)
    device, untyped = WatchedDevice(turns), vars(deployments)

    def stage(name: str, *args: Any) -> Any:
        return untyped[name].func_or_class(lambda: device, *args)

    async def run() -> None:
        audio: asyncio.Future[Audio] = asyncio.get_running_loop().create_future()
        audio.set_result(Audio(np.zeros(file_s * SAMPLE_RATE_HZ, np.int16)))
        window, text = Window(0.5, 12.0), window_text(1, "en")
        assert [part async for part in stage("SpeechDetector").detect([audio], None, "request")]
        transcriber = stage("Transcriber", deployments.TranscriberConfig(), Fallback(()))
        await transcriber.transcribe([audio], window, "en", Decoding(), "request", 0)
        await stage("Aligner", deployments.AlignerConfig()).align([audio], window, text, "request")

    asyncio.run(run())
    assert (device.was_first, device.lengths_s) == ([first] * 3, [11.5])


@dataclass
class DoubtfulDevice(WatchedDevice):
    """One whose first texts are not believed."""

    on_doubt: Callable[[], None] = lambda: None

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[WindowText]:
        texts = super().transcribe(requests)
        if not requests[0].decoding.temperature:
            self.on_doubt()
        return [
            text if request.decoding.temperature else replace(text, avg_logprob=-3.0)
            for request, text in zip(requests, texts, strict=True)
        ]


@pytest.mark.parametrize(
    ("language", "windows", "device", "waiting"),
    [
        (None, 4, DoubtfulDevice, 0),
        ("en", 1, DoubtfulDevice, 0),
        ("en", 4, WatchedDevice, 3),
        ("en", 4, DoubtfulDevice, 3),
    ],
    ids=["votes", "the first", "others", "others after a first one that is decoded again"],
)
def test_what_the_rest_of_a_long_file_waits_for_waits_for_no_search(
    language: str | None,
    windows: int,
    device: type[WatchedDevice],
    waiting: int,
    turns: DeviceTurns,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows that vote on its language, and the first one, also while they are decoded again."""
    assert turns.search
    monkeypatch.setattr(deployments.models, "of_this_device", lambda: turns)
    untyped: Any = deployments.Transcriber
    fallback = Fallback((0.2,))
    stage = untyped.func_or_class(lambda: device(turns), deployments.TranscriberConfig(), fallback)
    audio = Audio(np.zeros(121 * SAMPLE_RATE_HZ, np.int16))

    async def still_waiting(search: Turns) -> int:
        ref: asyncio.Future[Audio] = asyncio.get_running_loop().create_future()
        ref.set_result(audio)
        with search.first():
            calls = [
                asyncio.create_task(
                    stage.transcribe([ref], Window(n, n + 1.0), language, Decoding(), "request", 0)
                )
                for n in range(windows)
            ]
            await asyncio.wait_for(asyncio.gather(*calls[: windows - waiting]), 30.0)
            await asyncio.wait(calls[windows - waiting :] or calls, timeout=0.2)
            pending = sum(not call.done() for call in calls)
        await asyncio.gather(*calls)
        return pending

    assert asyncio.run(still_waiting(turns.search)) == waiting


def test_a_later_window_that_is_decoded_again_waits_for_a_search(
    turns: DeviceTurns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else waits for it, and there are many of them in a file with noise or music."""
    monkeypatch.setattr(deployments.models, "of_this_device", lambda: turns)
    untyped: Any = deployments.Transcriber
    device = DoubtfulDevice(turns)
    stage = untyped.func_or_class(lambda: device, deployments.TranscriberConfig(), Fallback((0.2,)))

    async def scenario() -> None:
        ref: asyncio.Future[Audio] = asyncio.get_running_loop().create_future()
        ref.set_result(Audio(np.zeros(121 * SAMPLE_RATE_HZ, np.int16)))

        def transcribe(start_s: float) -> Any:
            return stage.transcribe([ref], Window(start_s, start_s + 1.0), "en", Decoding(), "request", 0)

        await transcribe(0.0)
        searched = asyncio.Event()
        loop = asyncio.get_running_loop()
        with ExitStack() as held:

            def begin_search() -> None:
                assert turns.search
                held.enter_context(turns.search.first())
                loop.call_soon_threadsafe(searched.set)

            device.on_doubt = begin_search
            later = asyncio.create_task(transcribe(1.0))
            await asyncio.wait_for(searched.wait(), 30.0)
            await asyncio.wait({later}, timeout=0.2)
            assert not later.done()
        await later

    asyncio.run(scenario())


class HeldDiarizer(FakeDiarizer):
    """Gives no answer before `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def diarize(self, samples: Samples, **options: Any) -> Diarization:
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
            audio: asyncio.Future[Audio] = asyncio.get_running_loop().create_future()
            audio.set_result(Audio(recording(*[1] * seconds)))
            return diarizer.diarize([audio], Options(), f"{seconds} s")

        long = asyncio.create_task(of(61))
        await asyncio.sleep(0)
        short = await asyncio.wait_for(of(10), 10)
        waited = not long.done()
        held.release.set()
        return waited, short, await long

    waited, short, long = asyncio.run(both())
    assert waited
    assert (len(short.turns), len(long.turns)) == (10, 61)


class DoubtfulRecognizer(FakeRecognizer):
    """Is sure of the odd numbers only; of the others it is likelier right the hotter it is."""

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


def transcribed(
    model: DoubtfulRecognizer, samples: Sequence[int], decoding: Decoding, fallback: Fallback
) -> list[WindowText]:
    """All windows of one request, a second each, at once."""
    untyped: Any = deployments.Transcriber

    async def run() -> list[WindowText]:
        transcriber = untyped.func_or_class(
            lambda: model, deployments.TranscriberConfig(max_batch_size=8, wait_s=0.05), fallback
        )
        audio: asyncio.Future[Audio] = asyncio.get_running_loop().create_future()
        audio.set_result(Audio(recording(*samples)))
        windows = (
            transcriber.transcribe([audio], Window(float(n), n + 1.0), None, decoding, "request", 0)
            for n in range(len(samples))
        )
        return list(await asyncio.gather(*windows))

    return asyncio.run(run())


def test_doubtful_windows_come_again_together_and_hotter() -> None:
    """Those that fail leave their batch and share the next ones, in the language first heard."""
    model = DoubtfulRecognizer()
    texts = transcribed(model, (1, 2, 3, 4), Decoding(), Fallback((0.2, 0.4, 0.6)))
    assert sorted(number for number, _ in batched(model, 0.0)) == [1, 2, 3, 4]
    for temperature in (0.2, 0.4, 0.6):
        assert sorted(batched(model, temperature)) == [(2, "en"), (4, "en")]
    hot = [items for temperature, items in model.batches if temperature]
    assert [len(items) for items in hot[1:]] == [2, 2]  # by then they are together
    assert [(text.attempts, text.temperature) for text in texts] == [(1, 0.0), (4, 0.6)] * 2
    assert [text.text for text in texts] == [" word1", " word2", " word3", " word4"]
    assert all(text.language_probability == 0.9 for text in texts)


def batched(model: DoubtfulRecognizer, temperature: float) -> list[tuple[int, str | None]]:
    return [item for of, items in model.batches if of == temperature for item in items]


def test_windows_come_again_only_where_a_fallback_is_wanted() -> None:
    """A request with its own temperature, and a server without a fallback, decode once."""
    for decoding, fallback in ((Decoding(temperature=0.3), Fallback()), (Decoding(), Fallback(()))):
        model = DoubtfulRecognizer()
        texts = transcribed(model, (1, 2), decoding, fallback)
        assert len(batched(model, decoding.temperature or 0.0)) == 2
        assert sum(len(items) for _, items in model.batches) == 2
        assert [text.attempts for text in texts] == [1, 1]
