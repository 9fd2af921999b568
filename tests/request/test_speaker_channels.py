"""A file of which each channel is a speaker, and a stretch of a file: both through fake stages."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import FakeStages, recording
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio import AudioInfo, Source
from serve_app.errors import Overloaded
from serve_app.http.responses import logprobs
from serve_app.options import Options
from serve_app.request import speaker_channels
from serve_app.request.calls import TranscribeCall
from serve_app.request.pipeline import transcribe
from serve_app.request.speaker_channels import turns_of
from serve_app.transcript import (
    Progress,
    Samples,
    Segment,
    StageWarning,
    Transcript,
    Turn,
    WindowText,
)

SOURCE = Source(url="http://example/call.wav")


def call_of(*channels: list[int]) -> Samples:
    """A recording with a row for each channel; 0 is silence, other numbers are words."""
    return np.stack([recording(*channel) for channel in channels])


def run(fake: FakeStages, report: Any = lambda progress: None, **options: Any) -> Transcript:
    stages = fake.stages(diarizes=False)
    return asyncio.run(transcribe(stages, SOURCE, Options(channels="speakers", **options), report))


def said(transcript: Transcript) -> list[tuple[float, str, str | None]]:
    return [(each.start_s, each.text, each.speaker) for each in transcript.segments]


def test_what_counts_the_channels_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are recognised, not when the garbage collector runs."""
    open_before: list[int] = []
    is_open = 0

    class Noting:
        def __init__(self, *_: Any) -> None: ...

        async def segments(self, audio: Any) -> tuple[Segment, ...]:
            open_before.append(is_open)
            return ()

    class Audio:
        async def parts(self) -> AsyncGenerator[AudioInfo]:
            nonlocal is_open
            is_open += 1
            try:
                yield AudioInfo(0.0, 30.0, is_last=False, channels=2)
                yield AudioInfo(30.0, 60.0, is_last=True, channels=2)
            finally:
                is_open -= 1

    monkeypatch.setattr(speaker_channels, "Recognition", Noting)
    request: Any = SimpleNamespace(options=Options(channels="speakers"))
    asyncio.run(speaker_channels.SpeakerChannels(request).segments(Audio()))
    assert open_before == [0, 0]


def test_each_channel_is_a_speaker_without_a_diarizer() -> None:
    """Both are heard where they speak at once; segments and words have the speaker of their channel."""
    transcript = run(FakeStages(call_of([1, 0, 3, 0], [0, 2, 4, 5])))
    assert said(transcript) == [
        (0.0, "word1", "SPEAKER_00"),
        (1.0, "word2", "SPEAKER_01"),
        (2.0, "word3", "SPEAKER_00"),
        (2.0, "word4", "SPEAKER_01"),
        (3.0, "word5", "SPEAKER_01"),
    ]
    assert all(word.speaker == each.speaker for each in transcript.segments for word in each.words)
    assert transcript.turns == (
        Turn(0.0, 1.0, "SPEAKER_00"),
        Turn(1.0, 4.0, "SPEAKER_01"),
        Turn(2.0, 3.0, "SPEAKER_00"),
    )


def test_channels_are_one_file() -> None:
    """It is loaded once and has its own length, its own peaks, and each warning once."""
    quiet = StageWarning("decode", "quiet_audio", "The recording is very quiet.")
    fake = FakeStages(call_of([1, 0, 3], [0, 2, 4]), decode_warnings=(quiet,))
    transcript = run(fake)
    assert fake.calls["load"] == 1
    assert fake.loaded[0].selection.channels_apart
    assert (transcript.duration_s, transcript.warnings) == (3.0, (quiet,))
    assert transcript.peaks == "AAEC"  # of three parts


def test_without_the_option_nothing_is_loaded_apart() -> None:
    """The mix has its speakers from the diarizer."""
    fake = FakeStages(recording(1, 2))
    transcript = asyncio.run(transcribe(fake.stages(), SOURCE, Options()))
    assert not fake.loaded[0].selection.channels_apart
    assert fake.calls["diarize"] == 1
    assert {each.speaker for each in transcript.segments} == {"SPEAKER_00", "SPEAKER_01"}


