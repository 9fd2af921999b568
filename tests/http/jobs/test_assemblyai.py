"""AssemblyAI's transcript API: what its clients send and get."""

import io
from pathlib import Path
from typing import Any

import pytest
import srt
import webvtt
from job_api import ANN, BOB, URL, Service, using
from transcripts import AT_ONCE, AT_ONCE_WORDS

from serve_app.jobs.store.records import Try
from serve_app.jobs.stored import dump_transcript
from serve_app.options import Options
from serve_app.transcript import Segment, Transcript, Word

BODY = {"audio_url": URL}
HOOK = "https://example.com/hook"

TALK = Transcript(
    (
        Segment(0.5, 2.0, "Hello 2 you.", (
            Word("Hello", 0.5, 0.9, 0.8, "SPEAKER_01"),
            Word("2", None, None, None, "SPEAKER_01"),
            Word("you.", 1.25, 1.5, 0.4, "SPEAKER_01"),
        ), "SPEAKER_01"),
        Segment(2.0, 3.0, "Who?", (Word("Who?", 2.0, 2.5, float("nan"), "SPEAKER_00"),), "SPEAKER_00"),
        Segment(3.0, 4.0, "Not me.", (), "SPEAKER_00"),
        Segment(4.0, 5.0, "Nobody.", (Word("Nobody.", 4.0, 4.5, 0.6),), None),
    ),
    "de",
    63.5,
    "fake",
)  # fmt: skip


async def submitted(service: Service, **fields: Any) -> str:
    """The id of a new transcript."""
    job_id: str = (await service.ask("POST", "/v2/transcript", json={**BODY, **fields})).json()["id"]
    return job_id


async def shown(service: Service, job_id: str) -> dict[str, Any]:
    told: dict[str, Any] = (await service.ask("GET", f"/v2/transcript/{job_id}")).json()
    return told


async def completed(service: Service, transcript: Transcript = TALK, **fields: Any) -> str:
    """The id of a transcript that is there."""
    job_id = await submitted(service, **fields)
    attempt = (await service.claimed()).job.attempt
    await service.jobs.store.finish(job_id, attempt, dump_transcript(transcript))
    return job_id


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"language": "en", "diarize": False}),
        ({"language_code": "en_us"}, {"language": "en", "diarize": False}),
        ({"language_code": "de_ch"}, {"language": "de", "diarize": False}),
        ({"language_detection": True}, {"language": None, "diarize": False}),
        ({"speaker_labels": True, "speakers_expected": 2}, {"diarize": True, "num_speakers": 2}),
        (
            {"multichannel": True, "audio_start_from": 1500, "audio_end_at": 3000},
            {"channels": "speakers", "start_s": 1.5, "end_s": 3.0, "diarize": False},
        ),
        ({"keyterms_prompt": ["Kant", "Hegel"]}, {"hotwords": "Kant, Hegel", "diarize": False}),
        ({"word_boost": ["Kant"], "boost_param": "default"}, {"hotwords": "Kant", "diarize": False}),
        ({"speech_models": ["best"], "punctuate": True, "format_text": True}, {"diarize": False}),
        ({"speech_model": "small"}, {"model": "small", "diarize": False}),
        ({"speech_models": ["small", "best"]}, {"model": "small", "diarize": False}),
        ({"redact_pii": False, "prompt": None, "custom_spelling": [], "audio_end_at": 0}, {"diarize": False}),
    ],
)  # fmt: skip
def test_what_is_asked_for_becomes_our_options(
    fields: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """The default language is English, as at AssemblyAI; fields that ask for nothing change nothing."""

    async def story(service: Service) -> None:
        job_id = await submitted(service, **fields)
        wanted = Options.model_validate({"language": "en", "word_timestamps": True, **options})
        assert (await service.jobs.request(job_id, "")).options == wanted

    using(tmp_path, story)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"audio_url": None}, "audio_url:"),
        ({"audio_url": "talk.mp3"}, "audio_url is not a URL"),
        ({"language_code": "klingon"}, "language_code: must be a language"),
        ({"language_code": "de", "language_detection": True}, "language_detection: cannot be combined"),
        ({"speakers_expected": 2}, "speakers_expected: needs speaker_labels"),
        ({"keyterms_prompt": ["a"], "word_boost": ["b"]}, "word_boost: cannot be combined"),
        ({"keyterms_prompt": ["a" * 4001]}, "keyterms_prompt:"),
        ({"punctuate": False}, "punctuate: Whisper always"),
        ({"format_text": False}, "format_text: Whisper always"),
        ({"speech_model": "slam-1"}, "speech_model: there is no 'slam-1' here; use one of none, small"),
        ({"speech_models": ["universal-3-pro"]}, "speech_model: there is no 'universal-3-pro' here"),
        ({"speech_models": ["universal-3-pro", "universal-2"]}, "speech_models: name one model"),
        ({"webhook_url": "http://example.com"}, "webhook_url is not https"),
        ({"webhook_auth_header_name": "X"}, "webhook_auth_header_name: not supported here"),
        ({"summarization": True}, "summarization: not supported here"),
        ({"audio_start_from": 2000, "audio_end_at": 1000}, "audio_end_at: must be after audio_start_from"),
        (
            {"multichannel": True, "speaker_labels": True},
            "speaker_labels: cannot be combined with multichannel",
        ),
        ({"audio_start_from": 10**400}, "audio_start_from:"),
        ({"audio_end_at": 10**400}, "audio_end_at:"),
        ({"redact_pii_policies": ["drug"]}, "redact_pii_policies: not supported here"),
    ],
)
def test_what_cannot_be_honoured_is_a_400(changes: dict[str, Any], names: str, tmp_path: Path) -> None:
    """The error names the field, and nothing is queued."""

    async def story(service: Service) -> None:
        told = (await service.ask("POST", "/v2/transcript", 400, json={**BODY, **changes})).json()
        assert list(told) == ["error"]
        assert told["error"].startswith(names)
        assert await service.jobs.store.claim("runner", 60) is None

    using(tmp_path, story)


