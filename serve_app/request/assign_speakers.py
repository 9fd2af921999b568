"""Speakers for segments and words: whoever speaks longest within them, as whisperx.assign_word_speakers.

Three differences: words look at the exclusive turns (one speaker at a time), whatever overlaps no
turn takes the nearest one, and cost grows with the number of words and turns, not with their product.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from serve_app.transcript import Diarization, Segment, Turn, Word

Span = tuple[float, float]  # start and end in seconds

# So long speaks who goes on. On the recordings of `make eval` with 0.1 s between turns 5.6 % of the words
# had a wrong speaker without cuts, 1.1 % with this, 1.8 % with 1 s. With moments of 0.1 to 0.7 s given to
# somebody else every 8 s it was 4.9 % without cuts, 2.7 % with this, 4.1 % with 0.5 s, 5.6 % with 0 s.
LEAST_S = 0.8


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
    timed = [span for segment in segments for word in segment.words if (span := _span(word))]
    of_segments = longest_speakers([(segment.start_s, segment.end_s) for segment in segments], turns)
    of_words = iter(longest_speakers(timed, exclusive))
    return tuple(
        replace(
            segment,
            speaker=speaker,
            words=tuple(
                replace(word, speaker=next(of_words) if _span(word) else speaker) for word in segment.words
            ),
        )
        for segment, speaker in zip(segments, of_segments, strict=True)
    )


def split_at_speaker_change(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Segments, with speakers on their words, cut where another speaker goes on.

    Whoever speaks for less than LEAST_S does not go on: that is more often a word whose time or speaker is a
    little wrong. The texts of the parts are the segment's, but for spaces at the cuts, and words without
    times go with the one before.
    """
    return tuple(part for segment in segments for part in _parts(segment))


def _parts(segment: Segment) -> list[Segment]:
    if len({word.speaker for word in segment.words if _span(word)}) < 2:
        return [segment]
    runs, starts = _runs(segment.words), _starts(segment)
    if len(runs) < 2 or starts is None:
        return [segment]
    parts = []
    for speaker, run in runs:
        words = segment.words[run.start : run.stop]
        spans = [span for word in words if (span := _span(word))]
        is_first, is_last = run.start == 0, run.stop == len(segment.words)
        parts.append(
            replace(
                segment,
                start_s=segment.start_s if is_first else spans[0][0],
                end_s=segment.end_s if is_last else max(end_s for _, end_s in spans),
                text=segment.text[
                    0 if is_first else starts[run.start] : None if is_last else starts[run.stop]
                ].strip(),
                speaker=speaker,
                words=tuple(replace(word, speaker=speaker) if not _span(word) else word for word in words),
            )
        )
    return parts


def _runs(words: Sequence[Word]) -> list[tuple[str | None, range]]:
    """Who says which words, all of them and in order; who does not go on is taken for a neighbour."""
    timed = [index for index, word in enumerate(words) if word.start_s is not None]
    spans = [span for word in words if (span := _span(word))]
    speakers = [words[index].speaker for index in timed]
    while True:
        edges = [i for i in range(len(timed)) if i == 0 or speakers[i] != speakers[i - 1]]
        runs = [range(*edge) for edge in pairwise([*edges, len(timed)])]
        spoken_s = [spans[run[-1]][1] - spans[run[0]][0] for run in runs]
        shortest = min(range(len(runs)), key=lambda i: spoken_s[i])
        if len(runs) == 1 or spoken_s[shortest] >= LEAST_S:
            break
        beside = [i for i in (shortest - 1, shortest + 1) if 0 <= i < len(runs)]
        neighbour = runs[max(beside, key=lambda i: spoken_s[i])]
        for i in runs[shortest]:
            speakers[i] = speakers[neighbour[0]]
    bounds = [0, *(timed[run[0]] for run in runs[1:]), len(words)]  # words without times go with those before
    return [(speakers[run[0]], range(*bound)) for run, bound in zip(runs, pairwise(bounds), strict=True)]


def _starts(segment: Segment) -> list[int] | None:
    """Where each word begins in the text; None where the words are not those of the text."""
    starts, at = [], 0
    for word in segment.words:
        start = segment.text.find(word.text, at)
        if start < 0:
            return None
        starts.append(start)
        at = start + len(word.text)
    return starts


def _span(word: Word) -> Span | None:
    """None where the word has no time."""
    if word.start_s is None:
        return None
    return (word.start_s, word.start_s if word.end_s is None else word.end_s)
