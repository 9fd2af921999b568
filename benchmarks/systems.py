"""What is measured side by side: the service over HTTP, and plain whisperx in this process."""

import io
import signal
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve

from benchmarks.plain_whisperx import PlainWhisperx
from benchmarks.truth import SAMPLE_RATE_HZ, TrueTurn
from serve_app.cli.launcher import running, url_of
from serve_app.deployments.calls.audio_ref import AudioSlice
from serve_app.request.assign_speakers import assign_speakers, split_at_speaker_change
from serve_app.request.calls import DiarizeCall
from serve_app.transcript import Diarization, Segment, Word


@dataclass(frozen=True)
class Answer:
    """One system's answer for one recording."""

    segments: list[dict[str, Any]]  # with speakers, if the system has any
    turns: tuple[TrueTurn, ...]
    warnings: tuple[str, ...] = ()
    unsplit: list[dict[str, Any]] | None = None  # the segments before sentences of two speakers are split


class System(Protocol):
    def answer(self, samples: NDArray[np.int16]) -> Answer: ...


@dataclass
class Service:
    """The graph over HTTP, and its diarizer's turns through the deployment handle."""

    url: str
    application: str
    diarizes: bool

    def answer(self, samples: NDArray[np.int16]) -> Answer:
        response = httpx.post(
            f"{self.url}/predict",
            files={"file": wav(samples)},
            data={"language": "en", "word_timestamps": "true", "diarize": "false"},
            timeout=3600,
        )
        response.raise_for_status()
        body = response.json()
        warnings = tuple(f"{w['stage']}: {w['message']}" for w in body["warnings"])
        if not self.diarizes:
            return Answer(body["model_output"], (), warnings)
        found = self._diarize(samples)
        turns = tuple(TrueTurn(turn.start_s, turn.end_s, turn.speaker) for turn in found.turns)
        # As the pipeline does it, but in this process, so that each recording is diarized once.
        whole = assign_speakers([_segment(segment) for segment in body["model_output"]], found)
        split = split_at_speaker_change(whole)
        return Answer(_as_answered(split), turns, warnings, _as_answered(whole))

    def _diarize(self, samples: NDArray[np.int16]) -> Diarization:
        diarizer = serve.get_deployment_handle("Diarizer", self.application)
        call = DiarizeCall(audio=AudioSlice([[ray.put(samples)]], 0.0), request_id="eval")
        found: Diarization = diarizer.diarize.remote(call).result()
        return found


def _segment(answered: dict[str, Any]) -> Segment:
    words = tuple(Word(word["word"], word["start"], word["end"]) for word in answered["words"])
    return Segment(answered["start"], answered["end"], answered["text"], words)


def _as_answered(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [
        {
            "text": segment.text,
            "speaker": segment.speaker,
            "words": [{"word": word.text, "start": word.start_s} for word in segment.words],
        }
        for segment in segments
    ]


@dataclass
class Plain:
    """Plain whisperx in this process."""

    whisperx: PlainWhisperx

    def answer(self, samples: NDArray[np.int16]) -> Answer:
        audio = np.divide(samples, 32768, dtype=np.float32)
        segments = self.whisperx.transcribe(audio, language="en", diarize=False)
        if self.whisperx.diarization is None:
            return Answer(segments, ())
        import whisperx

        found = self.whisperx.diarization(audio)
        turns = tuple(TrueTurn(row.start, row.end, row.speaker) for row in found.itertuples())
        return Answer(whisperx.assign_word_speakers(found, {"segments": segments})["segments"], turns)


@contextmanager
def service(raw: dict[str, Any], *, diarizes: bool, num_cpus: int | None = None) -> Iterator[Service]:
    """Runs the graph of a config file's content while entered; raises CannotStart. Ctrl-C ends it."""
    with running(raw, show_logs=False, num_cpus=num_cpus):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield Service(url_of(raw), raw["applications"][0]["name"], diarizes)


def wav(samples: NDArray[np.int16]) -> bytes:
    """A mono 16 kHz WAV file of the samples."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()
