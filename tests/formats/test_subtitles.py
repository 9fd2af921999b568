"""Which words stand in a cue, on which lines and when: beside whisperx's writer, and where it is left."""

import re
import unicodedata
from dataclasses import replace
from itertools import accumulate, groupby

import pytest
import whisperx.utils
from hypothesis import given
from hypothesis import strategies as st
from icu4py.breakers import LineBreaker
from transcripts import AT_ONCE, FIXED, transcripts

from serve_app.formats.subtitles import Cue, SubtitleLayout, cues
from serve_app.languages import LANGUAGES_WITHOUT_SPACES
from serve_app.transcript import Segment, Transcript, WindowText, Word

PLAIN = SubtitleLayout()
UNCOUNTED = st.builds(SubtitleLayout, st.none() | st.integers(1, 40), st.none(), st.booleans())
COUNTED = st.builds(SubtitleLayout, st.integers(1, 40), st.integers(1, 4), st.booleans())
LAYOUTS = UNCOUNTED | COUNTED


class Writer(whisperx.utils.SubtitlesWriter):  # type: ignore[misc]
    """whisperx's, with times in milliseconds."""

    def format_timestamp(self, seconds: float) -> int:
        return round(seconds * 1000)


def by_whisperx(transcript: Transcript, layout: SubtitleLayout) -> list[Cue]:
    """Its cues of each run of one speaker's segments, with the differences that are on purpose undone.

    Words come with the space before them, as whisper's own do: then it counts that in the line.
    """
    spaced = transcript.language not in LANGUAGES_WITHOUT_SPACES
    found = []
    for speaker, run in groupby(transcript.segments, lambda segment: segment.speaker):
        segments = [
            {
                "start": segment.start_s,
                "end": segment.end_s,
                "words": [
                    {"word": " " + word.text if spaced else word.text}
                    | ({} if word.start_s is None else {"start": word.start_s, "end": word.end_s})
                    for word in segment.words
                ],
            }
            for segment in run
        ]
        result = {"segments": segments, "language": transcript.language}
        for start_ms, end_ms, text in Writer("").iterate_result(result, vars(layout)):
            if start_ms < end_ms:  # a pause that is none, where words overlap
                one_space = re.sub(" +", " " if spaced else "", text).replace(" \n", "\n").strip()
                found.append(Cue(start_ms, end_ms, one_space, speaker))
    return found


@given(transcripts(plain=True), UNCOUNTED)
def test_cues_are_those_of_whisperx(transcript: Transcript, layout: SubtitleLayout) -> None:
    """Same words, lines and times for any width and highlighting, where lines are not counted.

    And where a line may begin with any word, as with all that are letters or digits.
    """
    assert list(cues(transcript, layout)) == by_whisperx(transcript, layout)


@given(transcripts(unaligned=True), LAYOUTS)
def test_nothing_said_is_missing_and_cues_can_be_shown(
    transcript: Transcript, layout: SubtitleLayout
) -> None:
    """Without highlighting every word of every segment is in one cue, in order; no cue ends as it starts."""
    plain = list(cues(transcript, replace(layout, highlight_words=False)))
    shown = "".join("".join(cue.text.split()) for cue in plain)
    assert shown == "".join("".join(segment.text.split()) for segment in transcript.segments)
    assert all(cue.start_ms < cue.end_ms for cue in [*plain, *cues(transcript, layout)])


def has_no_break(line: str) -> bool:
    """By UAX 14 at a space, as before the ! of `a !`."""
    return not any(part.endswith(" ") for part in list(LineBreaker(line, "root"))[:-1])


@given(transcripts(unaligned=True), st.integers(1, 40), st.integers(1, 4))
def test_lines_are_as_long_and_as_many_as_asked_for(transcript: Transcript, width: int, count: int) -> None:
    """Spaces count; only what is itself too long and has no place for a break stands on a line that is."""
    for cue in cues(transcript, SubtitleLayout(width, count)):
        lines = cue.text.split("\n")
        assert len(lines) <= count
        assert all(len(line) <= width or " " not in line or has_no_break(line) for line in lines)


