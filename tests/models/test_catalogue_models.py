"""The alignment models of the catalogue are whisperx's defaults, with torchaudio's own addresses."""

import torchaudio
from whisperx import alignment

from serve_app.models.catalogue import catalogue


def test_the_alignment_models_are_those_of_whisperx() -> None:
    """The same model for every language that whisperx has one for."""
    models = {m.name.removeprefix("wav2vec2-"): m for m in catalogue() if m.kind == "wav2vec2"}
    defaults = dict(alignment.DEFAULT_ALIGN_MODELS_HF)
    for language, name in alignment.DEFAULT_ALIGN_MODELS_TORCH.items():
        bundle = getattr(torchaudio.pipelines, name)
        defaults[language] = f"https://download.pytorch.org/torchaudio/models/{bundle._path}"
    assert {language: model.hub or model.url for language, model in models.items()} == defaults
