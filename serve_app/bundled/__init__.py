"""The demo models shipped with the package: trained for this project from synthesized speech only.

They recognise a few hundred English words in synthetic voices, so that the whole graph can be tried and
tested without a hub, a token or a GPU. They do not understand real recordings: see MODEL_CARD.md.
"""

from pathlib import Path

NAME = "bundled"  # what the settings call these models

_HERE = Path(__file__).parent

ASR = _HERE / "asr"  # Whisper architecture, CTranslate2 int8
ASR_WINDOW_S = 6.0  # the recogniser was trained on short windows
ALIGNERS = {"en": _HERE / "aligner"}  # Wav2Vec2ForCTC with its processor
SPEAKER_EMBEDDING = _HERE / "diarization" / "speaker_embedding.safetensors"
SAMPLE = _HERE / "gettysburg.mp3"  # two synthesized voices speaking the Gettysburg Address
