"""References of known speakers: which are accepted, and what is wrong with the others."""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from fakes import data_url

from serve_app.audio import AudioInfo, Source
from serve_app.errors import AudioTooCostly, AudioTooLong, InvalidRequest, TranscriptionError, UnusableAudio
from serve_app.options import Options
from serve_app.request.known_speakers import (
    check_clips,
    known_speakers,
    reference_bytes,
)
from serve_app.transcript import KnownSpeaker


@pytest.mark.parametrize(
    "head", ["data:audio/wav;base64,", "data:;base64,", "DATA:audio/ogg;codecs=opus;Base64,"]
)
def test_a_data_url_with_any_media_type_is_taken(head: str) -> None:
    """What the bytes are is for the decoder to say."""
    assert reference_bytes(head + base64.b64encode(b"RIFF").decode(), 0) == b"RIFF"


@pytest.mark.parametrize("text", ["UklG_y8", "UklG\r\n/y8=\r\n", "UklG_y8=", " UklG/y8"])
def test_its_base64_is_read_as_that_of_a_file(text: str) -> None:
    """URL-safe, without padding, with line breaks."""
    assert reference_bytes(f"data:audio/wav;base64,{text}", 0) == b"RIF\xff/"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "RIFF",
        "https://example.com/a.wav",
        "data:audio/wav,RIFF",
        "data:audio/wav;base64,R*FF",
        "data:audio/wav;base64,UklG Rg==",
    ],
)
def test_anything_else_is_an_error_that_says_which(url: str) -> None:
    """Nothing is fetched, and what follows must be base64."""
    with pytest.raises(InvalidRequest, match=r"known_speaker_references\[2\]") as caught:
        reference_bytes(url, 2)
    assert caught.value.param == "known_speaker_references"


@dataclass
class Clip:
    """A clip of this length, or one that cannot be decoded."""

    found: float | TranscriptionError

    async def parts(self) -> AsyncGenerator[AudioInfo]:
        if isinstance(self.found, TranscriptionError):
            raise self.found
        yield AudioInfo(0.0, self.found, is_last=True)


def check(*clips: float | TranscriptionError) -> None:
    asyncio.run(check_clips([KnownSpeaker("Ada", Clip(clip)) for clip in clips]))


def test_clips_of_two_to_ten_seconds_are_taken() -> None:
    """Encoders may cut off or add a moment."""
    check(1.95, 2.0, 10.0)


def test_a_clip_of_another_length_says_what_length_to_send() -> None:
    """Too short is seen here, too long is the decoder's to stop: to the caller it is the same error."""
    for clip in (1.5, AudioTooLong("The audio is longer than 10.1 s.")):
        with pytest.raises(InvalidRequest, match=r"references\[1\]: send a clip of 2 to 10 s") as caught:
            check(5.0, clip)
        assert (caught.value.param, caught.value.code) == ("known_speaker_references", "reference_length")


@pytest.mark.parametrize("kind", [UnusableAudio, AudioTooCostly])
def test_a_clip_that_cannot_be_decoded_keeps_its_error(kind: type[TranscriptionError]) -> None:
    """Status and code are those of any unusable audio; the message and `param` say that it is the clip."""
    with pytest.raises(kind, match=r"references\[0\]: not audio") as caught:
        check(kind("not audio"))
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (422, kind.code)
    assert caught.value.param == "known_speaker_references"


def test_clips_are_loaded_with_their_own_limit_and_let_go() -> None:
    """Each is loaded in order and left when the request is done; none is decoded for hours."""
    log: list[str] = []

    @asynccontextmanager
    async def load(source: Source) -> AsyncIterator[Any]:
        assert source.file is not None
        assert source.max_audio_s is not None
        assert source.max_audio_s < 11
        clip = source.file.read().decode()
        log.append(f"load {clip}")
        yield clip
        log.append(f"leave {clip}")

    async def run() -> list[tuple[str, str]]:
        names, clips = ["Ada", "Bob"], [data_url(b"1"), data_url(b"2")]
        async with known_speakers(
            load, Options(known_speaker_names=names, known_speaker_references=clips)
        ) as known:
            return [(speaker.name, speaker.clip) for speaker in known]

    assert asyncio.run(run()) == [("Ada", "1"), ("Bob", "2")]
    assert log == ["load 1", "load 2", "leave 2", "leave 1"]