@pytest.mark.usefixtures("each_store")
def test_the_life_of_a_transcript(tmp_path: Path) -> None:
    """It is queued, processing, completed; no answer shows the query of a URL, which may be a password."""

    async def story(service: Service) -> None:
        body = {
            "audio_url": f"{URL}?token=hidden",
            "webhook_url": f"{HOOK}?token=hidden",
            "language_code": "en_us",
        }
        first = await service.ask("POST", "/v2/transcript", json=body)
        assert "hidden" not in first.text
        told = first.json()
        assert (told["status"], told["audio_url"], told["text"]) == ("queued", URL, None)
        assert (told["language_code"], told["webhook_url"]) == ("en_us", HOOK)
        claimed = await service.claimed()
        async with service.jobs.source(claimed) as source:
            assert source.url == body["audio_url"]
        assert (await shown(service, told["id"]))["status"] == "processing"
        await service.jobs.store.finish(told["id"], claimed.job.attempt, dump_transcript(TALK))
        ended = await shown(service, told["id"])
        assert (ended["status"], ended["error"], ended["language_code"]) == ("completed", None, "en_us")
        assert "hidden" not in str(ended)
        assert ended["webhook_status_code"] is None
        due = await service.jobs.store.claim_delivery(60)
        assert due is not None
        assert due.job.webhook_style == "assemblyai"
        await service.jobs.store.record_try(due.id, due.claim_no, Try(1.0, 503, "No.", 0.1), 60.0)
        assert (await shown(service, told["id"]))["webhook_status_code"] == 503

    using(tmp_path, story)


def test_text_and_words(tmp_path: Path) -> None:
    """Times are whole milliseconds; an unaligned word is between its neighbours, with confidence 0."""

    async def story(service: Service) -> None:
        told = await shown(service, await completed(service, language_detection=True))
        assert told["text"] == "Hello 2 you. Who? Not me. Nobody."
        assert [(word["text"], word["start"], word["end"], word["confidence"]) for word in told["words"]] == [
            ("Hello", 500, 900, 0.8),
            ("2", 900, 1250, 0.0),
            ("you.", 1250, 1500, 0.4),
            ("Who?", 2000, 2500, 0.0),
            ("Not", 3000, 4000, 0.0),
            ("me.", 3000, 4000, 0.0),
            ("Nobody.", 4000, 4500, 0.6),
        ]
        assert told["confidence"] == pytest.approx(1.8 / 7)
        assert (told["audio_duration"], told["language_code"]) == (64, "de")
        assert (told["speech_model_used"], told["utterances"]) == ("fake", None)

    using(tmp_path, story)


@pytest.mark.parametrize("code", ["multiple", "auto"])
def test_a_language_that_was_detected_is_told(code: str, tmp_path: Path) -> None:
    """A transcript has the one that was heard, and no word that asked for it."""

    async def story(service: Service) -> None:
        told = await shown(service, await completed(service, language_code=code))
        assert told["language_code"] == "de"

    using(tmp_path, story)


def test_utterances(tmp_path: Path) -> None:
    """There is one for each speaker turn; speakers are letters in the order in which they speak."""

    async def story(service: Service) -> None:
        told = await shown(service, await completed(service, speaker_labels=True))
        turns = [
            (
                each["speaker"],
                each["text"],
                each["start"],
                each["end"],
                [word["text"] for word in each["words"]],
            )
            for each in told["utterances"]
        ]
        assert turns == [
            ("A", "Hello 2 you.", 500, 2000, ["Hello", "2", "you."]),
            ("B", "Who? Not me.", 2000, 4000, ["Who?", "Not", "me."]),
            (None, "Nobody.", 4000, 5000, ["Nobody."]),
        ]
        assert told["utterances"][0]["confidence"] == pytest.approx(0.4)
        assert [word["speaker"] for word in told["words"]] == [*"AAABBB", None]

    using(tmp_path, story)  # fmt: skip


