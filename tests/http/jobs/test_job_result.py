"""GET /v1/jobs/{id}/result: the one transcript in any format, and nothing asked for is ignored."""

import io
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webvtt
from job_api import Service, error_of, using
from starlette.responses import JSONResponse
from transcripts import AT_ONCE, FIXED

from serve_app.formats.table import FORMATS
from serve_app.http.responses import transcript_response
from serve_app.jobs.stored import JobRequest, dump_transcript
from serve_app.options import Options
from serve_app.transcript import Character, Segment, Token, Transcript, Voices, Window, WindowText, Word

EVERY_SPEAKER_OPTION = {
    "diarize": True,
    "min_speakers": 1,
    "max_speakers": 3,
    "known_speaker_names": ["Ada"],
    "known_speaker_references": ["data:audio/wav;base64,AAAA"],
    "split_at_speaker_change": True,
}
TOKENS = (Token(0.0, 0.5, 1.0, 1, (32, 0xE4)), Token(0.5, 1.0, 0.0, 3, (0xB8, 0xAD, 97)))
EVERY_OTHER_OPTION = {"language": "en", "initial_prompt": "Hm.", "hotwords": "Kant", "temperature": 0.2}


def predicted(**options: Any) -> bytes:
    """What /predict would have answered."""
    return bytes(transcript_response(FIXED, Options(**options)).body)


def test_a_result_is_what_predict_would_have_answered(tmp_path: Path) -> None:
    """It has the format and the layout of the submission, and the same warnings."""

    async def story(service: Service) -> None:
        for asked in (
            {},
            {"word_timestamps": True},
            {"response_format": "words"},
            {"response_format": "srt", "max_line_width": 20, "max_line_count": 1},
            {"response_format": "vtt", "highlight_words": True},
        ):
            path = await service.finished(FIXED, **asked)
            answer = await service.get(f"{path}/result")
            assert answer.status_code == 200
            assert answer.content == predicted(**asked)
            if FORMATS[Options(**asked).response_format].write:
                assert json.loads(answer.headers["x-warnings"])[0]["code"] == "alignment_failed"
            else:
                assert answer.json()["warnings"][0]["code"] == "alignment_failed"

    using(tmp_path, story)


@pytest.mark.parametrize(
    "submitted",
    [
        {},
        {**EVERY_SPEAKER_OPTION, **EVERY_OTHER_OPTION},
        {"num_speakers": 2, "word_timestamps": True},
        {"response_format": "srt", "max_line_width": 20, "max_line_count": 1, "highlight_words": True},
        {"response_format": "rttm", "diarize": True},
        {"response_format": "tsv"},
    ],
    ids=["plain", "with everything", "words", "subtitles", "turns", "table"],
)
def test_every_format_can_be_had_of_one_transcript(submitted: dict[str, Any], tmp_path: Path) -> None:
    """The submission's format does not limit this, such as `tsv`, which shows no speakers."""

    async def story(service: Service) -> None:
        path = await service.finished(FIXED, **submitted)
        for shown in FORMATS.values():
            answer = await service.get(f"{path}/result?response_format={shown.name}")
            assert answer.status_code == 200, answer.text
            assert answer.content == predicted(response_format=shown.name)
            assert answer.headers["content-type"] == shown.media_type
            assert ("x-warnings" in answer.headers) == bool(shown.write)
        layout = {"response_format": "vtt", "max_line_width": "30", "highlight_words": "true"}
        answer = await service.get(f"{path}/result", params=layout)
        assert answer.content == predicted(response_format="vtt", max_line_width=30, highlight_words=True)

    using(tmp_path, story)


