"""Speakers by CAM++: right on real people with the real weights, else the stock pipeline's own numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyannote.core import Annotation, Segment, SlidingWindow, SlidingWindowFeature
from pyannote.metrics.diarization import DiarizationErrorRate
from scipy.spatial.distance import cosine

from serve_app.cli.demo import sample as demo_sample
from serve_app.errors import InvalidRequest, ModelUnavailable
from serve_app.settings import DiarizationSettings
from serve_app.stages.diarization.campplus import CAMPlusPlus
from serve_app.stages.diarization.diarizer import PyannoteDiarizer, load_pyannote
from serve_app.stages.diarization.embeddings import cut_voices
from serve_app.stages.diarization.pipeline import load_pipeline
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, KnownSpeaker, Samples, SpeakerBounds

pytestmark = [
    # clustering takes the mean of no embeddings where nobody speaks alone for long.
    pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*The detected number of speakers:UserWarning"),
]

DIANE, SHEILA = "speaker90", "speaker91"


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with the true architecture, of random weights."""
    directory = tmp_path_factory.mktemp("random")
    torch.manual_seed(0)
    torch.save(CAMPlusPlus().state_dict(), directory / "campplus.pt")
    return str(directory)


@pytest.fixture(scope="module")
def diarizer(campplus: Path) -> PyannoteDiarizer:
    return load_pyannote(str(campplus), device="cpu", token=None)


@pytest.fixture(scope="module")
def call(sample: Samples) -> Samples:
    """The half minute of a telephone call in pyannote's wheel."""
    return sample


@pytest.fixture(scope="module")
def truth() -> Annotation:
    """Who speaks in it."""
    annotation = Annotation()
    for line in demo_sample().with_suffix(".rttm").read_text().splitlines():
        _, _, _, start_s, duration_s, _, _, speaker, *_ = line.split()
        annotation[Segment(float(start_s), float(start_s) + float(duration_s))] = speaker
    return annotation


def annotation_of(found: Diarization) -> Annotation:
    annotation = Annotation()
    for track, turn in enumerate(found.turns):
        annotation[Segment(turn.start_s, turn.end_s), track] = turn.speaker
    return annotation


def clip_of(speaker: str, truth: Annotation, call: Samples) -> Samples:
    """The longest turn of a speaker."""
    span = max(truth.label_timeline(speaker), key=lambda span: span.duration)
    return call[int(span.start * SAMPLE_RATE_HZ) : int(span.end * SAMPLE_RATE_HZ)]


def test_two_people_on_the_telephone_are_told_apart(
    diarizer: PyannoteDiarizer, call: Samples, truth: Annotation
) -> None:
    """Their two voices are alike; at most 6 % of their time is wrong, overlap counted, without a collar."""
    found = diarizer.diarize(call)
    assert {turn.speaker for turn in found.turns} == {"SPEAKER_00", "SPEAKER_01"}
    error_rate = DiarizationErrorRate(collar=0, skip_overlap=False)
    assert error_rate(truth, annotation_of(found), uem=truth.get_timeline().extent()) <= 0.06


@pytest.mark.slow
def test_a_longer_call_has_no_more_voices(diarizer: PyannoteDiarizer, call: Samples) -> None:
    """More windows have more odd ones among them, which must not become speakers."""
    found = diarizer.diarize(np.tile(call, 4))
    seconds: dict[str, float] = {}
    for turn in found.turns:
        seconds[turn.speaker] = seconds.get(turn.speaker, 0) + turn.end_s - turn.start_s
    assert len([speaker for speaker, spoken_s in seconds.items() if spoken_s > 1]) == 2


def test_known_speakers_have_their_names(
    diarizer: PyannoteDiarizer, call: Samples, truth: Annotation
) -> None:
    """Who is named speaks in nearly all of the time, although the two voices are alike."""
    known = [KnownSpeaker(name, clip_of(name, truth, call)) for name in (SHEILA, DIANE)]
    found = annotation_of(diarizer.diarize(call, known=known))
    assert set(found.labels()) == {DIANE, SHEILA}
    for name in (DIANE, SHEILA):
        spoken = truth.label_timeline(name)
        right_s = found.label_timeline(name).support().crop(spoken.support()).duration()
        assert right_s > 0.9 * spoken.duration()


@pytest.mark.parametrize("clip", [np.zeros(48_000, np.int16), np.full(48_000, 9000, np.int16)])
def test_a_clip_without_a_voice_is_refused(random_weights: str, call: Samples, clip: Samples) -> None:
    """It would be near to somebody by chance."""
    diarizer = load_pyannote(random_weights, device="cpu", token=None)
    with pytest.raises(InvalidRequest, match=r"references\[0\].*no voice"):
        diarizer.diarize(call[:80_000], known=[KnownSpeaker("nobody", clip)])


@pytest.mark.parametrize("n_samples", [0, 1, 800, 3 * SAMPLE_RATE_HZ])
def test_silence_has_no_turns(random_weights: str, n_samples: int) -> None:
    """Nothing, one sample, 50 ms and 3 s of silence are empty, not errors."""
    diarizer = load_pyannote(random_weights, device="cpu", token=None)
    assert diarizer.diarize(np.zeros(n_samples, np.int16)) == Diarization((), ())


