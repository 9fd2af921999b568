"""The words, speakers and times of the demo's recording, the telephone call in pyannote's package."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from serve_app.cli.demo import sample as demo_sample


@dataclass(frozen=True)
class Line:
    speaker: str  # Diane or Sheila
    start_s: float
    end_s: float
    text: str


def said_on_the_telephone() -> list[Line]:
    """The lines of the reference next to the recording, by their starts."""
    rows = [row.split(maxsplit=5) for row in demo_sample().with_suffix(".stm").read_text().splitlines()]
    return [Line(who, float(start), float(end), text) for _, _, who, start, end, text in rows]


def word_error_rate(lines: Sequence[Line], text: str) -> float:
    """Wrong, missing and invented words per word of the lines; case and punctuation do not count."""
    true, heard = (" ".join(words_of(each)) for each in (" ".join(line.text for line in lines), text))
    return float(jiwer.wer(true, heard or "-"))


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return re.findall(r"[a-z']+", text.lower())