def test_log_probabilities_are_kept_with_the_transcript(tmp_path: Path) -> None:
    """The job's result has what /predict would have answered; another format can still be had of it."""
    text = WindowText(" 中a", "zh", None, -0.1, 0.0, 1.0)
    segment = Segment(0.0, 1.0, "中a", window=Window(0.0, 1.0), source_text=text)
    spoken = replace(FIXED, segments=(segment, replace(segment, start_s=1.0)), tokens=TOKENS)

    async def story(service: Service) -> None:
        path = await service.finished(spoken, logprobs=True)
        answer = (await service.get(f"{path}/result")).json()
        assert answer["logprobs"] == [
            {"token": " \ufffd", "logprob": 0.0, "bytes": [32, 0xE4]},
            {"token": "\ufffd\ufffda", "logprob": -9999.0, "bytes": [0xB8, 0xAD, 97]},
        ]
        assert "logprobs" not in (await service.get(f"{path}/result?logprobs=false")).json()
        assert (await service.get(f"{path}/result?response_format=srt")).status_code == 200

    using(tmp_path, story)


def test_channels_are_kept_with_the_transcript(tmp_path: Path) -> None:
    """Cues are in order where both speak at once."""

    async def story(service: Service) -> None:
        path = await service.finished(AT_ONCE, channels="speakers")
        layout = {"response_format": "vtt", "max_line_width": "10", "max_line_count": "1"}
        text = (await service.get(f"{path}/result", params=layout)).text
        starts = [cue.start for cue in webvtt.from_buffer(io.StringIO(text))]
        assert starts == sorted(starts)

    using(tmp_path, story)


def test_confidence_and_languages_are_kept_with_the_transcript(tmp_path: Path) -> None:
    """What was found out because the job asked for it is shown again, in formats that have it."""
    [segment, *_] = FIXED.segments
    word = replace(segment.words[0], confidence=0.5)
    text = WindowText(" x", "de", 0.9, -0.1, 0.0, 1.0)
    sure = replace(FIXED, segments=(replace(segment, words=(word,), source_text=text),))

    async def story(service: Service) -> None:
        path = await service.finished(sure, confidence=True, response_format="words", language="multiple")
        answer = (await service.get(f"{path}/result")).json()
        assert [each["confidence"] for each in answer["words"]] == [0.5]
        assert answer["languages"] == [{"code": "de", "share": 1.0}]
        query = "response_format=json&word_timestamps=true&confidence=true"
        [shown] = (await service.get(f"{path}/result?{query}")).json()["model_output"]
        assert (shown["words"][0]["confidence"], shown["language"]) == (0.5, "de")
        path = await service.finished(sure, response_format="words")
        refused = await service.get(f"{path}/result?confidence=true")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "confidence")

    using(tmp_path, story)


def test_characters_are_kept_with_the_transcript(tmp_path: Path) -> None:
    """With all their times, in the formats that have words."""
    chars = (Character("o", 0.0, 0.5, 0.5), Character("k", 0.5, 0.75, 1.0), Character("."))
    segment = Segment(0.0, 0.75, "ok.", (Word("ok.", 0.0, 0.75, 0.75, chars=chars),))
    spoken = replace(FIXED, segments=(segment,))

    async def story(service: Service) -> None:
        path = await service.finished(spoken, word_timestamps=True, char_timestamps=True)
        (shown,) = (await service.get(f"{path}/result")).json()["model_output"]
        assert shown["words"][0]["chars"] == [
            {"char": "o", "start": 0.0, "end": 0.5, "score": 0.5},
            {"char": "k", "start": 0.5, "end": 0.75, "score": 1.0},
            {"char": ".", "start": None, "end": None, "score": None},
        ]
        words = (await service.get(f"{path}/result?response_format=words&char_timestamps=true")).json()
        assert words["words"] == shown["words"]
        plain = (await service.get(f"{path}/result?response_format=words")).json()
        assert "chars" not in plain["words"][0]

    using(tmp_path, story)


def test_embeddings_are_kept_with_the_transcript(tmp_path: Path) -> None:
    """Also those that are none; the result of a job that asked for them can go without."""
    vectors: dict[str, tuple[float, ...] | None] = {"SPEAKER_00": (0.5, -1.25), "SPEAKER_01": None}
    spoken = replace(FIXED, voices=Voices("net", 2, vectors))

    async def story(service: Service) -> None:
        path = await service.finished(spoken, embeddings=True)
        answer = (await service.get(f"{path}/result")).json()
        assert answer["speaker_embeddings"] == {
            "SPEAKER_00": [0.5, -1.25],
            "SPEAKER_01": None,
            "Zoë > R&D": None,
        }
        assert answer["embedding_model"] == {"name": "net", "dimension": 2}
        assert "speaker_embeddings" not in (await service.get(f"{path}/result?embeddings=false")).json()
        assert (await service.get(f"{path}/result?response_format=rttm")).status_code == 200

    using(tmp_path, story)


