"""AssemblyAI's transcript API, for clients that are written for it, on the jobs of /v1/jobs."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from serve_app.errors import InvalidRequest
from serve_app.formats.cue_words import by_start, words_of
from serve_app.formats.table import FORMATS, FormatName
from serve_app.http.auth import key_name
from serve_app.http.jobs.assemblyai_request import (
    THEIR_NAMES,
    AssemblyTranscript,
    TranscriptRequest,
    submission,
)
from serve_app.http.jobs.submission import described_json, idempotency_key
from serve_app.http.other_apis import MAX_BODY_BYTES, renaming
from serve_app.http.responses import speaker_names, text_pieces, text_response
from serve_app.http.uploads import options_in_body_only, received_json
from serve_app.jobs.service import Jobs
from serve_app.jobs.store.records import Job
from serve_app.jobs.stored import JobRequest
from serve_app.jobs.webhooks.payloads import ENDS
from serve_app.options import parse_options
from serve_app.options.fields import MULTIPLE
from serve_app.stages.audio import address
from serve_app.transcript import Segment, Transcript

_STATUSES = {"queued": "queued", "running": "processing", "succeeded": "completed"}  # error: all others

_TRANSCRIPT: dict[str, Any] = {"response_model": AssemblyTranscript}
_CHARS = {
    "name": "chars_per_caption",
    "in": "query",
    "description": "Longest caption, in characters.",
    "schema": {"type": "integer", "minimum": 1},
}


def assemblyai_routes(jobs: Jobs) -> APIRouter:
    """The routes."""
    error = {"model": dict[str, str], "description": "`error`."}
    router = APIRouter(prefix="/v2/transcript", tags=["AssemblyAI"], responses={"default": error})
    described = described_json(TranscriptRequest, {"audio_url": "https://example.com/talk.mp3"})

    in_body = [Depends(options_in_body_only())]

    @router.post("", **_TRANSCRIPT, openapi_extra=described, dependencies=in_body)
    async def submit(request: Request) -> Response:
        """Stores a transcription as a job."""
        unique = idempotency_key(request)
        asked = await received_json(request, MAX_BODY_BYTES, submission)
        with renaming(THEIR_NAMES):
            [(job, _)] = await jobs.submit(key_name(request), [asked], unique)
        return JSONResponse(_shown(job, JobRequest(asked.options, job.audio or "", asked.echo), None))

    @router.get("/{transcript_id}", **_TRANSCRIPT)
    async def get(transcript_id: str, request: Request) -> Response:
        """The transcript, or its state until it is there."""
        job = await jobs.get(transcript_id, key_name(request))
        asked = await jobs.request(job.id, job.key)
        transcript = await jobs.transcript(job.id, job.key) if job.status == "succeeded" else None
        return await asyncio.to_thread(lambda: JSONResponse(_shown(job, asked, transcript)))

    @router.delete("/{transcript_id}", **_TRANSCRIPT)
    async def delete(transcript_id: str, request: Request) -> Response:
        """Erases the transcript in any state, with its audio; the answer shows it without its text."""
        asked = await jobs.request(transcript_id, key_name(request))
        job = await jobs.delete(transcript_id, key_name(request))
        return JSONResponse(_shown(job, asked, None))

    def add_captions(name: FormatName) -> None:
        media_type = FORMATS[name].media_type
        shown = {"content": {media_type.partition(";")[0]: {"schema": {"type": "string"}}}}

        @router.get(
            f"/{{transcript_id}}/{name}",
            name=name,
            response_class=Response,
            responses={200: shown},
            openapi_extra={"parameters": [_CHARS]},
        )
        async def captions(transcript_id: str, request: Request) -> Response:
            """A completed transcript as subtitles, without speakers."""
            chars = request.query_params.get("chars_per_caption")
            # Their limit is for a whole caption, ours for a line; with one line a cue both are the same.
            lines = {"max_line_width": chars, "max_line_count": 1} if chars else {}
            with renaming({"max_line_width": "chars_per_caption"}):
                options = parse_options({"response_format": name, **lines})
            job = await jobs.get(transcript_id, key_name(request))
            transcript = await jobs.transcript(job.id, job.key)
            if transcript is None:
                raise InvalidRequest(f"The transcript is {_status(job)}; ask for it when it is completed.")
            # AssemblyAI's captions name no speakers; those of one channel share a caption.
            by_channel = (await jobs.request(job.id, job.key)).options.channels == "speakers"
            if not by_channel:
                nameless = [replace(segment, speaker=None) for segment in transcript.segments]
                transcript = replace(transcript, segments=tuple(nameless))
            layout = replace(options.layout(), names_speakers=False, speakers_overlap=by_channel)
            write = FORMATS[name].write
            assert write is not None
            text = await asyncio.to_thread(write, transcript, layout)
            return text_response(text, media_type, transcript)

    add_captions("srt")
    add_captions("vtt")
    return router


def _status(job: Job) -> str:
    return _STATUSES.get(job.status, "error")


def _shown(job: Job, asked: JobRequest, transcript: Transcript | None) -> dict[str, Any]:
    """The transcript as AssemblyAI's clients expect it. Many words take seconds."""
    tries = job.webhook.log if job.webhook else ()
    shown: dict[str, Any] = {
        "id": job.id,
        "status": _status(job),
        "audio_url": asked.audio,
        "language_code": asked.echo.get("language_code", asked.options.language),
        "language_detection": asked.options.language is None,
        "speaker_labels": bool(asked.options.diarize),
        "speakers_expected": asked.options.num_speakers,
        "punctuate": True,
        "format_text": True,
        "webhook_url": job.webhook_url and address.without_secrets(address.parse(job.webhook_url)),
        "webhook_status_code": tries[-1].status if tries else None,
        "webhook_auth": False,
        "text": None,
        "words": None,
        "utterances": None,
        "confidence": None,
        "audio_duration": None,
        "speech_model_used": None,
        "error": None,
    }
    if by_channel := asked.options.channels == "speakers":
        shown["multichannel"] = True
    for name, at_s in (("audio_start_from", asked.options.start_s), ("audio_end_at", asked.options.end_s)):
        shown |= {} if at_s is None else {name: _ms(at_s)}
    if shown["status"] == "error":
        field, colon, why = (job.error_message or f"The transcript {ENDS[job.status]}.").partition(": ")
        shown["error"] = f"{THEIR_NAMES.get(field, field)}{colon}{why}"
    if transcript is None:
        return shown
    has_speakers = shown["speaker_labels"] or by_channel
    names = speaker_names(transcript, asked.options)
    spoken = [(segment, _words(segment, transcript.language, names)) for segment in transcript.segments]
    words = by_start((of_segment for _, of_segment in spoken), itemgetter("start"))
    was_detected = asked.options.language in (None, MULTIPLE)
    return shown | {
        "language_code": transcript.language if was_detected else shown["language_code"],
        "text": "".join(text_pieces(transcript.segments, asked.options.task, is_first=True)),
        "words": words,
        "utterances": list(_utterances(spoken, asked, names)) if has_speakers else None,
        "confidence": _confidence(words),
        "audio_duration": round(transcript.duration_s),
        "speech_model_used": transcript.model,
    }


