"""Where sentences end: punkt with and without its trained data, and full stops of other scripts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.sentence_ends import sentence_ends
from serve_app.stages.alignment.sentences import sentence_splitter


@pytest.mark.usefixtures("_no_punkt")
def test_sentences_split_without_punkt_data() -> None:
    """Abbreviations and initials do not end a sentence, and nothing is downloaded for it."""
    split = sentence_splitter("en")
    text = " Dr. Smith met J. Bach at 5 p.m. on Main St. here. Is it true? Yes! He said so."
    sentences = [text[begin:end] for begin, end in split(text)]
    assert sentences == [
        " Dr. Smith met J. Bach at 5 p.m. on Main St. here.",
        "Is it true?",
        "Yes!",
        "He said so.",
    ]
    assert split("") == []


@pytest.mark.usefixtures("_punkt")
def test_installed_punkt_data_is_used(tmp_path: Path) -> None:
    """Trained data on the machine decides, as in whisperx."""
    assert sentence_splitter("en")("Dr. Smith came.") == [(0, 3), (4, 15)]  # the empty data know no Dr.
    trained = tmp_path / "nltk_data" / "tokenizers" / "punkt_tab" / "english" / "abbrev_types.txt"
    trained.write_text("dr\n")
    sentence_splitter.cache_clear()
    assert sentence_splitter("en")("Dr. Smith came.") == [(0, 15)]


@pytest.mark.parametrize("data", ["_no_punkt", "_punkt"])
@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "你好！‖我来了。‖「再见。」‖他说"),
        ("zh", "你好吗?‖我很好!‖他走了1.5公里.‖“是吗？！”‖等等……我来了。"),
        ("zh", "他说“好！”，然后走了。‖我也走了。"),
        ("zh", "你好 ‖我来了 ‖用 Ray 3.5 跑"),
        ("zh", "山田 太郎来了。‖你好。"),
        ("yue", "今日天氣好好，我哋去行山。‖係咪？‖係！"),
        ("ja", "はい。‖そうです。"),
        ("ja", "そうです．‖円周率は３．１４です｡‖え…そう？‖Yahoo!ニュース"),
        ("hi", "नमस्ते। ‖आप कैसे हैं? ‖डॉ. शर्मा ने 3.5 कि.ग्रा. आटा लिया। ‖अच्छा | ‖हाँ॥ ‖ठीक"),
        ("bn", "ডা. রহমান এলেন। ‖কেমন আছেন? ‖ভালো।"),
        ("ta", "திரு. குமார் வந்தார். ‖நன்று."),
        ("ur", "یہ 3.5 کلو ہے۔ ‖آپ کیسے ہیں؟ ‖ٹھیک"),
        ("ar", "كيف حالك؟ ‖وصل د. أحمد. ‖نعم؛ 3.5 كيلو، شكرا."),
        ("fa", "حال شما چطور است؟ ‖خوبم."),
        ("hy", "Բարեւ։ ‖Ինչպե՞ս ես: ‖Ժամը 5:30 է։"),
        ("am", "ሰላም። ‖እንዴት ነህ፧ ‖ደህና፣ ነኝ፡፡ ‖እሺ:: ‖አዎ"),
        ("my", "မင်္ဂလာပါ။ ‖နေကောင်းလား၊ ကောင်းပါတယ်။ ‖ဟုတ်ကဲ့"),
        ("km", "សួស្តី។ ‖អ្នកសុខសប្បាយទេ? ‖បាទ៕ ‖លោក"),
        ("bo", "བཀྲ་ཤིས་བདེ་ལེགས། །‖ཁྱེད་རང་ག་འདྲ། ‖བདེ་པོ་ཡིན༎"),
        ("th", "สวัสดีครับ ‖อุณหภูมิ 25 องศา ‖ใช้ GPT มากๆ ครับ ‖จริงหรือ? ‖ใช่"),
        ("lo", "ສະບາຍດີ ‖ຂ້ອຍອາຍຸ 25 ປີ"),
        ("el", "Τι κάνεις; ‖«Καλά;» ‖Ναι."),
        ("de", "Das ist 3,5 kg. ‖Gut. ‖Ja."),
        ("en", 'He said "Stop it!" ‖and left. ‖It costs $3.50; (see 5). ‖A | B: no?yes. ‖Wait... what'),
    ],
)
def test_sentences_end_in_every_script(
    language: str, text: str, data: str, request: pytest.FixtureRequest
) -> None:
    """Also where no space follows, but not at decimal points, abbreviations and ellipses. `‖` marks ends."""
    request.getfixturevalue(data)
    whole = text.replace("‖", "")
    sentences = [whole[begin:end] for begin, end in sentence_splitter(language)(whole)]
    assert sentences == [sentence.strip() for sentence in text.split("‖")]


@given(st.text(st.sampled_from(" .?!;:,|'\"()«»“”‘’…–—aBzé5") | st.characters(max_codepoint=0x24F)))
def test_sentences_of_latin_text_are_those_of_punkt(text: str) -> None:
    """Which are whisperx's: nothing is added to them."""
    assert sentence_ends(text) == []
