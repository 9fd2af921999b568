"""Gives segments and words the speaker who speaks longest in them, as whisperx.assign_word_speakers does.

There are three differences. Words take the exclusive turns (one speaker at a time). What overlaps no turn
takes the nearest one. The cost is O((n + m) log(n + m)) for n words and m turns, not O(n m).
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from serve_app.formats.cue_words import word_starts
from serve_app.transcript import Diarization, Segment, Turn, Word

Span = tuple[float, float]  # start and end in seconds

# A sentence is split only where the next speaker speaks for at least this long. With 0.1 s between turns of
# the recordings of `make eval`, 5.6 % of the words had a wrong speaker without splitting, 1.1 % with 0.8 s,
# 1.8 % with 1 s. With 0.1 to 0.7 s given to somebody else every 8 s it was 4.9 % without splitting, 2.7 %
# with 0.8 s, 4.1 % with 0.5 s, 5.6 % with 0 s.
MIN_RUN_S = 0.8


def longest_speakers(spans: Sequence[Span], turns: Sequence[Turn]) -> list[str | None]:
    """The speaker who speaks longest in each span, in total, or the one who started first of two equals.

    A span without overlap takes the nearest turn, the earlier one if two are equally near. None only if there
    are no turns at all.
    """
    speakers: list[str | None] = [None] * len(spans)
    by_start = sorted(turns, key=lambda turn: turn.start_s)
    by_end = sorted(turns, key=lambda turn: turn.end_s)
    starts, ends = [turn.start_s for turn in by_start], [turn.end_s for turn in by_end]
    begun, open_turns = 0, list[Turn]()
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        start_s, end_s = spans[i]
        open_turns += by_start[begun : bisect_right(starts, end_s)]
        begun = max(begun, bisect_right(starts, end_s))
        open_turns = [turn for turn in open_turns if turn.end_s > start_s]  # later spans start later
        spoken_s: defaultdict[str, float] = defaultdict(float)
        for turn in open_turns:
            if turn.start_s < end_s or turn.start_s == start_s:
                spoken_s[turn.speaker] += min(turn.end_s, end_s) - max(turn.start_s, start_s)
        if not spoken_s:
            before, after = bisect_right(ends, start_s) - 1, bisect_left(starts, end_s)
            gaps_s = [(start_s - ends[before], by_end[before])] if before >= 0 else []
            gaps_s += [(starts[after] - end_s, by_start[after])] if after < len(turns) else []
            spoken_s.update({turn.speaker: -gap_s for gap_s, turn in gaps_s})
        speakers[i] = max(spoken_s, key=lambda speaker: spoken_s[speaker], default=None)
    return speakers


def assign_speakers(segments: Sequence[Segment], diarization: Diarization) -> tuple[Segment, ...]:
    """The same segments, with a speaker for each and for each of their words.

    Segments take the regular turns and words the exclusive ones. A word without times takes its segment's
    speaker.
    """
    timed = [span for segment in segments for word in segment.words if (span := _span(word))]
    of_segments = longest_speakers([(s.start_s, s.end_s) for s in segments], diarization.turns)
    of_words = iter(longest_speakers(timed, diarization.exclusive_turns or diarization.turns))
    assigned = []
    for segment, speaker in zip(segments, of_segments, strict=True):
        words = [replace(word, speaker=next(of_words) if _span(word) else speaker) for word in segment.words]
        assigned.append(replace(segment, speaker=speaker, words=tuple(words)))
    return tuple(assigned)


def split_at_speaker_change(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Splits segments, whose words have speakers, where the speaker changes for long enough.

    A run of words shorter than MIN_RUN_S does not split: more often a word's time or speaker is a little
    wrong. The parts keep the segment's text, except for spaces where it is split; a word without times stays
    with the word before it.
    """
    return tuple(part for segment in segments for part in _parts(segment))


def _parts(segment: Segment) -> list[Segment]:
    runs = _runs(segment.words) if any(map(_span, segment.words)) else []
    starts = word_starts(segment.text, segment.words)
    if len(runs) < 2 or -1 in starts:
        return [segment]
    edges = [0, *(starts[run.start] for _, run in runs[1:]), len(segment.text)]
    parts = []
    for (speaker, run), (begin, end) in zip(runs, pairwise(edges), strict=True):
        words = segment.words[run.start : run.stop]
        spans = [span for word in words if (span := _span(word))]
        is_last = run.stop == len(segment.words)
        part = replace(
            segment,
            start_s=segment.start_s if run.start == 0 else spans[0][0],
            end_s=segment.end_s if is_last else max(end_s for _, end_s in spans),
            text=segment.text[begin:end].strip(),
            speaker=speaker,
            words=tuple(word if _span(word) else replace(word, speaker=speaker) for word in words),
        )
        parts.append(part)
    return parts


def _runs(words: Sequence[Word]) -> list[tuple[str | None, range]]:
    """Each speaker's words, in order; a run that is too short is given to the longer of its neighbours."""
    timed = [index for index, word in enumerate(words) if _span(word)]
    spans = [span for word in words if (span := _span(word))]
    speakers = [words[index].speaker for index in timed]
    while True:
        edges = [i for i in range(len(timed)) if i == 0 or speakers[i] != speakers[i - 1]]
        runs = [range(*edge) for edge in pairwise([*edges, len(timed)])]
        spoken_s = [spans[run[-1]][1] - spans[run[0]][0] for run in runs]
        shortest = min(range(len(runs)), key=lambda i: spoken_s[i])
        if len(runs) == 1 or spoken_s[shortest] >= MIN_RUN_S:
            break
        neighbours = [i for i in (shortest - 1, shortest + 1) if 0 <= i < len(runs)]
        neighbour = runs[max(neighbours, key=lambda i: spoken_s[i])]
        for i in runs[shortest]:
            speakers[i] = speakers[neighbour[0]]
    # A word without times belongs to the run before it.
    bounds = [0, *(timed[run[0]] for run in runs[1:]), len(words)]
    return [(speakers[run[0]], range(*bound)) for run, bound in zip(runs, pairwise(bounds), strict=True)]


def _span(word: Word) -> Span | None:
    """The word's start and end, None if it has no time."""
    return None if word.start_s is None or word.end_s is None else (word.start_s, word.end_s)
