"""Windows in one padded pass against each window alone, for every kind of wav2vec2 that whisperx loads."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from torchaudio.pipelines._wav2vec2.utils import _extend_model
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from benchmarks.random_wav2vec2 import CHARACTERS, NARROW
from serve_app.errors import ModelUnavailable
from serve_app.settings.types import ComputeType
from serve_app.stages.alignment.acoustic import AcousticModel, Emissions, group_by_length
from serve_app.stages.torch_support import Precision
from serve_app.transcript import SAMPLE_RATE_HZ, Samples

pytestmark = [
    # torchaudio announces its next version's removals on import and on every use of a model.
    pytest.mark.filterwarnings("ignore:.*torchaudio.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torchaudio.*:DeprecationWarning"),
]

TOLERANCE = 5e-6  # relative or absolute; 1.4e-6 was measured for wav2vec2-base at its true size

HALF_AND_WHOLE: tuple[ComputeType, ComputeType] = ("float16", "float32")

SECONDS = (1.0, 2.0, 0.02, 1.31, 1.7)  # four within a second of each other, and one shorter than a frame


def of_transformers(**changes: Any) -> Any:
    """Two narrow layers with random weights."""
    return Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(CHARACTERS), **NARROW, **changes)).eval()


def layer_norm_of_transformers() -> Any:
    return of_transformers(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)


def of_torchaudio(mode: str) -> Any:
    """Two narrow layers with random weights."""
    shapes = [(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2]
    return torchaudio.models.wav2vec2_model(
        extractor_mode=mode,
        extractor_conv_layer_config=shapes,
        extractor_conv_bias=mode == "layer_norm",
        encoder_embed_dim=64,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=128,
        encoder_pos_conv_groups=4,
        encoder_num_layers=2,
        encoder_num_heads=4,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=128,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=mode == "layer_norm",
        encoder_layer_drop=0.0,
        aux_num_out=29,
    ).eval()


def normalizing_of_torchaudio() -> Any:
    """As the large bundles are: normalized samples in, layer norm within."""
    return _extend_model(of_torchaudio("layer_norm"), normalize_waveform=True).eval()


def acoustic(model: Any, max_padded_s: float, compute_type: ComputeType = "auto") -> AcousticModel:
    return AcousticModel(
        model,
        from_torchaudio=not isinstance(model, Wav2Vec2ForCTC),
        device="cpu",
        max_padded_s=max_padded_s,
        compute_type=compute_type,
    )


def windows_of(sample: Samples) -> list[Samples]:
    """Pieces of speech of `SECONDS`, each louder than the one before."""
    pieces = []
    for place, seconds in enumerate(SECONDS):
        piece = sample[place * 3 * SAMPLE_RATE_HZ :][: int(seconds * SAMPLE_RATE_HZ)]
        pieces.append((piece // (len(SECONDS) - place)).astype(np.int16))
    return pieces


def passes(model: Any, fails_above: int = 99, max_s: float = 99) -> list[int]:
    """Batch sizes of the passes from now on; one of more than `fails_above` windows has no memory.

    Nor has a pass with a window of more than `max_s` seconds.
    """
    sizes: list[int] = []

    def before(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > fails_above or inputs[0].shape[1] > max_s * SAMPLE_RATE_HZ:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(before)
    return sizes


def assert_equal(
    found: list[Emissions | ModelUnavailable],
    expected: list[Emissions | ModelUnavailable],
    tolerance: float = TOLERANCE,
) -> None:
    """Same frames, and probabilities within the tolerance."""
    assert len(found) == len(expected)
    for batched, alone in zip(found, expected, strict=True):
        assert not isinstance(batched, ModelUnavailable)
        assert not isinstance(alone, ModelUnavailable)
        for ours, theirs in zip(batched, alone, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


EVERY_KIND = pytest.mark.parametrize(
    "load",
    [
        of_transformers,
        layer_norm_of_transformers,
        lambda: of_torchaudio("group_norm"),
        lambda: of_torchaudio("layer_norm"),
        normalizing_of_torchaudio,
    ],
    ids=[
        "transformers, group norm",
        "transformers, layer norm",
        "torchaudio, group norm",
        "torchaudio, layer norm",
        "torchaudio, normalized samples",
    ],
)


@EVERY_KIND
def test_windows_together_sound_as_each_alone(load: Callable[[], Any], sample: Samples) -> None:
    """Padding changes neither the number of frames nor what is heard in them."""
    torch.manual_seed(0)
    model, windows = load(), windows_of(sample)
    alone = acoustic(model, max_padded_s=0).emissions(windows)
    sizes = passes(getattr(model, "model", model))
    together = acoustic(model, max_padded_s=60).emissions(windows)
    assert sizes == [4, 1]
    assert_equal(together, alone)


@EVERY_KIND
def test_half_precision_sounds_nearly_the_same(load: Callable[[], Any], sample: Samples) -> None:
    """It is computed in float16, alone or together, and given as float32."""
    torch.manual_seed(0)
    model, windows = load(), windows_of(sample)
    whole = acoustic(model, max_padded_s=0).emissions(windows)
    for max_padded_s in (0, 60):
        half = acoustic(model, max_padded_s, "float16").emissions(windows)
        assert_equal(half, whole, tolerance=0.03)
        with pytest.raises(AssertionError):
            assert_equal(half, whole)
        for emissions in half:
            assert not isinstance(emissions, ModelUnavailable)
            assert {array.dtype for array in emissions} == {np.dtype(np.float32)}


def test_what_overflows_in_half_precision_is_computed_without(sample: Samples) -> None:
    """float16 ends at 65504; nobody's words are lost for it, nor those of the windows beside."""
    torch.manual_seed(0)
    model, windows = normalizing_of_torchaudio(), windows_of(sample)
    with torch.no_grad():
        model.model.aux.weight *= 1e6
    half, whole = (acoustic(model, 60, compute_type).emissions(windows) for compute_type in HALF_AND_WHOLE)
    assert_equal(half, whole, tolerance=0)


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float16), ("cpu", None)])
def test_only_gpus_compute_in_half_precision_unasked(device: str, dtype: torch.dtype | None) -> None:
    """On CPUs words are whisperx's own, to the last digit."""
    assert Precision("auto", device).dtype is dtype