def _words(segment: Segment, language: str | None, names: Mapping[str | None, str]) -> list[dict[str, Any]]:
    """The words. One that was not aligned has the time between its neighbours, and confidence 0.

    It cannot be left out, because the words have to give the whole text; and AssemblyAI's clients cannot
    read null.
    """
    words = [word for word in words_of(segment, language) if word.text.strip()]
    starts_s, ends_s = [], []
    known_s = segment.start_s
    for word in words:
        starts_s.append(known_s if word.start_s is None else word.start_s)
        known_s = starts_s[-1] if word.end_s is None else word.end_s
    known_s = segment.end_s
    for word in reversed(words):
        ends_s.append(known_s if word.end_s is None else word.end_s)
        known_s = known_s if word.start_s is None else word.start_s
    return [
        {
            "text": word.text,
            "start": _ms(start_s),
            "end": max(_ms(start_s), _ms(end_s)),
            "confidence": word.score if word.score is not None and math.isfinite(word.score) else 0.0,
            "speaker": names[segment.speaker] if segment.speaker else None,
        }
        for word, start_s, end_s in zip(words, starts_s, reversed(ends_s), strict=True)
    ]


def _utterances(
    spoken: Sequence[tuple[Segment, list[dict[str, Any]]]],
    asked: JobRequest,
    names: Mapping[str | None, str],
) -> Iterator[dict[str, Any]]:
    """What each speaker says until another one does."""
    for speaker, group in groupby(spoken, lambda each: each[0].speaker):
        parts = list(group)
        segments = [segment for segment, _ in parts]
        words = [word for _, of_segment in parts for word in of_segment]
        yield {
            "speaker": names[speaker] if speaker else None,
            "text": "".join(text_pieces(segments, asked.options.task, is_first=True)),
            "start": _ms(segments[0].start_s),
            "end": _ms(segments[-1].end_s),
            "confidence": _confidence(words) or 0.0,
            "words": words,
        }


def _confidence(words: Sequence[dict[str, Any]]) -> float | None:
    return sum(word["confidence"] for word in words) / len(words) if words else None


def _ms(at_s: float) -> int:
    return round(at_s * 1000)
