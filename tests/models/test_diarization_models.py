"""Diarization with real pipelines: whisperx's own turns, short and silent clips, models that do not load."""

import itertools
import wave
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError
from random_pyannote import save_community_1, save_plda
from requests import Response

from serve_app import bundled
from serve_app.errors import ModelUnavailable
from serve_app.stages.diarization import Diarizer, exclusive_turns, load_diarizer
from serve_app.transcript import Diarization, Samples, Turn

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
def samples() -> Samples:
    """Twelve seconds of two people talking, at times at once; pyannote's sample has 30."""
    package = find_spec("pyannote.audio")
    assert package is not None
    assert package.origin is not None
    with wave.open(str(Path(package.origin).parent / "sample" / "sample.wav")) as recording:
        recording.setpos(6 * 16_000)
        return np.frombuffer(recording.readframes(12 * 16_000), np.int16)


@pytest.fixture(scope="module")
def diarizer() -> Diarizer:
    return load_diarizer("bundled", device="cpu", token=None)


def vbx_pipeline(directory: Path) -> Any:
    """The bundled models under community-1's clustering, with a random PLDA."""
    from pyannote.audio import Model
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.pipelines import SpeakerDiarization

    from serve_app.bundled.speaker_embedding import load_speaker_embedding

    save_plda(directory / "plda", 64, 32)
    whisperx = find_spec("whisperx")
    assert whisperx is not None
    assert whisperx.origin is not None
    pipeline = SpeakerDiarization(
        segmentation=Model.from_pretrained(Path(whisperx.origin).parent / "assets" / "pytorch_model.bin"),
        segmentation_batch_size=8,
        embedding=load_speaker_embedding(bundled.SPEAKER_EMBEDDING),
        embedding_batch_size=8,
        plda=PLDA.from_pretrained(directory / "plda"),
    )
    pipeline.instantiate(
        {
            "segmentation": {"threshold": 0.5, "min_duration_off": 0.0},
            "clustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
        }
    )
    return pipeline


def test_turns_are_those_of_whisperx(diarizer: Diarizer, samples: Samples) -> None:
    """whisperx's DiarizationPipeline around the same pipeline finds the same turns, to the last digit."""
    from whisperx.diarize import DiarizationPipeline

    theirs = DiarizationPipeline.__new__(DiarizationPipeline)
    theirs.model = diarizer._pipeline
    expected = theirs(samples.astype(np.float32) / 32768)
    found = diarizer.diarize(samples)
    assert [(t.start_s, t.end_s, t.speaker) for t in found.turns] == [
        (row.start, row.end, row.speaker) for row in expected.itertuples()
    ]
    assert {turn.speaker for turn in found.turns} == {"SPEAKER_00", "SPEAKER_01"}
    exclusive = found.exclusive_turns
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(exclusive))


def test_the_number_of_speakers_can_be_wished_for(diarizer: Diarizer, samples: Samples) -> None:
    """One is one; minimum above maximum gives the maximum instead of an error."""
    for bounds in ({"num_speakers": 1}, {"max_speakers": 1}, {"min_speakers": 3, "max_speakers": 1}):
        found = diarizer.diarize(samples[: 6 * 16_000], **bounds)
        assert {turn.speaker for turn in found.turns} == {"SPEAKER_00"}


@pytest.mark.parametrize("n_samples", [0, 1, 800, 3 * 16_000])
def test_silence_has_no_turns(diarizer: Diarizer, n_samples: int) -> None:
    """Nothing, one sample, 50 ms and 3 s of silence are empty, not errors, whatever is wished for."""
    silence = np.zeros(n_samples, np.int16)
    assert diarizer.diarize(silence) == EMPTY
    assert diarizer.diarize(silence, num_speakers=5) == EMPTY


def test_read_only_samples_are_taken(diarizer: Diarizer, samples: Samples) -> None:
    """Samples from Ray's object store cannot be written to; 50 ms of speech are too little to crash."""
    assert not samples.flags.writeable
    diarizer.diarize(samples[16_000:16_800], min_speakers=2)