def test_float32_on_a_gpu_is_not_tensorfloat_32() -> None:
    """Its 10 bits of mantissa would move words. After an overflow in float16 the same float32 is used."""
    backends: tuple[Any, Any] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:  # by hand: monkeypatch would delete these flags, which are in no dictionary
        for backend in backends:
            backend.allow_tf32 = True
        Precision("float32", "cuda")
        assert [backend.allow_tf32 for backend in backends] == [False, False]
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


@pytest.mark.parametrize(
    "load",
    [
        lambda: of_transformers(add_adapter=True),
        lambda: _extend_model(of_torchaudio("group_norm"), True, append_star=True),
    ],
    ids=["adapter", "star"],
)
def test_models_that_cannot_take_padding_hear_each_window_alone(
    load: Callable[[], Any], sample: Samples
) -> None:
    """An adapter mixes neighbouring frames, and torchaudio's star column is made for one window."""
    torch.manual_seed(0)
    model, windows = load(), windows_of(sample)[:2]
    sizes = passes(model)
    acoustic(model, max_padded_s=60).emissions(windows)
    assert sizes == [1, 1]


def test_out_of_memory_the_halves_are_tried(sample: Samples) -> None:
    """A batch too large for the GPU costs a second attempt, not the words."""
    model, windows = of_transformers(), windows_of(sample)
    alone = acoustic(model, max_padded_s=0).emissions(windows)
    sizes = passes(model, fails_above=2)
    assert_equal(acoustic(model, max_padded_s=60).emissions(windows), alone)
    assert sizes == [4, 2, 2, 1]


def test_a_window_that_finds_no_memory_even_alone_is_an_error_of_its_own(sample: Samples) -> None:
    """It gets an error that says what to do; the windows of the same batch are heard."""
    model, windows = of_transformers(), windows_of(sample)
    passes(model, max_s=1.9)
    found = acoustic(model, max_padded_s=60).emissions(windows)
    errors = [emissions for emissions in found if isinstance(emissions, ModelUnavailable)]
    assert [isinstance(heard, ModelUnavailable) for heard in found] == [False, True, False, False, False]
    assert {error.code for error in errors} == {"alignment_out_of_memory"}
    assert "on 2 s of audio: run less on the same GPU" in errors[0].message


@pytest.mark.parametrize(
    ("seconds", "max_padded_s", "groups"),
    [
        ([], 60, []),
        ([3, 30, 2, 29, 28], 60, [[1, 3], [4], [0, 2]]),  # 3 x 30 s are too many
        ([5, 5, 5], 10, [[0, 1], [2]]),
        ([5, 5], 0, [[0], [1]]),
        ([40], 10, [[0]]),  # longer than the cap: alone
        ([20, 15, 14], 60, [[0, 1], [2]]),  # 14 s would be padded by more than a third
        ([1.5, 0.6, 0.4], 60, [[0, 1], [2]]),  # by more than a second
    ],
)
def test_windows_of_similar_length_go_together(
    seconds: list[float], max_padded_s: float, groups: list[list[int]]
) -> None:
    """Little padding, and never more seconds in a pass than the cap."""
    lengths = [int(s * SAMPLE_RATE_HZ) for s in seconds]
    assert group_by_length(lengths, int(max_padded_s * SAMPLE_RATE_HZ)) == groups
