"""The unmodified `openai` package against the graph on a real local Ray with fake models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes import recording
from openai import OpenAI
from openai.types.audio import (
    Transcription,
    TranscriptionDiarized,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)
from openai_contract import check, check_event
from sounds import wav
from test_graph import until

FILE = ("two.wav", wav(recording(1, 2, 0, 3)))
LONG = ("forty.wav", wav(recording(*range(1, 41))))
TEXT = "word1 word2 word3"

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with OpenAI(base_url="http://127.0.0.1:18000/v1", api_key="none", max_retries=0) as client:
        yield client


def test_json(client: OpenAI) -> None:
    """The plain call, typed and raw; its id is in a header, as OpenAI's support asks for it."""
    answer = client.audio.transcriptions.create(file=FILE, model="whisper-1")
    assert isinstance(answer, Transcription)
    assert answer.text == TEXT
    assert answer.usage is not None
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == 4.0
    raw = client.audio.transcriptions.with_raw_response.create(file=FILE, model="fake")
    check("json", json.loads(raw.text))
    assert raw.request_id
    assert len(raw.headers.get_list("x-request-id")) == 1
    again = client.audio.transcriptions.with_raw_response.create(
        file=FILE, model="fake", extra_headers={"x-request-id": "mine"}
    )
    assert again.request_id == "mine"


@pytest.mark.parametrize(
    ("response_format", "begin"),
    [
        ("text", f"{TEXT}\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:01,000\nword1\n"),
        ("vtt", "WEBVTT\n\n00:00.000 --> 00:01.000\nword1\n"),
    ],
)
def test_text_formats_are_strings(client: OpenAI, response_format: Any, begin: str) -> None:
    """As the package gives them for OpenAI's own."""
    answer: Any = client.audio.transcriptions.create(
        file=FILE, model="whisper-1", response_format=response_format
    )
    assert isinstance(answer, str)
    assert answer.startswith(begin)


def test_verbose_json(client: OpenAI) -> None:
    """Words and segments with their numbers, typed."""
    answer = client.audio.transcriptions.create(
        file=FILE,
        model="whisper-1",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        temperature=0,
        prompt="Words.",
    )
    assert isinstance(answer, TranscriptionVerbose)
    check("verbose_json", answer.to_dict())
    assert (answer.language, answer.duration, answer.text) == ("english", 4.0, TEXT)
    assert answer.segments is not None
    assert answer.words is not None
    assert [(s.id, s.seek, s.avg_logprob) for s in answer.segments] == [
        (0, 0, -0.1),
        (1, 100, -0.1),
        (2, 300, -0.1),
    ]
    assert [(w.word, w.start, w.end) for w in answer.words] == [
        ("word1", 0, 1),
        ("word2", 1, 2),
        ("word3", 3, 4),
    ]


def test_diarized_json(client: OpenAI) -> None:
    """Speakers by letter, typed; chunking as OpenAI demands it for long files."""
    answer = client.audio.transcriptions.create(
        file=FILE, model="whisper-1", response_format="diarized_json", chunking_strategy="auto"
    )
    assert isinstance(answer, TranscriptionDiarized)
    check("diarized_json", answer.to_dict())
    assert [(s.speaker, s.text) for s in answer.segments] == [("A", "word1"), ("B", "word2"), ("A", "word3")]


def test_our_own_options_go_in_extra_body(client: OpenAI) -> None:
    """Speakers in other formats, and a number of them."""
    answer: Any = client.audio.transcriptions.create(
        file=FILE, model="whisper-1", response_format="vtt", extra_body={"diarize": True, "max_speakers": 3}
    )
    assert "<v SPEAKER_01>word1" in answer


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # so the package calls translations
def test_translations(client: OpenAI) -> None:
    """Both of the package's types."""
    plain = client.audio.translations.create(file=FILE, model="whisper-1")
    assert isinstance(plain, Translation)
    verbose = client.audio.translations.create(file=FILE, model="whisper-1", response_format="verbose_json")
    assert isinstance(verbose, TranslationVerbose)
    check("verbose_json", verbose.to_dict())
    assert (plain.text, verbose.text, verbose.language) == (TEXT, TEXT, "english")
    subtitles: Any = client.audio.translations.create(file=FILE, model="whisper-1", response_format="srt")
    assert subtitles.startswith("1\n00:00:00,000 --> ")


