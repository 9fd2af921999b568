"""A request that chooses one of several models: which one hears it, what it is told, and what holds it up."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeStages, recording
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio import Source
from serve_app.errors import InvalidRequest
from serve_app.options import Options, parse_options
from serve_app.request.admission import WindowGate
from serve_app.request.calls import OtherModel, Stages, TranscribeCall
from serve_app.request.pipeline import transcribe
from serve_app.request.without_text import detect_language
from serve_app.transcript import Transcript, WindowText

SOURCE = Source(url="http://audio")


class Models:
    """The model `fake`, and `small`, which writes everything twice once it is `loaded`."""

    def __init__(self) -> None:
        self.fake = FakeStages(recording(1, 2, 3))
        self.loaded = asyncio.Event()
        self.loaded.set()
        self.stages: Stages = replace(
            self.fake.stages(windows_in_flight=1),
            other_models={"small": OtherModel(self._small, WindowGate(1))},
        )

    async def _small(self, call: TranscribeCall) -> WindowText:
        await self.loaded.wait()
        text = await self.fake.stages().transcribe(call)
        return replace(text, text=text.text * 2)

    async def run(self, **options: Any) -> Transcript:
        return await transcribe(self.stages, SOURCE, Options(**options))


def text_of(transcript: Transcript) -> str:
    return " ".join(segment.text for segment in transcript.segments)


@pytest.mark.parametrize(
    ("options", "model", "text"),
    [
        ({}, "fake", "word1 word2 word3"),
        ({"model": ""}, "fake", "word1 word2 word3"),
        ({"model": "fake"}, "fake", "word1 word2 word3"),
        ({"model": "small"}, "small", "word1 word1 word2 word2 word3 word3"),
    ],
)
def test_the_model_that_is_named_is_used(options: dict[str, str], model: str, text: str) -> None:
    """Without a name it is the configured one; the answer tells which it was."""

    async def story() -> None:
        transcript = await Models().run(**options)
        assert (transcript.model, text_of(transcript)) == (model, text)

    asyncio.run(story())


@given(st.text().filter(lambda name: name not in ("", "fake", "small")))
def test_another_name_is_refused_with_those_there_are(name: str) -> None:
    """Before any audio is loaded."""

    async def story() -> None:
        models = Models()
        with pytest.raises(InvalidRequest, match="use one of fake, small") as raised:
            await models.run(model=name)
        assert (raised.value.status, raised.value.param) == (400, "model")
        assert not models.fake.loaded

    asyncio.run(story())


def test_a_name_is_a_text() -> None:
    """Anything else is a 400 that names the option."""
    with pytest.raises(InvalidRequest, match="model: "):
        parse_options({"model": 3})


def test_a_model_that_is_still_loading_holds_no_other_back() -> None:
    """One window may wait or run at a time, and one of `small` does."""

    async def story() -> None:
        models = Models()
        models.loaded.clear()
        waiting = asyncio.create_task(models.run(model="small"))
        transcript = await asyncio.wait_for(models.run(), 60)
        assert text_of(transcript) == "word1 word2 word3"
        assert not waiting.done()
        models.loaded.set()
        assert (await waiting).model == "small"

    asyncio.run(story())


def test_a_request_uses_one_model_for_all_it_asks() -> None:
    """The windows that vote on the language, and those that are heard again in it."""

    async def story() -> None:
        models = Models()
        models.fake.languages = {0.0: "de", 1.0: "de", 2.0: "fr"}
        transcript = await models.run(model="small")
        assert text_of(transcript) == "word1 word1 word2 word2 word3 word3"
        assert transcript.language == "de"
        found = await detect_language(models.stages, SOURCE, Options())
        assert found.code == "de"
        with pytest.raises(InvalidRequest, match="use one of fake, small"):
            await detect_language(models.stages, SOURCE, Options(model="large"))

    asyncio.run(story())
