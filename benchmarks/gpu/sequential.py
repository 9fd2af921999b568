"""Our stages in batches against whisperx, clip after clip: the same device, weights, types and audio.

Without Ray: one stage after the other in one process, so nothing overlaps. In the graph stages run beside
each other, on a GPU that they share.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from benchmarks import people
from benchmarks.gpu import stages
from benchmarks.gpu.stages import Check
from serve_app.stage_requests import AlignRequest, AsrRequest
from serve_app.transcript import Samples, WindowText

CLIPS = 32
MIN_SPEED_UP = 3  # what batches must be worth, with speakers
BATCH_AUDIO_S = 30.0  # of the aligner, on a GPU: serve_app.app's ALIGN_BATCH, which needs Serve


class Ours:
    """The stages of the service around the models in these directories."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._detector = stages.load_detector(check.device)
        self._recognizer = stages.load_recognizer(stages.random_whisper(check), check.device)
        self._aligner = stages.load_aligner(stages.random_wav2vec2(check), check.device)
        diarizer = stages.random_pyannote(check, trained_segmentation=True)
        self._diarizer = stages.load_diarizer(diarizer, check.device)

    def transcribe(self, clips: list[Samples]) -> dict[str, float]:
        """The seconds of each stage."""
        spent_s, begun_s = {}, time.perf_counter()
        pieces = [
            (samples, window) for samples in clips for window in stages.find_speech(self._detector, samples)
        ]
        spent_s["speech"] = time.perf_counter() - begun_s
        texts = self._recognise([window.cut(samples) for samples, window in pieces])
        spent_s["text"] = time.perf_counter() - begun_s - spent_s["speech"]
        self._align(
            [
                AlignRequest.for_window(samples, window, text)
                for (samples, window), text in zip(pieces, texts, strict=True)
            ]
        )
        spent_s["words"] = time.perf_counter() - begun_s - sum(spent_s.values())
        for samples in clips:
            stages.diarize(self._diarizer, samples)
        spent_s["speakers"] = time.perf_counter() - begun_s - sum(spent_s.values())
        return spent_s

    def _recognise(self, windows: list[Samples]) -> list[WindowText]:
        """Batches in order; features are computed beside the device, as in the Transcriber."""
        found: list[WindowText] = []
        with ThreadPoolExecutor(1) as thread:
            features = [thread.submit(self._recognizer.features, one) for one in windows]
            for first in range(0, len(windows), self._check.batch):
                batch = features[first : first + self._check.batch]
                found += self._recognizer.transcribe([AsrRequest(one.result(), "en") for one in batch])
        return found

    def _align(self, requests: list[AlignRequest]) -> None:
        from serve_app.stages.alignment.aligner import align_language

        batch: list[AlignRequest] = []
        for request in requests:
            length_s = sum(one.end_s - one.start_s for one in (*batch, request))
            if batch and (length_s > BATCH_AUDIO_S or self._check.device == "cpu"):
                align_language(self._aligner, batch)
                batch = []
            batch.append(request)
        align_language(self._aligner, batch)


def load_whisperx(check: Check) -> Any:
    from benchmarks.plain_whisperx import PlainWhisperx
    from serve_app.models.names import Models
    from serve_app.stages.devices import choose_compute_type

    models = Models(
        name="random",
        asr=str(stages.random_whisper(check)),
        aligners={"en": str(stages.random_wav2vec2(check))},
        diarization=str(stages.random_pyannote(check, trained_segmentation=True)),
    )
    return PlainWhisperx.load(
        models,
        compute_type=choose_compute_type("auto", check.device),
        threads=stages.cores(),
        device=check.device,
    )


def against_whisperx(check: Check) -> None:
    """Times of both, and their ratio with and without speakers."""
    clips = list(islice(people.clips(people.packaged(), 1), 2 if check.is_tiny else CLIPS))
    if check.is_tiny:
        clips = [clip[: 6 * 16_000] for clip in clips]
    ours = Ours(check)
    ours.transcribe(clips[: check.batch])  # warm
    spent_s = ours.transcribe(clips)
    for stage, stage_s in spent_s.items():
        check.report(f"whisperx: ours, {stage} of {len(clips)} clips", stage_s, "s")
    del ours
    whisperx = load_whisperx(check)
    waveforms = [clip.astype(np.float32) / 32768 for clip in clips]
    whisperx_s = {}
    for diarize in (False, True):
        whisperx.transcribe(waveforms[0], language="en", diarize=diarize)
        begun_s = time.perf_counter()
        for waveform in waveforms:
            whisperx.transcribe(waveform, language="en", diarize=diarize)
        whisperx_s[diarize] = time.perf_counter() - begun_s
        with_speakers = "with speakers" if diarize else "without speakers"
        check.report(f"whisperx: whisperx, clip after clip, {with_speakers}", whisperx_s[diarize], "s")
        ours_s = sum(spent_s.values()) - (0 if diarize else spent_s["speakers"])
        check.report(
            f"whisperx: its time over ours, {with_speakers}",
            whisperx_s[diarize] / ours_s,
            at_least=check.goal(MIN_SPEED_UP) if diarize else None,
        )