def test_models(client: OpenAI) -> None:
    """Listed and retrieved, typed."""
    listed = client.models.list()
    assert [model.id for model in listed] == ["fake", "whisper-1"]
    model = client.models.retrieve("whisper-1")
    check("model", model.to_dict())
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o-transcribe")


@pytest.mark.parametrize(
    ("arguments", "error", "param", "code"),
    [
        ({"language": "klingon"}, openai.BadRequestError, "language", "invalid_request"),
        ({"include": ["logprobs"]}, openai.BadRequestError, "include", "invalid_request"),
        (
            {"chunking_strategy": {"type": "server_vad", "threshold": 0.7}},
            openai.BadRequestError,
            "chunking_strategy",
            "invalid_request",
        ),
        ({"model": "gpt-4o-transcribe"}, openai.NotFoundError, "model", "model_not_found"),
        ({"file": ("a.wav", b"<html>")}, openai.UnprocessableEntityError, None, "undecodable_audio"),
        (
            {"file": ("a.wav", b"<html>"), "stream": True},
            openai.UnprocessableEntityError,
            None,
            "undecodable_audio",
        ),
    ],
)
def test_errors_are_the_package_s_exceptions(
    client: OpenAI,
    arguments: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str | None,
    code: str,
) -> None:
    """By status, with what the body says, and with an id."""
    untyped: Any = client.audio.transcriptions
    with pytest.raises(error) as raised:
        untyped.create(**{"file": FILE, "model": "whisper-1", **arguments})
    check("error", {"error": raised.value.body})
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.request_id


def test_a_stream_gives_text_while_later_windows_are_held(client: OpenAI, gate: Path) -> None:
    """While the device holds the batch with the last word, half of the words have come."""
    gate.write_text("40")
    try:
        with client.audio.transcriptions.create(
            file=LONG, model="whisper-1", language="en", stream=True
        ) as stream:
            early = [next(stream) for _ in range(20)]
            until(lambda now: now["running"] > 0)  # and stays so
            gate.unlink()
            events = [*early, *stream]
    finally:
        gate.unlink(missing_ok=True)
    kinds = [check_event(event.to_dict()) for event in events]
    assert kinds == ["transcript.text.delta"] * 40 + ["transcript.text.done"]
    text = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    whole = client.audio.transcriptions.create(file=LONG, model="whisper-1", language="en")
    assert events[-1].type == "transcript.text.done"
    assert text == events[-1].text == whole.text == " ".join(f"word{n}" for n in range(1, 41))
    assert events[-1].usage is not None
    assert events[-1].usage.input_tokens == 40 * 50


def test_a_stream_of_speakers(client: OpenAI) -> None:
    """Typed segments with speakers, after the text."""
    events = list(
        client.audio.transcriptions.create(
            file=FILE, model="whisper-1", response_format="diarized_json", stream=True
        )
    )
    kinds = [check_event(event.to_dict()).rpartition(".")[2] for event in events]
    assert kinds == ["delta"] * 3 + ["segment"] * 3 + ["done"]
    speakers = [event.speaker for event in events if event.type == "transcript.text.segment"]
    assert speakers == ["A", "B", "A"]


def test_a_client_that_leaves_its_stream_frees_its_windows(client: OpenAI, gate: Path) -> None:
    """What waits for the device is dropped; only what is on it runs to its end."""
    before = until(lambda now: now["running"] == 0)

    def come(now: dict[str, float]) -> float:
        """Windows of this request that the Transcriber has had so far."""
        return now["items"] - before["items"] + now["running"] + now["queued"]

    gate.write_text("20")
    try:
        with client.audio.transcriptions.create(
            file=LONG, model="whisper-1", language="en", stream=True
        ) as stream:
            assert [next(stream) for _ in range(8)][-1].type == "transcript.text.delta"
            # All have come, and word 20 holds half of them back, whichever came first.
            waiting = until(lambda now: come(now) == 40 and now["running"] > 0 and now["queued"] >= 16)
        until(lambda now: now["queued"] == 0)
    finally:
        gate.unlink()
    after = until(lambda now: now["running"] == 0)
    assert after["dropped"] - before["dropped"] == waiting["queued"]