@given(transcripts(unaligned=True))
def test_times_stay_within_the_segment(transcript: Transcript) -> None:
    """One cue for each segment, not before it and not after it."""
    found = list(cues(transcript, PLAIN))
    assert [cue.speaker for cue in found] == [segment.speaker for segment in transcript.segments]
    for cue, segment in zip(found, transcript.segments, strict=True):
        assert round(segment.start_s * 1000) <= cue.start_ms < cue.end_ms <= round(segment.end_s * 1000) + 1


@given(transcripts(unaligned=True), st.integers(1, 40), st.integers(1, 4))
def test_no_cue_has_two_speakers(transcript: Transcript, width: int, count: int) -> None:
    """Each speaker's cues are that speaker's segments, in order."""
    found = cues(transcript, SubtitleLayout(width, count))
    shown = [
        (speaker, "".join("".join(cue.text.split()) for cue in run))
        for speaker, run in groupby(found, lambda cue: cue.speaker)
    ]
    said = [
        (speaker, "".join("".join(segment.text.split()) for segment in run))
        for speaker, run in groupby(transcript.segments, lambda segment: segment.speaker)
    ]
    assert shown == said


@given(st.lists(st.lists(st.sampled_from(["so", "it", "was", "said,"]), max_size=9), min_size=1, max_size=6))
def test_a_sentence_that_fits_is_in_one_cue(sentences: list[list[str]]) -> None:
    """No cue holds the end of a sentence and the beginning of one that goes on in the next."""
    layout, spoken, segments = SubtitleLayout(12, 2), [[*words, "yes."] for words in sentences], []
    for number, sentence in enumerate(spoken):
        words = tuple(Word(text, number + 0.1 * n, number + 0.1 * n + 0.1) for n, text in enumerate(sentence))
        segments.append(Segment(float(number), number + 1.0, " ".join(sentence), words))
    shown = [cue.text.split() for cue in cues(Transcript(tuple(segments), "en", 9.0, "made"), layout)]
    assert [word for cue in shown for word in cue] == [word for sentence in spoken for word in sentence]
    for sentence in spoken:
        if len(sentence) <= 4:  # of 5 letters at most: two such words fit a line
            assert any(" ".join(sentence) in " ".join(cue) for cue in shown)
    assert not any("yes." in cue[:-1] and cue[-1] != "yes." for cue in shown)


def spoken_at(text: str, *starts_s: float) -> Transcript:
    """One segment of these words, each until the next one."""
    ends_s = [*starts_s[1:], starts_s[-1] + 0.5]
    timed = zip(text.split(), starts_s, ends_s, strict=True)
    words = tuple(Word(word, start_s, end_s) for word, start_s, end_s in timed)
    return Transcript((Segment(starts_s[0], ends_s[-1], text, words),), "en", 9.0, "made")


@pytest.mark.parametrize(
    ("text", "pause_after", "shown"),
    [
        ("when it rains here, we stay", None, ["when it\nrains here,", "we stay"]),
        ("when it rains here we stay", 3, ["when it\nrains", "here we\nstay"]),
        ("when it rains here we stay", None, ["when it\nrains", "here we\nstay"]),
    ],
)
def test_a_sentence_that_does_not_fit_is_cut_at_a_comma_or_a_pause(
    text: str, pause_after: int | None, shown: list[str]
) -> None:
    """Where there is neither, its parts are about equally long."""
    starts_s = [0.3 * n + 1.5 * (pause_after is not None and n >= pause_after) for n in range(6)]
    assert [cue.text for cue in cues(spoken_at(text, *starts_s), SubtitleLayout(11, 2))] == shown


def test_short_sentences_share_a_cue_unless_there_is_a_pause() -> None:
    """A cue for each word of an answer would flash by."""
    segments = tuple(
        Segment(at, at + 0.4, text, (Word(text, at, at + 0.4),))
        for at, text in ((0.0, "No."), (0.5, "Never."), (2.0, "Why?"))
    )
    transcript = Transcript(segments, "en", 3.0, "made")
    assert [cue.text for cue in cues(transcript, SubtitleLayout(42, 2))] == ["No. Never.", "Why?"]


