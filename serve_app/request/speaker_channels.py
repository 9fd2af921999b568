"""The text of a file of which each channel is one speaker: channels are recognised apart and merged in time.

All channels are loaded together, and lost together; their windows wait in one queue, as those of any request.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import replace

from serve_app.request.calls import Audio
from serve_app.request.recognition import Recognition
from serve_app.request.state import RequestState
from serve_app.transcript import Progress, Segment, Turn, Window, WindowText

MAX_PAUSE_S = 0.5  # between segments of one turn


class SpeakerChannels:
    """A Recognition for each channel, as one for all."""

    def __init__(self, request: RequestState) -> None:
        self.request = request
        self._channels: list[Recognition] = []
        self._held: list[Segment] = []  # a channel that is behind may have an earlier one

    @property
    def windows_found(self) -> int:
        """The windows of all channels."""
        return sum(channel.windows_found for channel in self._channels)

    @property
    def texts(self) -> list[tuple[Window, WindowText]]:
        """The windows of all channels and their texts, by their starts."""
        texts = [each for channel in self._channels for each in channel.texts]
        return sorted(texts, key=lambda each: each[0].start_s)

    @property
    def spoken_language(self) -> str | None:
        """The language of most of the speech; each channel has its own."""
        spoken_s: defaultdict[str, float] = defaultdict(float)
        for channel in self._channels:
            if channel.spoken_language:
                spoken_s[channel.spoken_language] += channel.speech_s
        return max(spoken_s, key=lambda code: spoken_s[code], default=None)

    async def segments(self, audio: Audio) -> tuple[Segment, ...]:
        """All segments by their starts."""
        async with aclosing(audio.parts()) as parts:
            count = (await anext(parts)).channels
        self._channels = [Recognition(self.request, number, self._report) for number in range(count)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(channel.segments(audio)) for channel in self._channels]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others are of the same request
        if self._held:
            self._report(Progress(0, 0, all_found=True, segments=()))
        return tuple(_merged(segment for task in tasks for segment in task.result()))

    def _report(self, news: Progress) -> None:
        """Reports the windows of all channels, and the segments before which no channel has any to come."""
        self._held = _merged([*self._held, *news.segments])
        final_until_s = min(channel.final_until_s for channel in self._channels)
        final = [segment for segment in self._held if segment.start_s < final_until_s]
        self._held = self._held[len(final) :]
        done = sum(len(channel.done) for channel in self._channels)
        all_found = all(channel.all_found for channel in self._channels)
        self.request.report(Progress(done, self.windows_found, all_found, tuple(final)))


def turns_of(segments: Iterable[Segment]) -> tuple[Turn, ...]:
    """When each speaker speaks: segments, joined where there is hardly a pause between them."""
    turns: dict[str, list[Turn]] = {}
    for segment in segments:
        if segment.speaker is None:
            continue
        own = turns.setdefault(segment.speaker, [])
        if own and segment.start_s - own[-1].end_s <= MAX_PAUSE_S:
            own[-1] = replace(own[-1], end_s=max(own[-1].end_s, segment.end_s))
        else:
            own.append(Turn(segment.start_s, segment.end_s, segment.speaker))
    return tuple(sorted((turn for own in turns.values() for turn in own), key=lambda turn: turn.start_s))


def _merged(segments: Iterable[Segment]) -> list[Segment]:
    return sorted(segments, key=lambda segment: (segment.start_s, segment.speaker or ""))
