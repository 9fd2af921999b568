"""Known speakers with a pipeline of pyannote's own kinds; test_campplus_models has those with CAM++."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_pyannote import save_community_1, small_pipeline
from serve_app.errors import InvalidRequest
from serve_app.settings import DiarizationSettings
from serve_app.stages.diarization.diarizer import PyannoteDiarizer, load_pyannote
from serve_app.transcript import Diarization, KnownSpeaker, Samples, SpeakerBounds

pytestmark = [
    pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:std.*degrees of freedom is <= 0:UserWarning"),
]

# The weights are random, so any distance will do.
ANY_DISTANCE = DiarizationSettings(known_speaker_threshold=2.0)


@pytest.fixture(scope="module")
def diarizer() -> PyannoteDiarizer:
    return PyannoteDiarizer(small_pipeline(), settings=ANY_DISTANCE)


@pytest.mark.parametrize("clip", [np.zeros(48_000, np.int16), np.full(48_000, 9000, np.int16)])
def test_a_clip_without_a_voice_is_refused(
    diarizer: PyannoteDiarizer, meeting: Samples, clip: Samples
) -> None:
    """It would be near to somebody by chance; the error says which clip it is."""
    known = [KnownSpeaker("Ada", meeting), KnownSpeaker("nobody", clip)]
    with pytest.raises(InvalidRequest, match=r"references\[1\]") as caught:
        diarizer.diarize(meeting[:80_000], known=known)
    assert (caught.value.param, caught.value.code) == ("known_speaker_references", "no_voice")


def test_silence_has_no_known_speakers(diarizer: PyannoteDiarizer, meeting: Samples) -> None:
    """And no samples have none either."""
    known = [KnownSpeaker("Ada", meeting)]
    for samples in (np.zeros(0, np.int16), np.zeros(48_000, np.int16)):
        assert diarizer.diarize(samples, known=known) == Diarization((), ())


def test_community_1_names_a_voice_by_its_own_embedding(meeting: Samples, tmp_path: Path) -> None:
    """Its clustering gives voices to compare, too."""
    torch.manual_seed(0)
    save_community_1(tmp_path)
    diarizer = load_pyannote(str(tmp_path), device="cpu", token=None, settings=ANY_DISTANCE)
    clip = meeting[: 6 * 16_000]
    found = diarizer.diarize(clip, bounds=SpeakerBounds(1), known=[KnownSpeaker("Ada", clip)])
    assert {turn.speaker for turn in found.turns} == {"Ada"}
