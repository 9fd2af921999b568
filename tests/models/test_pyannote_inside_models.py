"""What diarization replaces inside pyannote: the installed one has it, another one is refused at load."""

import re
from importlib import metadata
from typing import Any

import pytest
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.audio.pipelines.clustering import VBxClustering

from serve_app.errors import ModelUnavailable
from serve_app.stages.diarization.pipeline import load_pipeline


class Other:
    """A pyannote in which what we replace looks otherwise."""

    def __init__(self, segmentation: Any) -> None:
        self._embedding = self._audio = self._segmentation = segmentation
        self.clustering = self.clustering_method = segmentation

    def apply(self, file: Any) -> Any:
        """Calls neither what embeds nor what clusters under the names of the present one."""
        return self.embeddings_of(file, [])

    def embeddings_of(self, file: Any, segmentations: Any) -> Any:
        """Takes other arguments."""

    def __call__(self, embeddings: Any, segmentations: Any, bounds: Any) -> Any:
        """Takes the numbers of speakers as one."""


@pytest.mark.parametrize(
    ("owner", "name", "other", "missing"),
    [
        (SpeakerDiarization, "apply", Other.apply, "SpeakerDiarization.apply that uses get_embeddings"),
        (
            SpeakerDiarization,
            "get_embeddings",
            Other.embeddings_of,
            "SpeakerDiarization.get_embeddings(self, file, ",
        ),
        (SpeakerDiarization, "get_embeddings", None, "SpeakerDiarization.get_embeddings(self, file, "),
        (SpeakerDiarization, "__init__", Other.__init__, "SpeakerDiarization.__init__ that uses "),
        (VBxClustering, "__call__", Other.__call__, "VBxClustering.__call__(self, embeddings, "),
    ],
)
def test_another_pyannote_is_refused_when_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, other: Any, missing: str
) -> None:
    """Else every file would be transcribed without its speakers, with a warning, or crash some day."""
    monkeypatch.setattr(metadata, "version", lambda package: {"pyannote.audio": "4.1.0"}[package])
    if other is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, other)
    sentence = f"^pyannote.audio 4.1.0 has no {re.escape(missing)}.*; install pyannote.audio 4.0.7"
    with pytest.raises(ModelUnavailable, match=sentence):
        load_pipeline("bundled", device="cpu", token=None)
