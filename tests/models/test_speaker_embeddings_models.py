"""Embeddings with a shared trunk: pyannote's own numbers and turns, whatever the clip and the settings."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from sounds import silence

from benchmarks.random_pyannote import (
    save_with_real_segmentation,
    small_pipeline,
    whisperx_segmentation,
)
from serve_app.errors import ModelUnavailable
from serve_app.settings import DiarizationSettings
from serve_app.stages import torch_support
from serve_app.stages.diarization.diarizer import PyannoteDiarizer
from serve_app.stages.diarization.embeddings import share_trunk
from serve_app.stages.diarization.pipeline import load_pipeline
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, Samples, SpeakerBounds, Turn

pytestmark = [
    # pyannote says that a clip holds fewer speakers than asked for, which is what some tests ask for.
    pytest.mark.filterwarnings(r"ignore:\s*The detected number of speakers:UserWarning"),
    # its clustering takes the mean of no embeddings where nobody speaks alone for long.
    pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    # statistics pooling of a single frame.
    pytest.mark.filterwarnings("ignore:std.*degrees of freedom is <= 0:UserWarning"),
]

BOUNDS: list[dict[str, int]] = [
    {},
    {"num_speakers": 1},
    {"num_speakers": 3},
    {"min_speakers": 2, "max_speakers": 4},
]


@pytest.fixture(scope="module")
def resnet34(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with 3.1's kind of pipeline around a random ResNet34."""
    directory = tmp_path_factory.mktemp("resnet34")
    save_with_real_segmentation(directory)
    return directory