def test_a_diarizer_has_nothing_to_do() -> None:
    """Where there is one, it is not called."""
    fake = FakeStages(call_of([1], [2]))
    asyncio.run(transcribe(fake.stages(), SOURCE, Options(channels="speakers")))
    assert fake.calls["diarize"] == 0


def test_languages_are_voted_for_in_each_channel() -> None:
    """Two people may speak two languages; the file's is that of most speech, and the other is told of."""

    class Two(FakeStages):
        async def _transcribe(self, call: TranscribeCall) -> WindowText:
            text = await super()._transcribe(call)
            own = call.language or ("en" if call.channel else "de")
            return replace(text, language=own, languages=((own, 0.8),))

    transcript = run(Two(call_of([1, 0, 0, 2], [0, 3, 4, 5])))
    heard = {each.speaker: each.source_text.language for each in transcript.segments if each.source_text}
    assert heard == {"SPEAKER_00": "de", "SPEAKER_01": "en"}
    assert transcript.language == "en"
    [warning] = transcript.warnings
    assert warning.code == "languages_mixed"
    assert "Besides en there is de in 2 windows (0.0-1.0 s, 3.0-4.0 s)" in warning.message


def test_a_silent_channel_is_no_speaker() -> None:
    """Nor does it say which language the file has."""
    transcript = run(FakeStages(call_of([0, 0], [0, 1])), language=None)
    assert said(transcript) == [(1.0, "word1", "SPEAKER_01")]
    silence = run(FakeStages(call_of([0, 0], [0, 0])))
    assert (silence.segments, silence.turns, silence.language) == ((), (), None)


def test_an_error_of_one_channel_ends_the_request() -> None:
    """With that error, and no work goes on."""

    class Failing(FakeStages):
        async def _transcribe(self, call: TranscribeCall) -> WindowText:
            if call.channel == 1:
                raise Overloaded("No.")
            return await super()._transcribe(call)

    async def work() -> set[Any]:
        before = asyncio.all_tasks()
        stages = Failing(call_of([1, 1, 1], [0, 2, 2])).stages()
        with pytest.raises(Overloaded):
            await transcribe(stages, SOURCE, Options(channels="speakers"))
        return asyncio.all_tasks() - before

    assert asyncio.run(work()) == set()


def test_a_request_that_is_cancelled_leaves_nothing_behind() -> None:
    """Neither a task nor a place in the queue."""

    async def work() -> None:
        begun = asyncio.Event()

        class Waiting(FakeStages):
            async def _transcribe(self, call: TranscribeCall) -> WindowText:
                begun.set()
                await asyncio.Event().wait()
                raise AssertionError

        stages, before = Waiting(call_of([1, 1], [2, 2])).stages(windows_in_flight=1), asyncio.all_tasks()
        running = asyncio.create_task(transcribe(stages, SOURCE, Options(channels="speakers")))
        await begun.wait()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert asyncio.all_tasks() == before
        assert stages.window_gate.waiting == 0
        async with asyncio.timeout(1), stages.window_gate.place("another"):
            pass

    asyncio.run(work())


seconds = st.lists(st.integers(0, 3), min_size=5, max_size=5)


@given(st.lists(seconds, min_size=2, max_size=8), st.sampled_from([1, 3, 64]))
def test_nothing_is_lost_between_channels(channels: list[list[int]], in_flight: int) -> None:
    """Each word is once in the transcript, on its channel, and progress gives the same in the same order."""
    news: list[Progress] = []
    fake = FakeStages(call_of(*channels))
    stages = fake.stages(windows_in_flight=in_flight)
    transcript = asyncio.run(transcribe(stages, SOURCE, Options(channels="speakers"), news.append))
    true = [
        (float(at_s), f"word{number}", f"SPEAKER_{channel:02d}")
        for at_s in range(5)
        for channel, spoken in enumerate(channels)
        if (number := spoken[at_s])
    ]
    assert said(transcript) == true
    assert [segment for each in news for segment in each.segments] == [*transcript.segments]
    if true:
        assert (news[-1].windows_done, news[-1].windows_found, news[-1].all_found) == (
            len(true),
            len(true),
            True,
        )
        assert [each.windows_done for each in news] == sorted(each.windows_done for each in news)


