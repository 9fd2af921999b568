"""Segments as OpenAI's clients get them, and what speakers are called."""

from serve_app.http.openai.response import verbose
from serve_app.http.responses import embeddings_out, speaker_names
from serve_app.options import Options
from serve_app.transcript import Segment, Transcript, Turn, Voices, Window, WindowText


def test_seek_is_where_the_window_starts() -> None:
    """It is in hundredths of a second, also where the product is just below a whole number."""
    source = WindowText("ok", "en", None, -0.1, 0.0, 1.0)
    starts = (0.0, 0.29, 1.13, 4.35, 16.9)
    segments = tuple(Segment(s, s + 1, "ok", window=Window(s, s + 1), source_text=source) for s in starts)
    items = list(verbose(Transcript(segments, "en", 20.0, "made"), Options()))
    assert [item["seek"] for item in items] == [0, 29, 113, 435, 1690]


def test_speakers_have_letters_unless_they_are_known() -> None:
    """Letters are given in order of appearance, without those that are somebody's name; after Z comes AA."""
    speakers = [
        "SPEAKER_07",
        "Ann",
        None,
        *(f"SPEAKER_{number:02d}" for number in range(10, 36)),
        "SPEAKER_07",
    ]
    segments = [Segment(0.0, 1.0, "x", speaker=speaker) for speaker in speakers]
    names = speaker_names(
        Transcript(tuple(segments), "en", 1.0, "made"),
        Options(known_speaker_names=("Ann", "B"), known_speaker_references=("a", "b")),
    )
    called = [names[speaker] for speaker in speakers]
    assert called[:5] == ["A", "Ann", "unknown", "C", "D"]
    assert called[-3:] == ["AA", "AB", "A"]


def test_speakers_without_a_text_have_letters_too() -> None:
    """The last ones: those with a text keep the letters of their order, and each has one voice."""
    transcript = Transcript(
        (Segment(0.0, 1.0, "Hi.", speaker="SPEAKER_01"),),
        "en",
        2.0,
        "made",
        turns=(Turn(0.0, 1.0, "SPEAKER_01"), Turn(1.2, 1.6, "SPEAKER_00")),
        voices=Voices("v", 1, {"SPEAKER_00": (1.0,), "SPEAKER_01": (2.0,)}),
    )
    options = Options(diarize=True, embeddings=True)
    shown = embeddings_out(transcript, options, speaker_names(transcript, options))
    assert shown["speaker_embeddings"] == {"A": [2.0], "B": [1.0]}
