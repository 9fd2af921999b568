"""Alignment compared with `whisperx.align`: `python -m benchmarks.alignment` prints one line of JSON.

It compares the CPU time outside the acoustic model: text to tokens, trellis, backtracking, words, sentences.
Both get the same windows, texts and emissions, alternately in one process with one thread: windows of 30 s
with 75 words and random emissions of wav2vec2-base's 29 characters, made once for both. One window compares
the stage with a wav2vec2-base of random weights (`stage_ratio`).
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import numpy as np
import typer

from benchmarks import people
from benchmarks.plain_whisperx import empty_punkt
from serve_app.errors import TranscriptionError
from serve_app.stage_requests import AlignRequest
from serve_app.stages.alignment.aligner import (
    LanguageModel,
    align_language,
)
from serve_app.stages.alignment.sentences import sentence_splitter
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Window, WindowText

CHARACTERS = "-|ETAONIHSRDLUMWCFGYPBVK'XJQZ"  # of torchaudio's WAV2VEC2_ASR_BASE_960H
RANDOM_WINDOW_S = 30
RANDOM_WINDOW_WORDS = 75  # 9 000 words an hour, as measured on meetings

TimedWord = tuple[str, float | None, float | None, float | None]  # text, start, end, score


@dataclass(frozen=True)
class WindowedFile:
    """The samples of one file and the windows to align in it."""

    samples: Samples
    segments: list[dict[str, Any]]  # start, end, text: whisperx's


@dataclass
class Costs:
    """The CPU seconds of both, and the number of words equal in text, start, end and score."""

    ours_cpu_s: float = 0.0
    whisperx_cpu_s: float = 0.0
    words: int = 0
    identical: int = 0
    windows: int = 0
    audio_s: float = 0.0

    @property
    def ratio(self) -> float:
        return self.whisperx_cpu_s / self.ours_cpu_s

    def figures(self) -> dict[str, float]:
        share = self.identical / self.words
        return {"align_cpu_ratio": round(self.ratio, 1), "identical_share": share} | {
            name: round(value, 2) for name, value in vars(self).items()
        }


class Replay:
    """A model's `forward` that computes the answer to each waveform once and counts its own time."""

    def __init__(self, forward: Callable[[Any], Any]) -> None:
        self.cpu_s = 0.0
        self._forward = forward
        self._known: dict[bytes, Any] = {}

    def __call__(self, waveform: Any, lengths: Any = None) -> Any:
        begun_s = time.process_time()
        key = hashlib.sha256(waveform.numpy()).digest()
        if key not in self._known:
            self._known[key] = self._forward(waveform)
        self.cpu_s += time.process_time() - begun_s
        return self._known[key]


def main(
    audio_s: Annotated[float, typer.Option(help="Seconds of windows.")] = 3600,
    seed: Annotated[int, typer.Option(help="Of the random emissions and texts.")] = 0,
) -> None:
    stdout = _quiet_stdout()
    import nltk
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    nltk.data.path.insert(0, empty_punkt())  # whisperx.align downloads where there is none
    model = _random_base()
    files = _random_audio(seed, audio_s)
    stage = _whole_stage(model, next(_random_audio(seed, RANDOM_WINDOW_S)))
    costs, replay = Costs(), _random_emissions(model, seed)
    for place, file in enumerate(files):
        _compare(model, file, costs, replay, ours_first=place % 2 == 0)
    summary = {
        **costs.figures(),
        "stage_ratio": round(stage.ratio, 2),
        "clock": "time.process_time, one thread",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
    }
    print(json.dumps(summary), file=stdout, flush=True)


def _random_base() -> LanguageModel:
    """torchaudio's wav2vec2-base with random weights and English characters."""
    import torchaudio

    from serve_app.stages.alignment.acoustic import AcousticModel

    model = torchaudio.models.wav2vec2_base(aux_num_out=len(CHARACTERS)).eval()
    acoustic = AcousticModel(
        model, from_torchaudio=True, device="cpu", max_padded_s=0, compute_type="float32"
    )
    dictionary = {character.lower(): token for token, character in enumerate(CHARACTERS)}
    return LanguageModel(acoustic, dictionary, sentence_splitter("en"))


