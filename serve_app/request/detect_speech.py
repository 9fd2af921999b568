"""Where speech is in a file alone: the SpeechDetector's answer, without recognising anything."""

import uuid
from dataclasses import dataclass, replace

from serve_app.audio import Source
from serve_app.options import Options
from serve_app.request.calls import DetectCall, Stages
from serve_app.request.file_times import moved_window
from serve_app.transcript import Speech, StageWarning, Window


@dataclass(frozen=True, slots=True)
class DetectedSpeech:
    """The speech of one file."""

    segments: tuple[Window, ...]  # in order, with a pause between any two
    warnings: tuple[StageWarning, ...]  # about the file


async def detect_speech(stages: Stages, source: Source, options: Options) -> DetectedSpeech:
    """Searches part after part, as the file is decoded. Raises TranscriptionError."""
    request_id, begin_s = uuid.uuid4().hex, options.start_s or 0.0
    search = options.speech_search(has_words=True)
    segments: list[Window] = []
    warnings: list[StageWarning] = []
    found: Speech | None = None
    async with stages.load(options.audio_of(source)) as audio:
        async for part in audio.parts():
            warnings.extend(part.warnings)
            call = DetectCall(audio=audio, request_id=request_id, part=part, before=found, search=search)
            found = await stages.detect(call)
            for segment in found.segments:
                append_or_join(segments, moved_window(segment, begin_s))
    return DetectedSpeech(tuple(segments), tuple(warnings))


def append_or_join(segments: list[Window], segment: Window) -> None:
    """Adds a segment, to the last one where that ends no sooner than this begins.

    The detector cuts speech without a pause where it grows too long for the recogniser.
    """
    if segments and segment.start_s <= segments[-1].end_s:
        segments[-1] = replace(segments[-1], end_s=max(segments[-1].end_s, segment.end_s))
    else:
        segments.append(segment)