def test_without_a_format_the_url_changes_that_of_the_submission(tmp_path: Path) -> None:
    """Options that the URL does not name stay."""

    async def story(service: Service) -> None:
        subtitles = {"response_format": "srt", "max_line_width": 20, "max_line_count": 1}
        path = await service.finished(FIXED, **subtitles)
        answer = await service.get(f"{path}/result?max_line_width=40")
        assert answer.content == predicted(**{**subtitles, "max_line_width": 40})
        path = await service.finished(FIXED, word_timestamps=True)
        assert (await service.get(f"{path}/result?word_timestamps=false")).content == predicted()
        path = await service.finished(FIXED, word_timestamps=True, confidence=True, char_timestamps=True)
        assert (await service.get(f"{path}/result?word_timestamps=false")).content == predicted()

    using(tmp_path, story)


@pytest.mark.parametrize(
    ("submitted", "query", "param", "says"),
    [
        ({}, "response_format=docx", "response_format", "json"),
        ({}, "response_format=srt&response_format=vtt", "response_format", "once"),
        ({}, "max_line_width=20", "max_line_width", "no subtitle lines"),
        ({}, "response_format=srt&max_line_width=0", "max_line_width", "greater than or equal to 1"),
        ({}, "response_format=srt&max_line_count=2", "max_line_count", "needs max_line_width"),
        ({}, "response_format=text&word_timestamps=true", "word_timestamps", "no words with times"),
        ({}, "logprobs=true", "logprobs", "submitted with logprobs=true"),
        (
            {"word_timestamps": True},
            "char_timestamps=true",
            "char_timestamps",
            "submitted with char_timestamps=true",
        ),
        ({"align": False}, "word_timestamps=true", "word_timestamps", "align=false"),
        ({"align": False}, "response_format=words", "response_format", "align=false"),
        ({"logprobs": True}, "response_format=srt&logprobs=true", "logprobs", "no log-probabilities"),
        (
            {"confidence": True, "word_timestamps": True},
            "word_timestamps=false&confidence=true",
            "confidence",
            "send word_timestamps",
        ),
        ({}, "embeddings=true", "embeddings", "submitted with embeddings=true"),
        ({"embeddings": True}, "response_format=vtt&embeddings=true", "embeddings", "no embeddings"),
        ({}, "language=de", "language", "only response_format"),
        ({}, "format=srt", "format", "only response_format"),
        ({}, "format", "format", "only response_format"),
        ({"response_format": "srt"}, "word_timestamps=true", "word_timestamps", "no words with times"),
        ({"diarize": False}, "response_format=rttm", "response_format", "diarize"),
        ({"task": "translate"}, "response_format=words", "response_format", "translate"),
        ({"task": "translate"}, "word_timestamps=true", "word_timestamps", "translate"),
        ({"task": "translate"}, "response_format=srt&max_line_width=9", "max_line_width", "translate"),
    ],
)
def test_what_a_transcript_cannot_show_is_a_400(
    submitted: dict[str, Any], query: str, param: str, says: str, tmp_path: Path
) -> None:
    """It is refused as in a request to /predict, even before the job has ended."""

    async def story(service: Service) -> None:
        path = await service.finished(FIXED, **submitted)
        for job in (path, await service.submitted(**submitted)):
            answer = await service.get(f"{job}/result?{query}")
            assert error_of(answer)[:2] == (400, param), answer.text
            assert says in answer.json()["error"]["message"]

    using(tmp_path, story)