def test_a_window_without_word_times_is_cut_at_its_full_stops() -> None:
    """Half a minute of a language that could not be aligned holds several sentences."""
    transcript = Transcript((Segment(0.0, 9.0, "Esto es así. Y esto no lo es."),), "es", 9.0, "made")
    shown = [cue.text for cue in cues(transcript, SubtitleLayout(20, 1))]
    assert shown == ["Esto es así.", "Y esto no lo es."]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "我们走了3.5公里。|你好吗今天?|他从U.S.A.来.|那么等等……再说！"),
        ("zh", "我们都来了 |他们也来了 |你来不来"),
        ("ja", "今日は雨です｡|傘はありますか？|「はい。」|行きます"),
        ("hi", "मैं घर जा रहा हूँ। |आप कैसे हैं आज। |यह ठीक है"),
        ("ur", "میں گھر جا رہا ہوں۔ |آپ آج کیسے ہیں؟ |یہ ٹھیک ہے"),
        ("ar", "أنا ذاهب إلى البيت؟ |كيف حالك اليوم؟ |هذا جيد"),
        ("hy", "Ես տուն եմ գնում։ |Ինչպե՞ս ես այսօր: |Լավ է շատ"),
        ("am", "ወደ ቤት እየሄድኩ ነው። |ዛሬ እንዴት ነህ፧ |ጥሩ ነው ሁሉም"),
        ("my", "အိမ်ပြန်နေတယ်။ |နေကောင်းလား။ |ကောင်းပါတယ်"),
        ("km", "ខ្ញុំទៅផ្ទះ។ |តើអ្នកសុខសប្បាយទេ។ |បាទសុខសប្បាយ"),
        ("bo", "ང་ནང་ལ་འགྲོ། |ཁྱེད་རང་ག་འདྲ། |བདེ་པོ་ཡིན"),
        ("th", "วันนี้ผมกลับบ้าน |คุณสบายดีไหม |อากาศ 25 องศา"),
    ],
)
def test_every_script_has_a_cue_for_each_sentence(language: str, text: str) -> None:
    """Also in a window without word times; `|` marks where sentences end."""
    sentences = [sentence.strip() for sentence in text.split("|")]
    transcript = Transcript((Segment(0.0, 9.0, text.replace("|", "")),), language, 9.0, "made")
    layout = SubtitleLayout(max(len(sentence) for sentence in sentences), 1)
    assert [cue.text for cue in cues(transcript, layout)] == sentences


def test_a_segment_is_laid_out_in_its_own_language() -> None:
    """A Chinese window of an English file has no spaces, and is not one endless word."""
    heard = WindowText("", "zh", None, 0.0, 0.0, 1.0)
    words = (Word("你", 0.0, 0.5), Word("好", 0.5, 1.0))
    segments = (
        Segment(0.0, 1.0, "你好", words, source_text=heard),
        Segment(5.0, 6.0, "今日天氣好", source_text=heard),
    )
    transcript = Transcript(segments, "en", 6.0, "made")
    assert [cue.text for cue in cues(transcript, SubtitleLayout(4, 1))] == ["你好", "今日", "天氣好"]


def test_a_cue_has_one_speaker() -> None:
    """Cues that flow over segments end where another one speaks, whatever room there is."""
    words = [(Word("hi", at, at + 0.5), speaker) for at, speaker in ((0.0, "A"), (1.0, "A"), (2.0, "B"))]
    segments = tuple(Segment(word.start_s or 0, word.end_s or 0, "hi", (word,), who) for word, who in words)
    transcript = Transcript(segments, "en", 3.0, "made")
    assert list(cues(transcript, SubtitleLayout(40, 2))) == [
        Cue(0, 1500, "hi hi", "A"),
        Cue(2000, 2500, "hi", "B"),
    ]


@pytest.mark.parametrize("layout", [PLAIN, SubtitleLayout(10, 1), SubtitleLayout(20, 2, True)])
def test_cues_of_two_who_speak_at_once_start_in_order(layout: SubtitleLayout) -> None:
    """As WebVTT wants it; each has what one of them says, also where a sentence has several cues."""
    shown = list(cues(AT_ONCE, replace(layout, speakers_overlap=True)))
    assert [cue.start_ms for cue in shown] == sorted(cue.start_ms for cue in shown)
    for speaker in ("SPEAKER_00", "SPEAKER_01"):
        text = " ".join(segment.text for segment in AT_ONCE.segments if segment.speaker == speaker)
        own = [cue.text.split() for cue in shown if cue.speaker == speaker]
        if layout.highlight_words:
            underlined = re.findall("<u>(.*?)</u>", " ".join(word for words in own for word in words))
            assert underlined == text.split()
        else:
            assert [word for words in own for word in words] == text.split()


