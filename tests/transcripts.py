"""Transcripts for the tests of formats: one fixed, and any that hypothesis can think of."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from hypothesis import strategies as st

from serve_app.transcript import Segment, StageWarning, Transcript, Turn, Window, WindowText, Word

FIXED = Transcript(
    segments=(
        Segment(
            0.419,
            2.247,
            "four score & seven years ago.",
            (
                Word("four", 0.419, 0.7, 0.91, "SPEAKER_00"),
                Word("score", 0.72, 1.1, 0.9, "SPEAKER_00"),
                Word("&", None, None, None, "SPEAKER_00"),
                Word("seven", 1.2, 1.5, 0.8, "SPEAKER_00"),
                Word("years", 1.52, 1.8, 0.7, "SPEAKER_00"),
                Word("ago.", 1.8, 2.247, 0.6, "SPEAKER_00"),
            ),
            "SPEAKER_00",
        ),
        Segment(
            2.668,
            3.9,
            "our <fathers> --> brought",
            (
                Word("our", 2.668, 2.9, 0.5, "SPEAKER_00"),
                Word("<fathers>", 2.9, 3.3, 0.5, "SPEAKER_00"),
                Word("-->", 3.3, 3.4, 0.5, "SPEAKER_01"),
                Word("brought", 3.5, 3.9, 0.5, "SPEAKER_01"),
            ),
            "SPEAKER_00",
        ),
        Segment(
            8.0,
            9.25,
            "שלום עולם",
            (Word("שלום", 8.0, 8.5, 1.0, "Zoë > R&D"), Word("עולם", 8.6, 9.25, 1.0, "Zoë > R&D")),
            "Zoë > R&D",
        ),
        Segment(20.0, 30.0, "this window could not be aligned", (), "SPEAKER_00"),
        Segment(360000.5, 360001.0, "late", (Word("late", 360000.5, 360001.0, 0.5),)),
    ),
    language="en",
    duration_s=360002.0,
    model="fixed",
    turns=(
        Turn(0.3, 3.35, "SPEAKER_00"),
        Turn(3.2, 3.95, "SPEAKER_01"),
        Turn(7.9, 9.3, "Zoë > R&D"),
        Turn(19.5, 30.0, "SPEAKER_00"),
    ),
    warnings=(StageWarning("alignment", "alignment_failed", "The alignment stage failed – sorry."),),
    timings={"total": 1.5},
)

# The same transcript, with each segment's window and the text recognised in it.
WITH_SOURCES = replace(
    FIXED,
    segments=tuple(
        replace(
            each,
            source_text=WindowText("four score", "en", 0.9, -0.2, 0.01, 1.0),
            window=Window(0.0, 30.0),
        )
        for each in FIXED.segments
    ),
)


def spoken(start_s: float, end_s: float, text: str, speaker: str) -> Segment:
    """A segment whose words take equal times."""
    texts = text.split()
    at_s = [start_s + (end_s - start_s) / len(texts) * number for number in range(len(texts) + 1)]
    words = [Word(each, *times, 0.9, speaker) for each, times in zip(texts, pairwise(at_s), strict=True)]
    return Segment(start_s, end_s, text, tuple(words), speaker)


# Two channels, of which each is a speaker: the second one speaks while the first one does.
AT_ONCE = Transcript(
    segments=(
        spoken(0.0, 6.0, "one two three four five six.", "SPEAKER_00"),
        spoken(1.25, 2.25, "uh huh.", "SPEAKER_01"),
        spoken(3.25, 4.25, "right sure.", "SPEAKER_01"),
        spoken(7.0, 8.0, "seven.", "SPEAKER_00"),
    ),
    language="en",
    duration_s=8.0,
    model="fixed",
)
AT_ONCE_WORDS = ["one", "two", "uh", "huh.", "three", "four", "right", "sure.", "five", "six.", "seven."]

# Without spaces, line ends and control characters: those are looked at one by one.
PRINTABLE = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"))
LETTERS = st.characters(categories=("L", "N"))
HAN = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)
TRICKY = st.sampled_from(
    [
        "-->",
        "--->",
        "<b>",
        "<u>x</u>",
        "&",
        "&amp;",
        "&#0;",
        "{x}",
        r"\N",
        "NOTE",
        "STYLE",
        "WEBVTT",
        "7",
        "עולם",
    ]
)
TOKENS = st.text(PRINTABLE, min_size=1, max_size=12) | TRICKY
NAMES = st.sampled_from(["SPEAKER_00", "SPEAKER_01", "A > B", "R&D <v>", "دانا", "[x]: y"])


@st.composite
def transcripts(draw: st.DrawFn, *, unaligned: bool = False, plain: bool = False) -> Transcript:
    """Words that begin in order and may overlap; some without times. With `unaligned`, whole segments too.

    With `plain` they are letters, so that a line may begin with any of them.
    """
    language = draw(st.sampled_from(["en", "zh", None]))
    at_ms = draw(st.sampled_from([0, 3_599_000, 359_999_000]))
    tokens = TOKENS if language != "zh" else PRINTABLE
    if plain:
        tokens = st.text(LETTERS, min_size=1, max_size=12) | TRICKY if language != "zh" else HAN
    segments = []
    for _ in range(draw(st.integers(0, 5))):
        start_ms = at_ms
        end_ms = at_ms + 1
        words = []
        for text in draw(st.lists(tokens, min_size=1, max_size=8)):
            if not draw(st.integers(0, 4)):
                words.append(Word(text))
                continue
            at_ms += draw(st.integers(0, 1500) | st.integers(0, 6000))
            end_ms = at_ms + draw(st.integers(1, 1500))
            words.append(Word(text, at_ms / 1000, end_ms / 1000, 0.5))
        if all(word.start_s is None for word in words):
            words[-1] = Word(words[-1].text, start_ms / 1000, end_ms / 1000, 0.5)
        ends_ms = [round(word.end_s * 1000) for word in words if word.end_s is not None]
        speaker = draw(st.none() | NAMES)
        joined = ("" if language == "zh" else " ").join(word.text for word in words)
        segment = Segment(start_ms / 1000, max(ends_ms) / 1000, joined, tuple(words), speaker)
        if unaligned and draw(st.booleans()):
            segment = replace(segment, words=())
        segments.append(segment)
        at_ms = max(at_ms, draw(st.sampled_from([at_ms, max(ends_ms)])))
    turns = tuple(Turn(s.start_s, s.end_s, s.speaker) for s in segments if s.speaker)
    return Transcript(tuple(segments), language, 1.0, "made", turns)


class Watched(tuple[Segment, ...]):
    """Segments that note in which threads they are read."""

    threads: set[int]

    def __iter__(self) -> Iterator[Segment]:
        self.threads.add(threading.get_ident())
        return super().__iter__()


def watched(transcript: Transcript, threads: set[int]) -> Transcript:
    """The same transcript; `threads` gets the identifiers of those that read its segments."""
    segments = Watched(transcript.segments)
    segments.threads = threads
    return replace(transcript, segments=segments)
