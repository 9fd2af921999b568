"""Speakers for segments and words: whoever speaks longest within them, as whisperx.assign_word_speakers.

Three differences: words look at the exclusive turns (one speaker at a time), whatever overlaps no
turn takes the nearest one, and cost grows with the number of words and turns, not with their product.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

from serve_app.transcript import Diarization, Segment, Turn

Span = tuple[float, float]  # start and end in seconds


def _overlapping(spans: Sequence[Span], turns: Sequence[Turn]) -> Iterator[tuple[int, list[Turn]]]:
    """Index of each span and the turns that overlap it, in one sweep; `turns` are in order of start."""
    ahead = 0
    open_turns: list[Turn] = []
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        start_s, end_s = spans[i]
        while ahead < len(turns) and turns[ahead].start_s <= end_s:
            open_turns.append(turns[ahead])
            ahead += 1
        open_turns = [turn for turn in open_turns if turn.end_s > start_s]  # later spans start later
        yield i, [turn for turn in open_turns if turn.start_s < end_s or turn.start_s == start_s]


def longest_speakers(spans: Sequence[Span], turns: Sequence[Turn]) -> list[str | None]:
    """Who speaks longest in each span, summed over turns; of equals, who started first.

    Without overlap the speaker of the turn with the smallest gap to the span, the earlier one of two
    equally near; None only where there are no turns at all.
    """
    speakers: list[str | None] = [None] * len(spans)
    if not turns:
        return speakers
    by_start = sorted(turns, key=lambda turn: turn.start_s)
    by_end = sorted(turns, key=lambda turn: turn.end_s)
    starts, ends = [turn.start_s for turn in by_start], [turn.end_s for turn in by_end]
    for i, overlapping in _overlapping(spans, by_start):
        start_s, end_s = spans[i]
        spoken_s: dict[str, float] = {}
        for turn in overlapping:
            shared_s = min(turn.end_s, end_s) - max(turn.start_s, start_s)
            spoken_s[turn.speaker] = spoken_s.get(turn.speaker, 0.0) + shared_s
        if not spoken_s:
            before, after = bisect_right(ends, start_s) - 1, bisect_left(starts, end_s)
            gaps_s = [(start_s - ends[before], by_end[before])] if before >= 0 else []
            gaps_s += [(starts[after] - end_s, by_start[after])] if after < len(turns) else []
            spoken_s = {turn.speaker: -gap_s for gap_s, turn in gaps_s}
        speakers[i] = max(spoken_s, key=lambda speaker: spoken_s[speaker])
    return speakers


def assign_speakers(segments: Sequence[Segment], diarization: Diarization) -> tuple[Segment, ...]:
    """The same segments with a speaker on each and on each of their words.

    Segments look at the regular turns, words at the exclusive ones; where only one kind is given it
    serves both. A word without times takes its segment's speaker. Cost: O((n + m) log(n + m)).
    """
    turns = diarization.turns or diarization.exclusive_turns
    exclusive = diarization.exclusive_turns or diarization.turns
    timed = [
        (word.start_s, word.start_s if word.end_s is None else word.end_s)
        for segment in segments
        for word in segment.words
        if word.start_s is not None
    ]
    of_segments = longest_speakers([(segment.start_s, segment.end_s) for segment in segments], turns)
    of_words = iter(longest_speakers(timed, exclusive))
    return tuple(
        replace(
            segment,
            speaker=speaker,
            words=tuple(
                replace(word, speaker=speaker if word.start_s is None else next(of_words))
                for word in segment.words
            ),
        )
        for segment, speaker in zip(segments, of_segments, strict=True)
    )