def test_more_speakers_than_a_clip_can_hold_are_cut_down(samples: Samples, tmp_path: Path) -> None:
    """pyannote's default clustering crashes in KMeans; here the clip gives as many as it can."""
    pipeline = vbx_pipeline(tmp_path)
    clip = samples[: 6 * 16_000]
    stock = Diarizer.__new__(Diarizer)  # without what the constructor does to the pipeline
    stock._pipeline = pipeline
    automatic = stock.diarize(clip)
    with pytest.raises(ValueError, match="n_samples"):
        stock.diarize(clip, num_speakers=50)
    with pytest.raises(ValueError, match="n_samples"):
        stock.diarize(clip, min_speakers=50)
    bounded = Diarizer(pipeline)
    assert bounded.diarize(clip) == automatic
    assert bounded.diarize(clip, num_speakers=50).turns
    assert bounded.diarize(clip, min_speakers=50).turns


def test_community_1_loads_from_a_directory(samples: Samples, tmp_path: Path) -> None:
    """A copy of the hub repository's layout (true architectures, random weights) needs no hub."""
    save_community_1(tmp_path)
    found = load_diarizer(str(tmp_path), device="cpu", token=None).diarize(
        samples[: 3 * 16_000], num_speakers=2
    )
    assert found.turns
    assert found.exclusive_turns
    assert all(turn.speaker.startswith("SPEAKER_") for turn in found.turns)


def test_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyannote would report every call's duration, whatever the environment said before."""
    monkeypatch.setenv("PYANNOTE_METRICS_ENABLED", "1")
    with pytest.raises(ModelUnavailable):
        load_diarizer("no/where", device="cpu", token=None)
    from pyannote.audio.telemetry.metrics import is_metrics_enabled

    assert not is_metrics_enabled()


def message_of(model: str, token: str | None) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load_diarizer(model, device="cpu", token=token)
    assert caught.value.code == "diarization_unavailable"
    message = caught.value.message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_a_gated_model_without_token_or_network_says_what_it_needs() -> None:
    """The page whose conditions to accept, the token, and the way without a hub."""
    message = message_of(GATED, None)
    assert f"https://huggingface.co/{GATED}" in message
    assert "HF_TOKEN" in message
    assert "name a directory" in message
    assert "HF_TOKEN" not in message_of(GATED, "hf_secret")


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
    """No directory, one without config.yaml, and one whose files are of no use."""
    assert "neither" in message_of(str(tmp_path / "none"), None)
    assert "without config.yaml" in message_of(str(tmp_path), None)
    (tmp_path / "config.yaml").write_text("pipeline: {}")
    assert "KeyError" in message_of(str(tmp_path), None)


def test_a_pipeline_without_exclusive_turns_gets_them() -> None:
    """Older pipelines answer with a bare annotation."""
    from pyannote.core import Annotation
    from pyannote.core import Segment as Span

    annotation = Annotation()
    annotation[Span(0.0, 4.0), "a"] = "SPEAKER_00"
    annotation[Span(3.0, 5.0), "b"] = "SPEAKER_01"
    found = Diarizer(lambda *_, **__: annotation).diarize(np.zeros(16_000, np.int16))
    assert found.turns == (Turn(0.0, 4.0, "SPEAKER_00"), Turn(3.0, 5.0, "SPEAKER_01"))
    assert found.exclusive_turns == (Turn(0.0, 4.0, "SPEAKER_00"), Turn(4.0, 5.0, "SPEAKER_01"))
    output = SimpleNamespace(speaker_diarization=annotation, exclusive_speaker_diarization=Annotation())
    assert Diarizer(lambda *_, **__: output).diarize(np.zeros(16_000, np.int16)).exclusive_turns == ()


def test_exclusive_turns_never_overlap() -> None:
    """Who spoke first keeps the floor; an interruption that ends before is left out."""
    turns = [Turn(0.0, 5.0, "A"), Turn(1.0, 2.0, "B"), Turn(4.0, 7.0, "B"), Turn(8.0, 9.0, "A")]
    assert exclusive_turns(turns) == (
        Turn(0.0, 5.0, "A"),
        Turn(5.0, 7.0, "B"),
        Turn(8.0, 9.0, "A"),
    )
    assert exclusive_turns([]) == ()
