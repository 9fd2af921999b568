"""The card that travels with the models."""

from pathlib import Path

from tools.demo_models.measure import WINDOW_S, Row, as_markdown
from tools.demo_models.vocabulary import ADDRESS_WORDS, EVERYDAY, NUMBERS, WORDS
from tools.demo_models.voices import ESPEAK, FESTIVAL, FLITE, UNSEEN

CARD = """# The bundled demo models

Three small models, trained for this project from synthesized speech only, so that the whole service can
be tried, tested and measured without a model hub, a token or a GPU. **They are not for real
recordings.** They know {word_count} English words and the sound of speech synthesizers; they will make
nonsense of people.

- `asr/` ({asr}): Whisper's architecture, 4 + 3 layers of width 128, CTranslate2 int8, Whisper's 51,865
  tokens; for `whisperx.load_model`
- `aligner/` ({aligner}): Wav2Vec2ForCTC over letters, 0.55 M parameters; for `whisperx.load_align_model`
- `diarization/` ({diarization}): a speaker embedding (x-vector, 64 dimensions), `TinyXVector`; for
  pyannote's `SpeakerDiarization`

## Use
- **Set `chunk_size={window}`**: the recogniser was trained on windows of up to 10 s. Longer ones get
  worse; the last column shows whisperx's default of 30 s.
- English only: it answers `en` to language detection and writes lower case with a "." after a pause.
- No timestamp tokens: word times come from the aligner. No translation, no prompts.
- The diarizer uses the segmentation model that the whisperx wheel brings.

## Words
The Gettysburg Address ({address_count} words), the numbers ({numbers}), and {everyday_count} everyday words
that sound unlike all the others: {everyday}.

## Training data
Sentences of 1 to 24 words in random order ("free word order": no sentence of the Address, none of the
evaluation), spoken by flite ({flite}), festival ({festival}) and {espeak_count} espeak-ng voices, at varied
rate, pitch, spectrum, level and noise, and cut into windows the way whisperx's speech detection cuts.
Never trained on: {unseen}.

## Wrong words, end to end
Unmodified whisperx, int8, beam 5, by longest window (`chunk_size`), on the recordings of `make eval`: fresh
sentences of 4 to 16 words.

{table}

`make eval` measures more: per voice, word times, speakers, and plain whisperx beside the service.

The demo's two voices were chosen because the recogniser makes no mistake with them: among eight pairs of
voices and rates of the same script it had between 0 and 8 wrong words of 102.

## Again
`python -m tools.demo_models` made everything here from nothing, training for {hours:g} hours on two CPU
cores.
"""


def write_card(bundled: Path, rows: list[Row], hours: float) -> None:
    """Write MODEL_CARD.md into the folder of the models."""
    text = CARD.format(
        word_count=len(WORDS),
        address_count=len(ADDRESS_WORDS),
        numbers=", ".join(NUMBERS),
        everyday_count=len(EVERYDAY),
        everyday=", ".join(EVERYDAY),
        flite=_names(FLITE),
        festival=_names(FESTIVAL),
        espeak_count=len(ESPEAK),
        unseen=_names(UNSEEN),
        table=as_markdown(rows),
        window=WINDOW_S,
        hours=hours,
        **{part: _megabytes(bundled / part) for part in ("asr", "aligner", "diarization")},
    )
    (bundled / "MODEL_CARD.md").write_text(text)


def _names(voices: list[str]) -> str:
    return ", ".join(voice.partition("/")[2] for voice in voices)


def _megabytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"
