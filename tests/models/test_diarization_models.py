"""Diarization with real pipelines: whisperx's own turns, short and silent clips, models that do not load."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import GatedRepoError
from requests import Response

from benchmarks.random_pyannote import save_community_1, small_pipeline
from serve_app.errors import ModelUnavailable
from serve_app.settings import DiarizationSettings
from serve_app.stages.diarization.diarizer import (
    PyannoteDiarizer,
    load_pyannote,
)
from serve_app.transcript import Diarization, Samples, SpeakerBounds

pytestmark = [
    # pyannote says that a clip holds fewer speakers than asked for, which is what some tests ask for.
    pytest.mark.filterwarnings(r"ignore:\s*The detected number of speakers:UserWarning"),
    # its clustering takes the mean of no embeddings where nobody speaks alone for long.
    pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    # statistics pooling of a single frame.
    pytest.mark.filterwarnings("ignore:std.*degrees of freedom is <= 0:UserWarning"),
]

GATED = "pyannote/speaker-diarization-community-1"
EMPTY = Diarization((), ())


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is asked for anything."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def diarizer() -> PyannoteDiarizer:
    return PyannoteDiarizer(small_pipeline())


def test_turns_are_those_of_whisperx(diarizer: PyannoteDiarizer, meeting: Samples) -> None:
    """whisperx's DiarizationPipeline around the same pipeline finds the same turns, to the last digit."""
    from whisperx.diarize import DiarizationPipeline

    theirs = DiarizationPipeline.__new__(DiarizationPipeline)
    theirs.model = small_pipeline()
    expected = theirs(meeting.astype(np.float32) / 32768)
    found = diarizer.diarize(meeting)
    assert [(t.start_s, t.end_s, t.speaker) for t in found.turns] == [
        (row.start, row.end, row.speaker) for row in expected.itertuples()
    ]
    assert {turn.speaker for turn in found.turns} == {"SPEAKER_00", "SPEAKER_01"}
    exclusive = found.exclusive_turns
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(exclusive))


def test_the_number_of_speakers_can_be_wished_for(diarizer: PyannoteDiarizer, meeting: Samples) -> None:
    """One is one, whichever way it is said."""
    for bounds in (SpeakerBounds(1), SpeakerBounds(max_speakers=1)):
        found = diarizer.diarize(meeting[: 6 * 16_000], bounds=bounds)
        assert {turn.speaker for turn in found.turns} == {"SPEAKER_00"}


@pytest.mark.parametrize("n_samples", [0, 1, 800, 3 * 16_000])
def test_silence_has_no_turns(diarizer: PyannoteDiarizer, n_samples: int) -> None:
    """Nothing, one sample, 50 ms and 3 s of silence are empty, not errors, whatever is wished for."""
    silence = np.zeros(n_samples, np.int16)
    assert diarizer.diarize(silence) == EMPTY
    assert diarizer.diarize(silence, bounds=SpeakerBounds(5)) == EMPTY


def test_read_only_samples_are_taken(diarizer: PyannoteDiarizer, meeting: Samples) -> None:
    """Samples from Ray's object store cannot be written to; 50 ms of speech are too little to crash."""
    assert not meeting.flags.writeable
    diarizer.diarize(meeting[16_000:16_800], bounds=SpeakerBounds(min_speakers=2))


def test_more_speakers_than_a_clip_can_hold_are_cut_down(meeting: Samples, tmp_path: Path) -> None:
    """pyannote's default clustering crashes in KMeans; here the clip gives as many as it can."""
    pipeline = small_pipeline(vbx_in=tmp_path)
    clip = meeting[: 6 * 16_000]
    file = {"waveform": torch.from_numpy(clip.astype(np.float32) / 32768)[None], "sample_rate": 16_000}
    for bounds in ({"num_speakers": 50}, {"min_speakers": 50}):
        with pytest.raises(ValueError, match="n_samples"):
            pipeline(file, **bounds)
    bounded = PyannoteDiarizer(pipeline)
    assert bounded.diarize(clip, bounds=SpeakerBounds(50)).turns
    assert bounded.diarize(clip, bounds=SpeakerBounds(min_speakers=50)).turns


