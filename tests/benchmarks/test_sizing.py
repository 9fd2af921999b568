"""The tables on GPUs in docs/operations.md, which benchmarks/sizing.py computes."""

import pytest
import yaml

from benchmarks.gpu.cost import CONFIG
from benchmarks.simulated import WINDOW_S, asr_s
from benchmarks.sizing import CARDS, FILE, MODELS, tables
from serve_app.cli.doctor.gpu_memory import DETECTOR_GB, DIARIZER_GB, LARGE_ALIGNER_GB, recognizer_gb


@pytest.mark.parametrize("name", tables())
def test_the_page_is_current(name: str) -> None:
    """Figures are changed in the code."""
    assert f"<!-- make docs: {name} -->\n{tables()[name]}\n\n" in FILE.read_text(), "run `make docs`"


def test_a_t4_is_as_fast_as_the_simulated_one() -> None:
    """Whose constants are given, not computed from the model's dimensions."""
    card = CARDS["T4"]
    simulated = card.batch * WINDOW_S / asr_s([WINDOW_S] * card.batch)
    assert card.recognizer_speed(MODELS["large-v2"]) == pytest.approx(simulated, rel=0.01)


@pytest.mark.parametrize("name", CARDS)
def test_the_shipped_shares_hold_on_every_card(name: str) -> None:
    """The page says so, for large-v2 in int8 and a large alignment model."""
    card = CARDS[name]
    [application] = yaml.safe_load(CONFIG.read_text())["applications"]
    needs_gb = {
        "asr": recognizer_gb("large-v2", "int8", card.batch),
        "alignment": LARGE_ALIGNER_GB,
        "diarization": DIARIZER_GB,
        "speech": DETECTOR_GB,
    }
    for stage, need_gb in needs_gb.items():
        assert need_gb <= application["args"][stage]["gpu_share"] * card.memory_gb, stage


def test_memory_is_that_of_published_measurements() -> None:
    """faster-whisper's README, for large-v2 and beam 5 on an RTX 3070 Ti; within a tenth."""
    published_gb = {("float16", 1): 4.525, ("float16", 8): 6.090, ("int8", 1): 2.926, ("int8", 8): 4.500}
    for (kind, windows), gb in published_gb.items():
        assert recognizer_gb("large-v2", kind, windows) == pytest.approx(gb, rel=0.1)
