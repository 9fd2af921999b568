"""The unmodified `openai` package against the graph on a real local Ray with fake models.

What each field does is tested without Ray in tests/http/openai. Here the package parses every kind of answer.
"""

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

from serve_app.settings.openai import SHIPPED

FILE = ("two.wav", wav(recording(1, 2, 0, 3)))
LONG = ("forty.wav", wav(recording(*range(1, 41))))
TEXT = "word1 word2 word3"

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with OpenAI(base_url="http://127.0.0.1:18000/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # so the package calls translations
def test_the_package_parses_every_answer(client: OpenAI) -> None:
    """Each JSON answer has the package's type, and text formats are strings."""
    create: Any = client.audio.transcriptions.create
    translate: Any = client.audio.translations.create
    words = {"timestamp_granularities": ["word", "segment"]}
    chunks = {"chunking_strategy": {"type": "server_vad"}}
    for kind, call, response_format, fields in (
        (Transcription, create, "json", {}),
        (TranscriptionVerbose, create, "verbose_json", words),
        (TranscriptionDiarized, create, "diarized_json", chunks),
        (Translation, translate, "json", {}),
        (TranslationVerbose, translate, "verbose_json", {}),
    ):
        answer = call(file=FILE, model="whisper-1", response_format=response_format, **fields)
        assert isinstance(answer, kind)
        check(response_format, answer.to_dict())
        assert answer.text == TEXT
    ours = {"diarize": True, "max_speakers": 3}
    assert "<v SPEAKER_01>word1" in create(
        file=FILE, model="whisper-1", response_format="vtt", extra_body=ours
    )
    assert [model.id for model in client.models.list()] == ["fake", *SHIPPED]


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        ({"language": "klingon"}, openai.BadRequestError, "invalid_request"),
        ({"model": "large-v3"}, openai.NotFoundError, "model_not_found"),
        ({"file": ("a.wav", b"<html>")}, openai.UnprocessableEntityError, "undecodable_audio"),
        (
            {"file": ("a.wav", b"<html>"), "stream": True},
            openai.UnprocessableEntityError,
            "undecodable_audio",
        ),
    ],
)
def test_errors_are_the_packages_exceptions(
    client: OpenAI, arguments: dict[str, Any], error: type[openai.APIStatusError], code: str
) -> None:
    """The exception is chosen by status, and has the body's code and the request's id."""
    untyped: Any = client.audio.transcriptions
    with pytest.raises(error) as raised:
        untyped.create(**{"file": FILE, "model": "whisper-1", **arguments})
    check("error", {"error": raised.value.body})
    assert raised.value.code == code
    assert raised.value.request_id


def test_a_stream_gives_text_while_later_windows_wait(client: OpenAI, gate: Path) -> None:
    """While the device holds the batch with the last word, half of the words have arrived."""
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
    assert events[-1].type == "transcript.text.done"
    assert text == events[-1].text == " ".join(f"word{n}" for n in range(1, 41))


def test_a_client_that_leaves_its_stream_frees_its_windows(client: OpenAI, gate: Path) -> None:
    """Windows that wait for the device are dropped; only what is on it runs to its end."""
    before = until(lambda now: now["running"] == 0)
    gate.write_text("20")
    try:
        with client.audio.transcriptions.create(
            file=LONG, model="whisper-1", language="en", stream=True
        ) as stream:
            assert [next(stream) for _ in range(8)][-1].type == "transcript.text.delta"
            until(lambda now: now["running"] > 0 and now["queued"] > 0)  # word 20 holds the rest back
        until(lambda now: now["queued"] == 0)
    finally:
        gate.unlink()
    after = until(lambda now: now["running"] == 0)
    assert after["dropped"] > before["dropped"]
    assert after["items"] - before["items"] < 40