def test_a_long_pause_ends_a_cue_only_where_lines_are_counted() -> None:
    """More than three seconds between the starts of two words; without a count the segment stays whole."""
    words = (Word("a", 0.0, 0.5), Word("b", 3.0, 3.5), Word("c", 6.1, 7.0))
    transcript = Transcript((Segment(0.0, 7.0, "a b c", words),), "en", 7.0, "made")
    assert [cue.text for cue in cues(transcript, SubtitleLayout(40, 2))] == ["a b", "c"]
    assert [cue.text for cue in cues(transcript, SubtitleLayout(40))] == ["a b c"]


def test_a_segment_that_was_not_aligned_shares_its_time_out() -> None:
    """Its lines come one after another, by their length, and no word of it is highlighted."""
    transcript = Transcript((Segment(10.0, 20.0, "abcd efgh ij"),), "en", 20.0, "made")
    assert list(cues(transcript, SubtitleLayout(4, 1, highlight_words=True))) == [
        Cue(10_000, 14_000, "abcd", None),
        Cue(14_000, 18_000, "efgh", None),
        Cue(18_000, 20_000, "ij", None),
    ]


@pytest.mark.parametrize("end_s", [1.0, None])
def test_a_word_without_length_is_shown_for_a_millisecond(end_s: float | None) -> None:
    """WebVTT has no cue that ends when it starts."""
    transcript = Transcript((Segment(1.0, 1.0, "x", (Word("x", 1.0, end_s),)),), "en", 2.0, "made")
    assert list(cues(transcript, PLAIN)) == [Cue(1000, 1001, "x", None)]
    assert list(cues(transcript, SubtitleLayout(highlight_words=True))) == [Cue(1000, 1001, "<u>x</u>", None)]


def test_a_cue_without_any_times_is_shown_whole() -> None:
    """Where lines are counted, words without times can fill a cue; nothing in it is highlighted."""
    words = (Word("2"), Word("b", 1.0, 2.0))
    transcript = Transcript((Segment(1.0, 2.0, "2 b", words),), "en", 2.0, "made")
    assert [cue.text for cue in cues(transcript, SubtitleLayout(1, 1, True))] == ["2", "<u>b</u>"]


def test_chinese_is_highlighted_without_spaces() -> None:
    """Characters stand side by side whether one of them is underlined or not."""
    words = (Word("你", 0.0, 0.5), Word("好", 0.5, 1.0))
    transcript = Transcript((Segment(0.0, 1.0, "你好", words),), "zh", 1.0, "made")
    assert [cue.text for cue in cues(transcript, SubtitleLayout(highlight_words=True))] == [
        "<u>你</u>好",
        "你<u>好</u>",
    ]


CHINESE = st.text("你好吗了はいがっーゃ々、。，．！？：；「」『』（）《》“”…—・・%$¥℃ 12.,aZ-'/", min_size=1)
SPACED = st.text(" .,!?;:«»“”()/-–—…%$€aéñ9؟،।शाम한국", min_size=1)


@given(
    st.tuples(st.just("zh"), CHINESE) | st.tuples(st.just("ja"), CHINESE) | st.tuples(st.just("fr"), SPACED),
    st.booleans(),
    LAYOUTS,
)
def test_lines_begin_where_unicode_lets_them(
    spoken: tuple[str, str], is_aligned: bool, layout: SubtitleLayout
) -> None:
    """At break opportunities of UAX 14 alone, with words' times or without, and the lines are the text."""
    language, text = spoken[0], " ".join(spoken[1].split())
    said = text.split(" ") if language == "fr" else [letter for letter in text if letter != " "]
    words = tuple(Word(word, number * 0.7, number * 0.7 + 0.5) for number, word in enumerate(said))
    segment = Segment(0.0, 99.0, text, words if is_aligned else ())
    found = cues(Transcript((segment,), language, 99.0, "made"), replace(layout, highlight_words=False))
    lines = [line for cue in found for line in cue.text.split("\n")]
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    allowed, at = {0, *accumulate(len(part) for part in LineBreaker(text, "root"))}, 0
    for line in lines if text else []:
        at = text.index(line, at)
        assert at in allowed
        at += len(line)


