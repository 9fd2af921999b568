"""Names for diarized speakers; nothing here loads pyannote."""

import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.errors import ModelUnavailable
from serve_app.stages.diarization.diarizer import rename_speakers
from serve_app.stages.diarization.embeddings import match_voices, network_name, voices_of
from serve_app.stages.diarization.pipeline import PYANNOTE, load_pipeline
from serve_app.transcript import Diarization, Turn, Voices

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"

A, B, C = "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"


def at(*degrees: float) -> np.ndarray:
    """Embeddings in these directions: cosine distance is 0.5 at 60 degrees."""
    return np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in degrees])


def test_each_voice_gets_the_nearest_speaker_below_the_threshold() -> None:
    """Order does not matter, length of the embedding does not either, and a third voice stays without."""
    assert match_voices(at(0, 90), 7 * at(85, 200, 10), 0.3) == {0: 1, 2: 0}
    assert match_voices(at(0), at(45.5), 0.3) == {0: 0}
    assert match_voices(at(0), at(46), 0.3) == {}


def test_of_two_references_for_one_speaker_the_nearer_one_wins() -> None:
    """The other one is nobody's, although it is below the threshold."""
    assert match_voices(at(20, 5), at(0), 0.3) == {0: 1}


def test_one_voice_in_two_clusters_names_the_nearer_one() -> None:
    """The rest keeps its label: what diarization tells apart may be two people who sound alike."""
    assert match_voices(at(0), at(20, 5), 0.3) == {1: 0}


def test_a_pair_that_is_too_far_does_not_decide_about_a_near_one() -> None:
    """The sum of distances would be least with both pairs, of which one is no pair at all."""
    assert match_voices(at(0, 20), at(15, 180), 0.3) == {0: 1}


def test_speakers_without_a_voice_are_nobody() -> None:
    """pyannote gives zeros for a speaker without a cluster, and NaN where it had nothing to average."""
    assert match_voices(at(0), np.array([[0.0, 0.0], [np.nan, np.nan]]), 0.3) == {}
    assert match_voices(at(0), np.zeros((0, 2)), 0.3) == {}


@pytest.fixture
def three() -> Diarization:
    turns = (Turn(0, 1, A), Turn(1, 2, B), Turn(2, 3, C))
    return Diarization(turns, turns[:2])


def test_names_replace_labels_in_both_kinds_of_turns(three: Diarization) -> None:
    """Times stay, and so do the labels of those who are not known."""
    found = rename_speakers(three, {B: "Ada"}, ["Ada", "Bob"])
    assert [turn.speaker for turn in found.turns] == [A, "Ada", C]
    assert found.exclusive_turns == (Turn(0, 1, A), Turn(1, 2, "Ada"))


def test_a_renamed_speaker_keeps_the_vector(three: Diarization) -> None:
    """A known speaker has it under the name, and one who must give a label away under the new one."""
    vectors = {A: (0.0, 1.0), B: (1.0, 0.0), C: None}
    told = replace(three, voices=Voices("net", 2, vectors))
    found = rename_speakers(told, {B: A}, [A])
    free = "SPEAKER_03"
    assert found.voices == Voices("net", 2, {free: (0.0, 1.0), A: (1.0, 0.0), C: None})
    assert {turn.speaker for turn in found.turns} == set(found.voices.vectors)


def test_a_vector_that_says_nothing_is_none() -> None:
    """pyannote gives zeros for a speaker without a cluster, and NaN where it had nothing to average."""
    found = np.array([[0.5, 0.25], [0.0, 0.0], [np.nan, np.nan]])
    pipeline = SimpleNamespace(embedding="pyannote/wespeaker-voxceleb-resnet34-LM")
    expected = Voices(pipeline.embedding, 2, {A: (0.5, 0.25), B: None, C: None})
    assert voices_of(pipeline, [A, B, C], found) == expected
    assert voices_of(pipeline, [], np.zeros((0, 2))) is None
    assert voices_of(pipeline, [A], None) is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("pyannote/wespeaker-voxceleb-resnet34-LM", "pyannote/wespeaker-voxceleb-resnet34-LM"),
        ({"checkpoint": "pyannote/community-1", "subfolder": "embedding"}, "pyannote/community-1/embedding"),
        ({"checkpoint": "/home/ann/models/community-1", "subfolder": "embedding"}, "community-1/embedding"),
        (Path("/srv/nets/embedding/pytorch_model.bin"), "embedding/pytorch_model.bin"),
        (SimpleNamespace(network_name="campplus"), "campplus"),
    ],
)
def test_a_network_is_named_without_where_it_is(given: Any, name: str) -> None:
    """Clients compare the name; the folders of the server are no business of theirs."""
    assert network_name(SimpleNamespace(embedding=given)) == name


def test_a_name_like_a_label_is_one_person_only(three: Diarization) -> None:
    """Who was called SPEAKER_00 before another got that name is called by a label that is free."""
    found = rename_speakers(three, {B: A}, [A, "SPEAKER_03"])
    assert [turn.speaker for turn in found.turns] == ["SPEAKER_04", A, C]
    not_there = rename_speakers(three, {}, [B])
    assert [turn.speaker for turn in not_there.turns] == [A, "SPEAKER_03", C]


def test_another_pyannote_is_refused_when_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every file would be transcribed without its speakers, with a warning, or crash some day."""
    monkeypatch.setattr(metadata, "version", lambda package: {"pyannote.audio": "4.1.0"}[package])
    with pytest.raises(ModelUnavailable, match=r"^pyannote.audio 4\.1\.0 .*; install pyannote.audio 4\.0\.7"):
        load_pipeline("any", device="cpu", token=None)


def test_the_pyannote_that_is_installed_is_the_one_that_is_known() -> None:
    """The project pins the version whose parts are replaced."""
    assert metadata.version("pyannote.audio") == PYANNOTE
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]["server"]
    assert f"pyannote-audio=={PYANNOTE}" in dependencies