def _random_audio(seed: int, audio_s: float) -> Iterator[WindowedFile]:
    """Files of one window: noise, with words of the packaged sample in sentences of a dozen."""
    rng = np.random.default_rng(seed)
    words = [word for recording in people.packaged() for word in (recording.text or "").split()]
    for _ in range(round(audio_s / RANDOM_WINDOW_S)):
        said = rng.choice(words, RANDOM_WINDOW_WORDS).tolist()
        text = "".join(f" {word}{'.' if place % 12 == 11 else ''}" for place, word in enumerate(said))
        samples = rng.integers(-3000, 3000, RANDOM_WINDOW_S * SAMPLE_RATE_HZ, np.int16)
        yield WindowedFile(samples, [{"start": 0.0, "end": float(RANDOM_WINDOW_S), "text": text}])


def _random_emissions(model: LanguageModel, seed: int) -> Replay:
    """Replaces the model by random logits, soft for some windows and sharp for others."""
    import torch

    rng = np.random.default_rng(seed)

    def forward(waveform: Any) -> tuple[Any, None]:
        frames = (waveform.shape[1] - 400) // 320 + 1
        logits = rng.normal(size=(1, frames, len(CHARACTERS))) * rng.choice([1, 5])
        return torch.from_numpy(logits.astype(np.float32)), None

    replay = model.acoustic.model.forward = Replay(forward)
    return replay


def _whole_stage(model: LanguageModel, file: WindowedFile) -> Costs:
    """The costs of a file, including the acoustic model."""
    _compare(model, file, Costs(), ours_first=True)  # first runs are slow
    costs = Costs()
    for ours_first in (True, False):
        _compare(model, file, costs, ours_first=ours_first)
    return costs


def _compare(
    model: LanguageModel, file: WindowedFile, costs: Costs, replay: Replay | None = None, *, ours_first: bool
) -> None:
    """Adds one file's costs without the time in `replay`."""
    audio = np.divide(file.samples, 32768, dtype=np.float32)  # as whisperx.load_audio gives it
    found: dict[str, list[TimedWord]] = {}
    for ours in (ours_first, not ours_first):
        begun_s = time.process_time() - (replay.cpu_s if replay else 0)
        words = _ours(model, file) if ours else _whisperx(model, file.segments, audio)
        cpu_s = time.process_time() - (replay.cpu_s if replay else 0) - begun_s
        if ours:
            costs.ours_cpu_s += cpu_s
        else:
            costs.whisperx_cpu_s += cpu_s
        found["ours" if ours else "whisperx"] = words
    costs.words += max(map(len, found.values()))
    costs.identical += sum(a == b for a, b in zip(found["ours"], found["whisperx"], strict=False))
    costs.windows += len(file.segments)
    costs.audio_s += sum(segment["end"] - segment["start"] for segment in file.segments)


def _request_for(segment: dict[str, Any], file: WindowedFile) -> AlignRequest:
    text = WindowText(segment["text"], "en", None, -0.5, 0.0, 1.0)
    return AlignRequest.for_window(file.samples, Window(segment["start"], segment["end"]), text)


def _ours(model: LanguageModel, file: WindowedFile) -> list[TimedWord]:
    """Aligns one window at a time, as the Aligner does on a CPU."""
    words: list[TimedWord] = []
    for segment in file.segments:
        [result] = align_language(model, [_request_for(segment, file)])
        assert not isinstance(result, TranscriptionError)
        words += [(w.text, w.start_s, w.end_s, w.score) for found in result for w in found.words]
    return words


def _whisperx(model: LanguageModel, segments: list[dict[str, Any]], audio: Any) -> list[TimedWord]:
    import whisperx

    kind = "torchaudio" if model.acoustic.from_torchaudio else "huggingface"
    metadata = {"language": "en", "dictionary": model.dictionary, "type": kind}
    aligned = whisperx.align(segments, model.acoustic.model, metadata, audio, "cpu")
    return [
        (word["word"], word.get("start"), word.get("end"), word.get("score"))
        for word in aligned["word_segments"]
    ]


def _quiet_stdout() -> TextIO:
    """Returns standard output for the line of JSON; libraries print to standard error from now on."""
    import warnings

    warnings.simplefilter("ignore")  # torchaudio's advice
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stdout


if __name__ == "__main__":
    typer.run(main)