def test_the_number_of_speakers_can_be_wished_for(random_weights: str, call: Samples) -> None:
    """One is one, and a clip that cannot hold eight has fewer."""
    diarizer = load_pyannote(random_weights, device="cpu", token=None)
    clip = call[6 * SAMPLE_RATE_HZ : 14 * SAMPLE_RATE_HZ]
    assert {turn.speaker for turn in diarizer.diarize(clip, bounds=SpeakerBounds(1)).turns} == {"SPEAKER_00"}
    assert diarizer.diarize(clip, bounds=SpeakerBounds(8)).turns


def test_turns_are_the_stock_pipelines(random_weights: str, call: Samples) -> None:
    """Batches, and int16 in place of float32, change nothing."""
    stock, ours = (load_pipeline(random_weights, device="cpu", token=None) for _ in range(2))
    clip = call[6 * SAMPLE_RATE_HZ : 16 * SAMPLE_RATE_HZ]
    waveform = torch.from_numpy(clip.astype(np.float32) / 32768)[None]
    expected = stock({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ}).speaker_diarization
    found = annotation_of(PyannoteDiarizer(ours, settings=DiarizationSettings(batch_windows=3)).diarize(clip))
    assert [*found.itersegments()] == [*expected.itersegments()]
    assert [label for *_, label in found.itertracks(yield_label=True)] == [
        label for *_, label in expected.itertracks(yield_label=True)
    ]


def segmentation_of(n_windows: int) -> Any:
    """Who speaks in 5 s windows, (windows, 293 frames, 3): alone, at once, for a moment, never, unknown."""
    active = np.zeros((n_windows, 293, 3))
    active[0, :, 0] = 1
    active[1, 50:200, 0] = active[1, 100:250, 1] = 1
    active[2, 10:12, 1] = active[2, 10:100, 2] = 1  # the second never speaks alone, nor for long
    active[3, :60, :2] = active[3, 60:82, 0] = 1  # the first is alone for just long enough, the other is not
    active[4, 80:, 2] = np.nan
    active[4, 20:90, 0] = 1
    active[-1, 200:, :] = 1  # all at once, in the window that reaches over the end
    return SlidingWindowFeature(active, SlidingWindow(duration=5.0, step=0.5))


@pytest.mark.parametrize("exclude_overlap", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_embeddings_in_batches_are_those_of_one_by_one(
    random_weights: str, call: Samples, exclude_overlap: bool, batch: int
) -> None:
    """pyannote gives the network one window and one mask; a piece that is too short has NaN either way."""
    stock, ours = (load_pipeline(random_weights, device="cpu", token=None) for _ in range(2))
    assert cut_voices(ours)
    ours.embedding_batch_size = batch
    samples = torch.from_numpy(call[6 * SAMPLE_RATE_HZ :][: 9 * SAMPLE_RATE_HZ - 4_000].copy())[None]
    file, segmentation = {"waveform": samples, "sample_rate": SAMPLE_RATE_HZ}, segmentation_of(8)
    as_float = {**file, "waveform": samples.float() / 32768}
    expected = stock.get_embeddings(as_float, segmentation, exclude_overlap=exclude_overlap)
    found = ours.get_embeddings(file, segmentation, exclude_overlap=exclude_overlap)
    assert (np.isnan(found[2, 1]).all(), np.isnan(found[0, 0]).any()) == (True, False)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_others_in_a_window_do_not_colour_a_voice(random_weights: str, call: Samples) -> None:
    """The embedding is the same whatever sounds outside of a speaker's frames."""
    pipeline = load_pipeline(random_weights, device="cpu", token=None)
    waveform = torch.from_numpy(call[6 * SAMPLE_RATE_HZ : 11 * SAMPLE_RATE_HZ] / np.float32(32768))
    mask = torch.zeros(1, 500)
    mask[:, :200] = 1
    other = waveform.clone()
    other[2 * SAMPLE_RATE_HZ + 800 :] = 0.3 * torch.randn(len(other) - 2 * SAMPLE_RATE_HZ - 800)
    alone, beside = (pipeline._embedding(sound[None, None], masks=mask)[0] for sound in (waveform, other))
    np.testing.assert_allclose(beside, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.slow  # for GPUs, and emulated here
def test_half_precision_hears_nearly_the_same_voices(random_weights: str, call: Samples) -> None:
    """For tensor cores; features are not computed in it."""
    whole, half = (load_pipeline(random_weights, device="cpu", token=None) for _ in range(2))
    assert cut_voices(whole)
    assert cut_voices(half, compute_type="float16")
    waveform = torch.from_numpy(call[6 * SAMPLE_RATE_HZ :][: 9 * SAMPLE_RATE_HZ].copy())[None]
    file, segmentation = {"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ}, segmentation_of(8)
    expected, found = (one.get_embeddings(file, segmentation) for one in (whole, half))
    heard = ~np.isnan(expected).any(axis=2)
    assert not np.array_equal(found[heard], expected[heard])
    assert max(cosine(*pair) for pair in zip(found[heard], expected[heard], strict=True)) < 1e-2


def test_a_file_that_is_no_campplus_is_refused(tmp_path: Path) -> None:
    """Other weights under its name, and a pickle that would run code, are one sentence with the directory."""
    for content in ({"layer": torch.zeros(1)}, Path(tmp_path)):
        torch.save(content, tmp_path / "campplus.pt")
        with pytest.raises(ModelUnavailable) as caught:
            load_pyannote(str(tmp_path), device="cpu", token=None)
        assert str(tmp_path) in caught.value.message
        assert "\n" not in caught.value.message