def file_of(samples: Samples) -> dict[str, Any]:
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768)[None]
    return {"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ}


def assert_same_turns(pipeline: Any, clips: Sequence[tuple[Samples, dict[str, Any]]]) -> None:
    """`pipeline` as pyannote made it, then our diarizer around it."""

    def turns(annotation: Any) -> tuple[Turn, ...]:
        tracks = annotation.itertracks(yield_label=True)
        return tuple(Turn(span.start, span.end, speaker) for span, _, speaker in tracks)

    outputs = [pipeline(file_of(samples), **bounds) for samples, bounds in clips]
    ours = PyannoteDiarizer(pipeline)
    for output, (samples, bounds) in zip(outputs, clips, strict=True):
        all_turns, exclusive = turns(output.speaker_diarization), turns(output.exclusive_speaker_diarization)
        found = ours.diarize(samples, bounds=SpeakerBounds(**bounds))
        assert replace(found, voices=None) == Diarization(all_turns, exclusive)


@pytest.mark.parametrize("exclude_overlap", [True, False])
def test_turns_are_the_stock_pipelines(meeting: Samples, exclude_overlap: bool) -> None:
    """People talking at once, with any wish for their number, counting overlapping speech or not."""
    pipeline = small_pipeline()
    pipeline.embedding_exclude_overlap = exclude_overlap
    assert_same_turns(pipeline, [(meeting, bounds) for bounds in BOUNDS])


def test_turns_of_odd_clips_are_the_stock_pipelines(meeting: Samples, sample: Samples) -> None:
    """Two voices, one, a long pause, less than a window, just one, one sample more, 50 ms, silence."""
    window = 5 * SAMPLE_RATE_HZ
    clips = [
        sample[10 * SAMPLE_RATE_HZ :][: 3 * window],
        meeting[: window // 2],
        np.concatenate([meeting[:window], silence(12), meeting[window:]]),
        meeting[: window - 1],
        meeting[:window],
        meeting[: window + 1],
        meeting[:800],
        silence(7),
    ]
    assert_same_turns(small_pipeline(), [(clip, {}) for clip in clips])


def test_turns_under_vbx_are_the_stock_pipelines(meeting: Samples, tmp_path: Path) -> None:
    """community-1's clustering looks at the embeddings of people who say nothing, too."""
    assert_same_turns(small_pipeline(vbx_in=tmp_path), [(meeting, {}), (meeting, {"num_speakers": 2})])


def test_turns_around_resnet34_are_the_stock_pipelines(resnet34: Path, meeting: Samples) -> None:
    """The embedding of community-1 and 3.1 at its true size."""
    assert_same_turns(load_pipeline(str(resnet34), device="cpu", token=None), [(meeting[:112_000], {})])


def test_an_embedding_without_a_known_trunk_stays_as_it_is(meeting: Samples) -> None:
    """Other networks may look at the mask earlier; the stock way is right for all of them."""
    from pyannote.audio import Model
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.models.embedding import XVectorSincNet
    from pyannote.audio.pipelines import SpeakerDiarization

    torch.manual_seed(0)
    pipeline = SpeakerDiarization(
        segmentation=Model.from_pretrained(whisperx_segmentation()),
        embedding=XVectorSincNet(),
        plda=PLDA.__new__(PLDA),
        clustering="AgglomerativeClustering",
    )
    pipeline.instantiate(
        {
            "segmentation": {"threshold": 0.5, "min_duration_off": 0.0},
            "clustering": {"method": "average", "min_cluster_size": 1, "threshold": 0.01},
        }
    )
    assert_same_turns(pipeline, [(meeting[: 6 * SAMPLE_RATE_HZ], {})])
    assert not share_trunk(pipeline, pad_batches=False)
    with pytest.raises(ModelUnavailable, match=r"float16 is for CAM\+\+ and pyannote's WeSpeaker embeddings"):
        PyannoteDiarizer(pipeline, settings=DiarizationSettings(compute_type="float16"))


def segmentation_of(n_windows: int) -> Any:
    """Who speaks in 5 s windows, (windows, 293 frames, 3): alone, at once, for a moment, never, unknown."""
    from pyannote.core import SlidingWindow, SlidingWindowFeature

    active = np.zeros((n_windows, 293, 3))
    active[0, :, 0] = 1
    active[1, 50:200, 0] = active[1, 100:250, 1] = 1
    active[2, 10:12, 1] = active[2, 10:100, 2] = 1  # the second never speaks alone
    # Alone for the two frames that the shortest waveform fills, which is not enough, and for three.
    active[3, :30, :2] = active[3, 30:32, 1] = active[3, 33:36, 0] = 1
    active[4, 80:, 2] = np.nan
    active[4, 20:90, 0] = 1
    active[-1, 200:, :] = 1  # all at once, in the window that reaches over the end
    return SlidingWindowFeature(active, SlidingWindow(duration=5.0, step=0.5))


def assert_same_embeddings(
    load: Callable[[], Any], samples: Samples, n_windows: int, settings: Iterable[Any]
) -> None:
    """`settings` are (exclude_overlap, pad_batches, windows per batch)."""
    stock, ours = load(), load()
    file = file_of(samples[: (10 + n_windows) * SAMPLE_RATE_HZ // 2 - 4_000])  # the last window is cut short
    segmentation = segmentation_of(n_windows)
    for exclude_overlap, pad_batches, batch in settings:
        expected = stock.get_embeddings(file, segmentation, exclude_overlap=exclude_overlap)
        assert share_trunk(ours, pad_batches=pad_batches)
        ours.embedding_batch_size = batch
        found = ours.get_embeddings(file, segmentation, exclude_overlap=exclude_overlap)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_embeddings_are_the_stock_pipelines(meeting: Samples) -> None:
    """For every kind of mask, counting overlapping speech or not, and in batches of any size and shape."""
    assert_same_embeddings(small_pipeline, meeting, 12, product([True, False], [True, False], [1, 3, 16]))


def test_embeddings_of_resnet34_are_the_stock_pipelines(resnet34: Path, meeting: Samples) -> None:
    """At the true size, in two batches of which the second is padded."""
    load = partial(load_pipeline, str(resnet34), device="cpu", token=None)
    assert_same_embeddings(load, meeting, 6, [(True, True, 4)])


@pytest.mark.slow  # for GPUs, and emulated here
def test_half_precision_hears_nearly_the_same_voices(
    resnet34: Path, meeting: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    """As loud as samples can be: power spectra are beyond float16, so features are not computed in it."""
    loud = np.clip(meeting.astype(np.int32) * 50, -32768, 32767).astype(np.int16)
    file, segmentation = file_of(loud[: 8 * SAMPLE_RATE_HZ - 4_000]), segmentation_of(6)
    whole, half = (load_pipeline(str(resnet34), device="cpu", token=None) for _ in range(2))
    assert share_trunk(whole, pad_batches=True)
    expected = whole.get_embeddings(file, segmentation)
    assert share_trunk(half, pad_batches=True, compute_type="float16")
    torch_support._warn_once.cache_clear()
    found = half.get_embeddings(file, segmentation)
    assert not [record for record in caplog.records if "overflowed" in record.message]
    assert found.dtype == np.float32
    assert not np.array_equal(found, expected)
    heard = np.nan_to_num(segmentation.data).any(axis=1)
    distances = [cosine(*pair) for pair in zip(found[heard], expected[heard], strict=True)]
    assert max(distances) < 1e-3
