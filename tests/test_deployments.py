"""The deployments' classes without a cluster: what shares a batch, what waits, what changes at run time."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, one_word_segment, recording, window_text
from pydantic import ValidationError

from serve_app import deployments
from serve_app.fallback import Fallback
from serve_app.options import Options
from serve_app.transcript import (
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
            lambda: model, deployments.BatchConfig(max_batch_size=8, wait_s=0.05), fallback
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