@pytest.mark.parametrize(
    ("language", "text", "width", "lines"),
    [
        ("zh", "今天天气好。我们走了", 5, ["今天天气", "好。我们走", "了"]),
        ("zh", "他说「你好」就走了", 3, ["他说", "「你", "好」就", "走了"]),
        ("zh", "用了1,234.5元买iPhone手机", 8, ["用了", "1,234.5元", "买iPhone手", "机"]),
        ("zh", "在U.S.A.住了100%", 5, ["在", "U.S.A.", "住了", "100%"]),
        ("ja", "スーパーへ行った。ちょっと待って", 5, ["スーパーへ", "行った。", "ちょっと", "待って"]),
        ("ja", "人々は（笑）そう言う…と", 4, ["人々は", "（笑）そ", "う言う…", "と"]),
        ("yue", "佢話：「好呀！」", 3, ["佢話：", "「好", "呀！」"]),
        ("th", "น้ำตกที่นี่สวยมาก", 8, ["น้ำตกที่", "นี่สวย", "มาก"]),
        ("lo", "ນ້ຳຕົກຢູ່ນີ້ງາມ", 8, ["ນ້ຳຕົກ", "ຢູ່ນີ້", "ງາມ"]),
        ("km", "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ", 12, ["ខ្ញុំស្រឡាញ់", "ភាសាខ្មែរ"]),
        ("my", "မန္တလေးမြို့သည်လှပသည်", 14, ["မန္တလေးမြို့", "သည်လှပသည်"]),
        ("bo", "བོད་སྐད་ཡིག", 6, ["བོད་", "སྐད་", "ཡིག"]),
        ("fr", "Que veux-tu ? Dis : « Ça va ! »", 9, ["Que", "veux-tu ?", "Dis :", "« Ça", "va ! »"]),
        ("fr", "Il a 10\u202f000 euros", 8, ["Il a", "10\u202f000", "euros"]),
        ("en", "well , it ( so ) goes", 6, ["well ,", "it", "( so )", "goes"]),
    ],
)
def test_a_line_begins_and_ends_as_readers_expect(
    language: str, text: str, width: int, lines: list[str]
) -> None:
    """No full stop begins one, no bracket opens at its end, and numbers and words are whole."""
    transcript = Transcript((Segment(0.0, 9.0, text),), language, 9.0, "made")
    shown = [cue.text for cue in cues(transcript, SubtitleLayout(width))]
    assert "\n".join(shown).split("\n") == lines


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("yue", "今日天氣好好，我哋去行山。"),
        ("th", "น้ำตกที่นี่สวยมาก เราไปกัน"),
        ("lo", "ນ້ຳຕົກຢູ່ນີ້ງາມຫຼາຍ"),
        ("km", "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ"),
        ("my", "မန္တလေးမြို့သည်လှပသည်"),
        ("bo", "བོད་སྐད་ཡིག"),
    ],
)
def test_lines_break_in_every_language_without_spaces(language: str, text: str) -> None:
    """Lines are as long as asked for, begin with no mark of the line before, and are the text together."""
    transcript = Transcript((Segment(0.0, 9.0, text),), language, 9.0, "made")
    lines = [line for cue in cues(transcript, SubtitleLayout(7, 1)) for line in cue.text.split("\n")]
    assert len(lines) > 1
    assert all(len(line) <= 7 for line in lines)
    assert not any(unicodedata.category(line[0]).startswith("M") or line[0] in "ำຳ" for line in lines)
    assert not any(line[-1] in "\u1039\u17d2" for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert [cue.text for cue in cues(transcript, PLAIN)] == [text]


def test_spaces_in_chinese_stay() -> None:
    """Those between Latin words, aligned or not; English translated from Chinese has its own, too."""
    text = "用 Ray Serve"
    words = tuple(Word(character, 0.0, 1.0) for character in text if character != " ")
    for segment in (Segment(0.0, 1.0, text, words), Segment(0.0, 1.0, text)):
        transcript = Transcript((segment,), "zh", 1.0, "made")
        assert [cue.text for cue in cues(transcript, PLAIN)] == [text]
        assert [cue.text for cue in cues(transcript, SubtitleLayout(6))] == ["用 Ray\nServe"]


def test_no_segments_no_cues() -> None:
    """Silence, and segments that hold nothing to read."""
    assert list(cues(replace(FIXED, segments=()), PLAIN)) == []
    assert list(cues(replace(FIXED, segments=(Segment(0.0, 1.0, " \n"),)), PLAIN)) == []
