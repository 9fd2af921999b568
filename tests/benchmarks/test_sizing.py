"""The tables on GPUs in docs/operations.md, which benchmarks/sizing.py computes."""

from dataclasses import replace

import pytest
import yaml

from benchmarks.gpu.cost import CONFIG
from benchmarks.simulated import WINDOW_S, asr_s
from benchmarks.sizing import CARDS, FILE, MODELS, tables
from serve_app.cli.doctor.checks import State
from serve_app.cli.doctor.devices import Devices, Gpu
from serve_app.cli.doctor.gpu_memory import memory, recognizer_gb
from serve_app.settings import Settings

PROJECT = FILE.parents[1]


@pytest.mark.parametrize("name", tables())
def test_the_page_is_current(name: str) -> None:
    """Figures are changed in the code."""
    assert f"<!-- make docs: {name} -->\n{tables()[name]}\n\n" in FILE.read_text(), "run `make docs`"


def test_a_t4_is_as_fast_as_the_simulated_one() -> None:
    """Whose constants are given, not computed from the model's dimensions."""
    card = CARDS["T4"]
    simulated = card.batch * WINDOW_S / asr_s([WINDOW_S] * card.batch)
    assert card.recognizer_speed(MODELS["large-v2"]) == pytest.approx(simulated, rel=0.01)


def test_batches_of_16_are_nearly_as_fast_as_of_32_on_a_t4() -> None:
    """The page and the service's default say the same percentage, and it is what is computed."""
    card, model = CARDS["T4"], MODELS["large-v2"]
    percent = round(100 * card.recognizer_speed(model) / replace(card, batch=32).recognizer_speed(model))
    assert f"On a T4 16 windows reach {percent} % of the speed of 32" in FILE.read_text()
    source = (PROJECT / "serve_app" / "app.py").read_text()
    assert f"on a T4 16 give {percent} % of what 32 would" in source


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("choice", ["least", "shipped", "float16"])
def test_doctor_takes_the_shares_on_every_card(name: str, choice: str) -> None:
    """The page says so, for large-v2 and a large alignment model, with the table's batches."""
    card = CARDS[name]
    [application] = yaml.safe_load(CONFIG.read_text())["applications"]
    shipped = {stage: application["args"][stage]["gpu_share"] for stage in card.shares()}
    shares = {
        "least": card.shares(),
        "shipped": shipped,
        "float16": shipped | {"asr": 0.55, "diarization": 0.2},
    }[choice]
    settings = Settings.model_validate(
        {"model": "large-v2", **{stage: {"gpu_share": share} for stage, share in shares.items()}}
        | {"alignment": {"gpu_share": shares["alignment"], "preload": ["pt"]}}
    )
    memory_bytes = round(card.memory_gb * 1e9)
    kinds = frozenset({"float16"} if choice == "float16" else {"float16", "int8_float16"})
    devices = Devices(torch="2.8.0", gpus=(Gpu(name, memory_bytes, memory_bytes, (8, 0), kinds),))
    found = memory(devices, settings, {"Transcriber": {"user_config": {"max_batch_size": card.batch}}})
    assert found.state is State.OK, found.message


def test_memory_is_that_of_published_measurements() -> None:
    """faster-whisper's README, for large-v2 and beam 5 on an RTX 3070 Ti. Two constants are fitted to it."""
    published_gb = {("float16", 1): 4.525, ("float16", 8): 6.090, ("int8", 1): 2.926, ("int8", 8): 4.500}
    for (kind, windows), gb in published_gb.items():
        assert recognizer_gb("large-v2", kind, windows) == pytest.approx(gb, rel=0.03)
