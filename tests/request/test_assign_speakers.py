"""Who said which segment and word: overlap, ties, gaps, missing times, long files."""

import itertools
import random
import time
from dataclasses import replace

from serve_app.request.assign_speakers import assign_speakers, longest_speakers, split_at_speaker_change
from serve_app.transcript import Diarization, Segment, Turn, Word

A, B, C = "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"


def diarization(*turns: tuple[float, float, str]) -> Diarization:
    both = tuple(Turn(*turn) for turn in turns)
    return Diarization(both, both)


def test_the_speaker_with_the_largest_summed_overlap_wins() -> None:
    """Two short turns of one speaker outweigh one longer turn of another."""
    turns = [Turn(0.0, 1.0, A), Turn(1.0, 2.5, B), Turn(2.5, 4.0, A)]
    assert longest_speakers([(0.0, 4.0), (0.9, 2.6), (2.0, 3.2)], turns) == [A, B, A]


def test_of_equal_speakers_the_one_who_started_first_wins() -> None:
    """Two speakers who both speak through a segment do not make its speaker random."""
    turns = [Turn(2.0, 9.0, B), Turn(1.0, 9.0, A)]
    assert longest_speakers([(3.0, 4.0)], turns) == [A]


def test_no_overlap_takes_the_nearest_turn() -> None:
    """A gap belongs to the turn whose edge is nearer, before, between and after all turns."""
    turns = [Turn(1.0, 2.0, A), Turn(10.0, 20.0, B)]
    assert longest_speakers([(0.0, 0.5), (3.0, 4.0), (8.0, 9.5), (30.0, 31.0)], turns) == [A, A, B, B]


def test_the_nearest_turn_before_is_the_one_that_ended_last() -> None:
    """A long turn that started early can still be the nearest one."""
    turns = [Turn(0.0, 10.0, A), Turn(1.0, 2.0, B), Turn(50.0, 51.0, C)]
    assert longest_speakers([(11.0, 12.0)], turns) == [A]


def test_a_moment_inside_a_turn_belongs_to_it() -> None:
    """A word of no length takes the turn around it, not the nearest edge of another one."""
    turns = [Turn(0.0, 10.0, A), Turn(5.1, 5.2, B)]
    assert longest_speakers([(5.0, 5.0), (0.0, 0.0), (5.15, 5.15)], turns) == [A, A, A]
    assert longest_speakers([(7.0, 7.0)], [Turn(7.0, 8.0, B), Turn(0.0, 6.9, A)]) == [B]


def test_words_follow_the_exclusive_turns_and_segments_the_regular_ones() -> None:
    """An interruption inside a long turn names its words only."""
    regular = (Turn(0.0, 10.0, A), Turn(4.0, 5.0, B))
    exclusive = (Turn(0.0, 4.0, A), Turn(4.0, 5.0, B), Turn(5.0, 10.0, A))
    segment = Segment(0.0, 10.0, "one yes two", (Word("one", 1, 2), Word("yes", 4.2, 4.9), Word("two", 6, 7)))
    [assigned] = assign_speakers([segment], Diarization(regular, exclusive))
    assert assigned.speaker == A
    assert [word.speaker for word in assigned.words] == [A, B, A]


def test_a_word_without_times_takes_its_segments_speaker() -> None:
    """Unaligned words are not left without a speaker."""
    segment = Segment(0.0, 2.0, "2 b", (Word("2"), Word("b", 1.5, 1.8)))
    [assigned] = assign_speakers([segment], diarization((0.0, 1.2, A), (1.2, 1.9, B)))
    assert [word.speaker for word in assigned.words] == [A, B]


def test_no_turns_leave_speakers_unknown() -> None:
    """Only a file in which nobody speaks has segments without a speaker."""
    segment = Segment(0.0, 2.0, "a", (Word("a", 0.0, 1.0),))
    assert assign_speakers([segment], Diarization((), ())) == (segment,)
    assert assign_speakers([], diarization((0.0, 1.0, A))) == ()


def test_one_kind_of_turns_serves_for_both() -> None:
    """A pipeline without exclusive turns still names the words."""
    segment = Segment(0.0, 2.0, "a", (Word("a", 0.0, 1.0),))
    [assigned] = assign_speakers([segment], Diarization((Turn(0.0, 2.0, B),), ()))
    assert (assigned.speaker, assigned.words[0].speaker) == (B, B)


def test_everything_else_is_kept_in_order() -> None:
    """Only speakers change, whatever the order of the segments' times."""
    segments = tuple(
        Segment(start, start + 1, str(start), (Word("x", start, start + 0.5, 0.9),), avg_logprob=-0.1)
        for start in (5.0, 0.0, 3.0)
    )
    assigned = assign_speakers(segments, diarization((0.0, 4.0, A), (4.0, 9.0, B)))
    assert [segment.speaker for segment in assigned] == [B, A, A]
    assert [segment.words[0].speaker for segment in assigned] == [B, A, A]
    bare = [replace(s, speaker=None, words=(replace(s.words[0], speaker=None),)) for s in assigned]
    assert tuple(bare) == segments


def said(text: str, speakers: str, joint: str = " ") -> Segment:
    """A sentence, half a second a word, from 10 s on: who speaks each, "-" for a word without times."""
    spoken = zip(text.split(joint) if joint else text, speakers, strict=True)
    words = tuple(
        Word(word, speaker="x") if who == "-" else Word(word, 10.0 + i / 2, 10.4 + i / 2, 0.9, who)
        for i, (word, who) in enumerate(spoken)
    )
    return Segment(9.9, 10.0 + len(words) / 2, text, words, speaker=speakers[0], avg_logprob=-0.1)