def test_turns_end_where_their_speaker_pauses() -> None:
    """A breath ends none; what another one says meanwhile does not either."""
    spoken = [(0.0, 2.0, "A"), (1.0, 1.5, "B"), (2.3, 3.0, "A"), (4.0, 5.0, "A"), (6.0, 7.0, None)]
    segments = [Segment(start_s, end_s, "So.", speaker=speaker) for start_s, end_s, speaker in spoken]
    assert turns_of(segments) == (Turn(0.0, 3.0, "A"), Turn(1.0, 1.5, "B"), Turn(4.0, 5.0, "A"))


def test_times_of_a_stretch_are_those_of_the_file() -> None:
    """Of segments, words, turns, windows in warnings and progress; its length is what was decoded."""

    class Doubtful(FakeStages):
        async def _transcribe(self, call: TranscribeCall) -> WindowText:
            return replace(await super()._transcribe(call), attempts=2)

    news: list[Progress] = []
    fake = Doubtful(recording(9, 9, 0, 1, 2, 0, 9))
    options = Options(start_s=2, end_s=6)
    transcript = asyncio.run(transcribe(fake.stages(), SOURCE, options, news.append))
    assert said(transcript) == [(3.0, "word1", "SPEAKER_01"), (4.0, "word2", "SPEAKER_00")]
    assert [(word.start_s, word.end_s) for each in transcript.segments for word in each.words] == [
        (3.0, 4.0),
        (4.0, 5.0),
    ]
    assert [each.window and each.window.start_s for each in transcript.segments] == [3.0, 4.0]
    assert [(turn.start_s, turn.end_s) for turn in transcript.turns] == [(3.0, 4.0), (4.0, 5.0)]
    assert "2 windows (3.0-4.0 s, 4.0-5.0 s)" in transcript.warnings[0].message
    assert [segment.start_s for each in news for segment in each.segments] == [3.0, 4.0]
    assert transcript.duration_s == 4.0


@given(st.integers(0, 6), st.integers(1, 7), st.booleans())
def test_a_stretch_says_what_the_whole_file_says_there(start_s: int, length_s: int, apart: bool) -> None:
    """Word for word, with the same times and speakers."""
    channels = [[1, 2, 0, 3, 4, 0, 5], [0, 6, 7, 0, 8, 9, 0]]
    samples = call_of(*channels) if apart else recording(*channels[0])

    def spoken(**cut: Any) -> list[Any]:
        options = Options(channels="speakers" if apart else "mix", language="en", **cut)
        fake = FakeStages(samples)
        done = asyncio.run(transcribe(fake.stages(), SOURCE, options))
        return [(each.text, each.start_s, each.end_s, each.words, each.speaker) for each in done.segments]

    end_s = start_s + length_s
    there = [each for each in spoken() if start_s <= each[1] < end_s]
    assert spoken(start_s=start_s, end_s=end_s) == there


def test_audio_options_reach_the_loader() -> None:
    """The track, the stretch, and what bytes without a header are."""
    fake = FakeStages(recording(1, 2))
    options = Options(track=1, end_s=1.0, encoding="mulaw", sample_rate=8000, channel_count=2)
    asyncio.run(transcribe(fake.stages(), SOURCE, options))
    [source] = fake.loaded
    assert (source.selection.track, source.selection.end_s, source.selection.start_s) == (1, 1.0, 0.0)
    assert source.raw is not None
    assert (source.raw.encoding, source.raw.sample_rate_hz, source.raw.channels) == ("mulaw", 8000, 2)


def test_channels_with_equal_windows_keep_their_tokens() -> None:
    """Of two people who speak at the same times, also if they say the same."""
    options: dict[str, Any] = {"channels": "speakers", "logprobs": True}
    for channels in ([[1, 0, 3], [2, 0, 4]], [[1, 0, 3], [1, 0, 3]]):
        fake = FakeStages(call_of(*channels))
        transcript = asyncio.run(transcribe(fake.stages(), SOURCE, Options(**options)))
        text = " ".join(segment.text for segment in transcript.segments)
        tokens = "".join(each["token"] for each in logprobs(transcript))
        assert tokens.split() == text.split()