@pytest.mark.parametrize(
    ("transcript", "status"),
    [
        (replace(FIXED, turns=()), 400),  # the server had no model for it, or it failed
        (replace(FIXED, turns=(), segments=()), 200),  # nobody speaks
    ],
)
def test_turns_that_are_not_known_are_no_empty_answer(
    transcript: Transcript, status: int, tmp_path: Path
) -> None:
    """An RTTM without turns would say that nobody speaks."""

    async def story(service: Service) -> None:
        path = await service.finished(transcript)
        answer = await service.get(f"{path}/result?response_format=rttm")
        assert answer.status_code == status
        if status == 400:
            assert error_of(answer)[1] == "response_format"

    using(tmp_path, story)


def test_a_job_without_a_transcript_says_why(tmp_path: Path) -> None:
    """The job has not ended, or it failed, was canceled or expired."""

    async def story(service: Service) -> None:
        async def refused(path: str, code: str, *says: str) -> None:
            answer = await service.get(f"{path}/result")
            assert error_of(answer) == (409, None, code)
            assert all(words in answer.json()["error"]["message"] for words in says), answer.text

        store = service.jobs.store
        path = await service.submitted()
        await refused(path, "job_not_finished", "queued")
        held = await service.claimed()
        await refused(path, "job_not_finished", "running")
        await store.fail(held.job.id, 1, "undecodable_audio", "It is no audio.", retry=False)
        await refused(path, "job_failed", "It is no audio.")
        path = await service.submitted()
        await service.post(f"{path}/cancel")
        await refused(path, "job_canceled", "canceled")
        path = await service.submitted(max_queue_s=1e-6)
        await store.sweep()
        await refused(path, "job_expired", "expired")

    using(tmp_path, story)


@pytest.mark.parametrize("read", ["get", "result"])
def test_a_job_may_succeed_while_its_result_is_asked_for(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that polls is told to ask again, or gets the transcript."""

    async def story(service: Service) -> None:
        path, store = await service.submitted(), service.jobs.store
        held = await service.claimed()
        original = getattr(store, read)

        async def then_finished(*asked: Any) -> Any:
            found = await original(*asked)
            await store.finish(held.job.id, held.job.attempt, dump_transcript(FIXED))
            return found

        monkeypatch.setattr(store, read, then_finished)
        answer = await service.get(f"{path}/result")
        assert error_of(answer) == (409, None, "job_not_finished")
        monkeypatch.undo()
        await store.finish(held.job.id, held.job.attempt, dump_transcript(FIXED))
        assert (await service.get(f"{path}/result")).content == predicted()

    using(tmp_path, story)


def test_a_job_of_another_version_is_no_error_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a service is upgraded, an old server is asked for jobs whose options only new ones know."""
    dump = JobRequest.dump
    monkeypatch.setattr(JobRequest, "dump", lambda asked: dump(asked).replace("beam_size", "beam_depth"))

    async def story(service: Service) -> None:
        path = await service.submitted(beam_size=3)
        for asked in (f"{path}/result", path.replace("v1/jobs", "v2/transcript")):
            answer = await service.get(asked)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
            assert "another version" in answer.text
        await service.ask("GET", path)

    using(tmp_path, story)


def test_results_are_written_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many thousand words take seconds, in which other requests go on."""
    threads: set[int] = set()
    render = JSONResponse.render

    def watched_render(response: JSONResponse, content: Any) -> bytes:
        if "model_output" in content:
            threads.add(threading.get_ident())
        return render(response, content)

    monkeypatch.setattr(JSONResponse, "render", watched_render)

    async def story(service: Service) -> None:
        path = await service.finished(FIXED)
        assert (await service.get(f"{path}/result")).status_code == 200
        assert threads
        assert threading.get_ident() not in threads

    using(tmp_path, story)


def test_peaks_are_those_of_the_transcript(tmp_path: Path) -> None:
    """They are there once the transcript is."""

    async def story(service: Service) -> None:
        path = await service.finished(replace(FIXED, peaks="AAF/gA=="))
        assert (await service.get(f"{path}/peaks")).json() == {"per_second": 20, "peaks": "AAF/gA=="}
        path = await service.submitted()
        assert error_of(await service.get(f"{path}/peaks")) == (409, None, "job_not_finished")

    using(tmp_path, story)