def test_a_transcript_that_failed(tmp_path: Path) -> None:
    """Its status is error, with the reason, whether it failed or was canceled."""

    async def story(service: Service) -> None:
        job_id = await submitted(service)
        attempt = (await service.claimed()).job.attempt
        await service.jobs.store.fail(job_id, attempt, "undecodable_audio", "It is no audio.", retry=False)
        told = await shown(service, job_id)
        assert (told["status"], told["error"], told["text"]) == ("error", "It is no audio.", None)
        job_id = await submitted(service)
        attempt, ends = (await service.claimed()).job.attempt, "the file ends at 10.0 s."
        await service.jobs.store.fail(job_id, attempt, "invalid_request", f"start_s: {ends}", retry=False)
        assert (await shown(service, job_id))["error"] == f"audio_start_from: {ends}"
        job_id = await submitted(service)
        await service.jobs.cancel(job_id, "")
        told = await shown(service, job_id)
        assert (told["status"], told["error"]) == ("error", "The transcript was canceled.")

    using(tmp_path, story)


def test_captions(tmp_path: Path) -> None:
    """A completed transcript gives subtitles without speakers; `chars_per_caption` limits each of them."""

    async def story(service: Service) -> None:
        job_id = await submitted(service, speaker_labels=True)
        refused = await service.ask("GET", f"/v2/transcript/{job_id}/srt", 400)
        assert refused.json() == {"error": "The transcript is queued; ask for it when it is completed."}
        await service.jobs.store.finish(job_id, (await service.claimed()).job.attempt, dump_transcript(TALK))
        path = f"/v2/transcript/{job_id}"
        whole = (await service.ask("GET", f"{path}/srt")).text
        assert [cue.content for cue in srt.parse(whole)] == [each.text for each in TALK.segments]
        for name in ("srt", "vtt"):
            text = (await service.ask("GET", f"{path}/{name}", params={"chars_per_caption": 8})).text
            captions = (
                [cue.content for cue in srt.parse(text)]
                if name == "srt"
                else [cue.text for cue in webvtt.from_buffer(io.StringIO(text))]
            )
            assert max(map(len, captions)) <= 8
            assert " ".join(captions).split() == ["Hello", "2", "you.", "Who?", "Not", "me.", "Nobody."]
        wrong = await service.ask("GET", f"{path}/vtt", 400, params={"chars_per_caption": "few"})
        assert wrong.json()["error"].startswith("chars_per_caption:")

    using(tmp_path, story)  # fmt: skip


def test_two_who_speak_at_once(tmp_path: Path) -> None:
    """Their words are in order; utterances are whole sentences, and no caption has words of both."""

    async def story(service: Service) -> None:
        job_id = await completed(service, AT_ONCE, multichannel=True)
        told = await shown(service, job_id)
        assert [word["text"] for word in told["words"]] == AT_ONCE_WORDS
        utterances = [(each["speaker"], each["text"]) for each in told["utterances"]]
        assert utterances == [
            ("A", "one two three four five six."),
            ("B", "uh huh. right sure."),
            ("A", "seven."),
        ]
        for name in ("srt", "vtt"):
            path = f"/v2/transcript/{job_id}/{name}"
            text = (await service.ask("GET", path, params={"chars_per_caption": 50})).text
            captions = [line for line in text.splitlines() if line and line[0].isalpha()]
            assert captions[name == "vtt" :] == [each.text for each in AT_ONCE.segments]

    using(tmp_path, story)


@pytest.mark.usefixtures("each_store")
def test_deleting(tmp_path: Path) -> None:
    """After it, the transcript is unknown."""

    async def story(service: Service) -> None:
        job_id = await completed(service)
        path = f"/v2/transcript/{job_id}"
        gone = (await service.ask("DELETE", path)).json()
        assert (gone["id"], gone["text"]) == (job_id, None)
        unknown = (await service.ask("GET", path, 404)).json()
        assert list(unknown) == ["error"]
        assert (await service.ask("GET", f"{path}/srt", 404)).json() == unknown

    using(tmp_path, story)


def test_a_transcript_is_its_keys_alone(tmp_path: Path) -> None:
    """Another key's transcript is as unknown as one that never was."""

    async def story(service: Service) -> None:
        job_id = (await service.ask("POST", "/v2/transcript", json=BODY, headers=ANN)).json()["id"]
        path = f"/v2/transcript/{job_id}"
        for method in ("DELETE", "GET"):
            told = (await service.ask(method, path, 404, headers=BOB)).json()
            assert told == (await service.ask(method, "/v2/transcript/none", 404, headers=ANN)).json()
        assert (await service.ask("GET", path, headers=ANN)).json()["status"] == "queued"

    using(tmp_path, story, with_keys=True)


def test_the_documentation_names_each_field(tmp_path: Path) -> None:
    """It names those of the transcript, of its utterances and of its words."""

    async def story(service: Service) -> None:
        every: dict[str, Any] = {"multichannel": True, "audio_start_from": 1, "audio_end_at": 2000}
        told = await shown(service, await completed(service, **every))
        schemas = (await service.get("/openapi.json")).json()["components"]["schemas"]
        for name, sent in (
            ("AssemblyTranscript", told),
            ("AssemblyUtterance", told["utterances"][0]),
            ("AssemblyWord", told["words"][0]),
        ):
            assert set(schemas[name]["properties"]) == set(sent)

    using(tmp_path, story)