def parts_of(segment: Segment) -> list[tuple[str, str | None]]:
    return [(part.text, part.speaker) for part in split_at_speaker_change([segment])]


def test_a_sentence_of_two_speakers_is_cut_where_the_other_goes_on() -> None:
    """Text, times and words are the sentence's own, the rest is kept."""
    segment = said("are you coming, yes I am.", "AAABBB")
    first, second = split_at_speaker_change([segment])
    assert (first.text, first.speaker, first.start_s, first.end_s) == ("are you coming,", "A", 9.9, 11.4)
    assert (second.text, second.speaker, second.start_s, second.end_s) == ("yes I am.", "B", 11.5, 13.0)
    assert first.words + second.words == segment.words
    assert first.avg_logprob == second.avg_logprob == -0.1


def test_one_word_of_another_does_not_cut() -> None:
    """Not a short one: in the middle and at the ends it is more often its time that is wrong."""
    for speakers in ("AAAAAA", "AABAAA", "AAAAAB", "BAAAAA", "ABABAB"):
        segment = said("a b c d e f", speakers)
        assert split_at_speaker_change([segment]) == (segment,)
    assert parts_of(said("a b c d e f", "AABABB")) == [("a b c d", "A"), ("e f", "B")]


def test_it_is_time_that_counts_not_words() -> None:
    """Two words in a quarter of a second do not split a sentence; one long word does."""
    for b_ends_s, parts in ((2.25, 1), (2.9, 2)):
        words = [Word("a", 0, 1, speaker=A), Word("b", 1, 2, speaker=A)]
        words += [Word("c", 2, 2.1, speaker=B), Word("d", 2.1, b_ends_s, speaker=B)]
        segment = Segment(0, b_ends_s, "a b c d", tuple(words), A)
        assert len(split_at_speaker_change([segment])) == parts


def test_words_without_times_stay_with_the_word_before() -> None:
    """At the beginning with the word after; they have the part's speaker."""
    parts = split_at_speaker_change([said("1 a b 2 c 3 d", "-AA-B-B")])
    assert [(part.text, part.speaker) for part in parts] == [("1 a b 2", "A"), ("c 3 d", "B")]
    assert [word.speaker for part in parts for word in part.words] == list("AAAABBB")
    untimed = said("1 2 3", "---")
    assert split_at_speaker_change([untimed]) == (untimed,)
    assert split_at_speaker_change([Segment(0, 1, "no words")]) == (Segment(0, 1, "no words"),)


def test_languages_without_spaces_are_cut_between_characters() -> None:
    """Punctuation that is no word goes with what stands before it."""
    assert parts_of(said("你来吗我来", "AAABB", joint="")) == [("你来吗", "A"), ("我来", "B")]
    segment = said("你来吗我来", "AAABB", joint="")
    with_signs = replace(segment, text="你来吗？我来。")
    assert parts_of(with_signs) == [("你来吗？", "A"), ("我来。", "B")]


def test_words_that_are_not_the_texts_do_not_cut() -> None:
    """No text is lost or said twice."""
    segment = replace(said("a b c d", "AABB"), text="a b see d")
    assert split_at_speaker_change([segment]) == (segment,)


def test_random_sentences_lose_nothing() -> None:
    """Whoever speaks: the texts joined, the words and the order of times are the sentence's."""
    rng = random.Random(1)
    for _ in range(300):
        n = rng.randint(1, 12)
        text = " ".join(rng.choice(["a", "ab", "b", "«b»"]) for _ in range(n))
        segment = said(text, "".join(rng.choice("AAAB-") for _ in range(n)))
        parts = split_at_speaker_change([segment])
        assert " ".join(part.text for part in parts) == text
        assert [word.text for part in parts for word in part.words] == text.split()
        assert (parts[0].start_s, parts[-1].end_s) == (segment.start_s, segment.end_s)
        edges = [edge for part in parts for edge in (part.start_s, part.end_s)]
        assert edges == sorted(edges)
        assert all(a.speaker != b.speaker for a, b in itertools.pairwise(parts))


def _speaker_one_by_one(span: tuple[float, float], turns: list[Turn]) -> str:
    """The definition, turn by turn."""
    spoken: dict[str, float] = {}
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        if (shared := min(turn.end_s, span[1]) - max(turn.start_s, span[0])) > 0:
            spoken[turn.speaker] = spoken.get(turn.speaker, 0.0) + shared
    if spoken:
        return max(spoken, key=lambda speaker: spoken[speaker])
    return min(turns, key=lambda turn: max(turn.start_s - span[1], span[0] - turn.end_s)).speaker


def test_random_turns_agree_with_the_definition() -> None:
    """The sweep finds what looking at every turn for every span finds."""
    rng = random.Random(0)
    for _ in range(200):
        starts = [rng.uniform(0, 100) for _ in range(rng.randint(1, 30))]
        turns = [Turn(start, start + rng.expovariate(0.3), rng.choice((A, B, C))) for start in starts]
        spans = [(start, start + rng.uniform(0.01, 5)) for start in (rng.uniform(-5, 120) for _ in range(40))]
        assert longest_speakers(spans, turns) == [_speaker_one_by_one(span, turns) for span in spans]


def test_four_hours_take_a_moment() -> None:
    """Cost does not grow with words times turns, even with one turn that never ends."""
    words = [(0.4 * i, 0.4 * i + 0.3) for i in range(36_000)]
    turns = [Turn(0.0, 14_400.0, A), *(Turn(2.0 * i, 2.0 * i + 1.5, B) for i in range(7_200))]
    started = time.process_time()
    assert len(longest_speakers(words, turns)) == 36_000
    assert time.process_time() - started < 2.0  # every word against every turn would be 260 million steps