def test_community_1_loads_from_a_directory(meeting: Samples, tmp_path: Path) -> None:
    """A copy of the hub repository's layout (true architectures, random weights) needs no hub."""
    save_community_1(tmp_path)
    found = load_pyannote(str(tmp_path), device="cpu", token=None).diarize(
        meeting[: 3 * 16_000], bounds=SpeakerBounds(2)
    )
    assert found.turns
    assert found.exclusive_turns
    assert all(turn.speaker.startswith("SPEAKER_") for turn in found.turns)


def test_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyannote would report every call's duration, whatever the environment said before."""
    monkeypatch.setenv("PYANNOTE_METRICS_ENABLED", "1")
    with pytest.raises(ModelUnavailable):
        load_pyannote("no/where", device="cpu", token=None)
    from pyannote.audio.telemetry.metrics import is_metrics_enabled

    assert not is_metrics_enabled()


def message_of(model: str, token: str | None) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load_pyannote(model, device="cpu", token=token)
    assert caught.value.code == "diarization_unavailable"
    message = caught.value.message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_a_gated_model_without_token_or_network_says_what_it_needs() -> None:
    """The page whose conditions to accept, the token, and the way without a hub."""
    message = message_of(GATED, None)
    assert f"https://huggingface.co/{GATED}" in message
    assert "set HF_TOKEN" in message
    assert "name a directory" in message
    assert "set HF_TOKEN" not in message_of(GATED, "hf_secret")


@pytest.mark.parametrize("token", [None, "hf_secret"])
def test_a_refused_download_names_the_page_to_accept(
    monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """It may be the page of a part of the model; the token itself is never repeated."""
    from pyannote.audio import Pipeline

    url = "https://huggingface.co/pyannote/segmentation-3.0/resolve/main/pytorch_model.bin"

    def refuse(*_: Any, **__: Any) -> None:
        raise GatedRepoError(f"401 Client Error.\n\nCannot access gated repo for url {url}.", Response())

    monkeypatch.setattr(Pipeline, "from_pretrained", refuse)
    message = message_of("pyannote/speaker-diarization-3.1", token)
    assert "https://huggingface.co/pyannote/segmentation-3.0 " in message
    assert "hf_secret" not in message


def test_a_bad_directory_is_named(tmp_path: Path) -> None:
    """A directory whose files are of no use is an error with its name and a reason."""
    assert str(tmp_path) in message_of(str(tmp_path), None)
    (tmp_path / "config.yaml").write_text("pipeline: {}")
    assert "KeyError" in message_of(str(tmp_path), None)


def test_a_pipeline_that_is_set_to_give_only_turns_gives_all(tmp_path: Path, meeting: Samples) -> None:
    """pyannote's `legacy` leaves out the exclusive turns, which words need."""
    save_community_1(tmp_path)
    config = tmp_path / "config.yaml"
    stock = yaml.safe_load(config.read_text())
    stock["pipeline"]["params"]["legacy"] = True
    config.write_text(yaml.safe_dump(stock))
    found = load_pyannote(str(tmp_path), device="cpu", token=None).diarize(meeting[: 3 * 16_000])
    assert found.exclusive_turns


class SmallDevice:
    """A pipeline that fits `fits` windows of its embedding batch into memory."""

    segmentation_batch_size = embedding_batch_size = 0
    _embedding = klustering = None

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.runs: list[tuple[int, int]] = []

    def __call__(self, *_: Any, **__: Any) -> Any:
        from pyannote.core import Annotation

        self.runs.append((self.segmentation_batch_size, self.embedding_batch_size))
        if self.embedding_batch_size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 10.00 GiB.")
        nobody = Annotation()
        return SimpleNamespace(
            speaker_diarization=nobody, exclusive_speaker_diarization=nobody, speaker_embeddings=None
        )


def test_out_of_memory_is_tried_again_with_half_the_batch() -> None:
    """Later files start with the half; where that is too much as well, the error is the caller's."""
    device = SmallDevice(fits=16)
    settings = DiarizationSettings(batch_windows=32)
    diarizer = PyannoteDiarizer(device, settings=settings)
    assert diarizer.diarize(np.zeros(16_000, np.int16)) == EMPTY
    assert diarizer.diarize(np.zeros(16_000, np.int16)) == EMPTY
    assert device.runs == [(32, 32), (16, 16), (16, 16)]
    with pytest.raises(torch.OutOfMemoryError):
        PyannoteDiarizer(SmallDevice(fits=7), settings=settings).diarize(np.zeros(16_000, np.int16))
