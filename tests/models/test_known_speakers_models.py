"""Known speakers on the bundled models: names on the right turns, and on no others."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import truth
from benchmarks.random_pyannote import save_community_1
from benchmarks.truth import Recording
from serve_app import bundled
from serve_app.errors import InvalidRequest
from serve_app.settings import DiarizationSettings
from serve_app.stages.diarization.diarizer import PyannoteDiarizer, load_pyannote
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, KnownSpeaker, Samples, SpeakerBounds

pytestmark = [
    pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:std.*degrees of freedom is <= 0:UserWarning"),
]

RECORDINGS = Path(truth.__file__).parent / "recordings"
SLT, RMS = "festival/cmu_us_slt_arctic_hts", "flite/rms"  # the demo's voices


@pytest.fixture(scope="module")
def diarizer() -> PyannoteDiarizer:
    return load_pyannote("bundled", device="cpu", token=None)


@pytest.fixture(scope="module")
def demo() -> Recording:
    return truth.load(bundled.SAMPLE)


@pytest.fixture(scope="module")
def three() -> Recording:
    return truth.load(RECORDINGS / "three-speakers" / "rms-en-gb-x-rp-en-us-Annie.opus")


def clip_of(voice: str, recording: Recording, longest_s: float = 10.0) -> Samples:
    """The first turn of the voice that is a reference."""
    turn = next(
        turn
        for turn in recording.turns
        if turn.speaker == voice and 2.0 <= turn.end_s - turn.start_s <= longest_s
    )
    return recording.samples[int(turn.start_s * SAMPLE_RATE_HZ) : int(turn.end_s * SAMPLE_RATE_HZ)]


def known_from(name: str, *voices: str) -> list[KnownSpeaker]:
    """Voices, named as they are, with clips from a recording of benchmarks/recordings/seen."""
    recording = truth.load(RECORDINGS / "seen" / f"{name}.opus")
    return [KnownSpeaker(voice, clip_of(voice, recording)) for voice in voices]


def pairs(found: Diarization, recording: Recording) -> list[tuple[str, str]]:
    """For each turn who is named and who speaks longest in it."""
    spoken = []
    for turn in found.turns:
        shared = {
            true: min(turn.end_s, true.end_s) - max(turn.start_s, true.start_s) for true in recording.turns
        }
        spoken.append((turn.speaker, max(shared, key=lambda true: shared[true]).speaker))
    return spoken


def test_every_turn_of_the_demo_has_the_right_name(diarizer: PyannoteDiarizer, demo: Recording) -> None:
    """One clip is from another recording; the other voice is in none, so its clip is the demo's own."""
    known = [*known_from("slt-rms", RMS), KnownSpeaker(SLT, clip_of(SLT, demo))]
    found = pairs(diarizer.diarize(demo.samples, known=known), demo)
    assert {said for said, _ in found} == {SLT, RMS}
    assert all(said == spoke for said, spoke in found)


def test_a_third_voice_stays_without_a_name(diarizer: PyannoteDiarizer, three: Recording) -> None:
    """Three people speak and two are known, from other recordings; the third has pyannote's label."""
    annie, british = "espeak/en-us+Annie", "espeak/en-gb-x-rp"
    known = [*known_from("slt-rms", RMS), *known_from("en-gb-x-rp-en-us-Annie", annie)]
    found = pairs(diarizer.diarize(three.samples, known=known), three)
    assert {spoke for _, spoke in found} == {RMS, annie, british}
    (third,) = {said for said, spoke in found if spoke == british}
    assert third.startswith("SPEAKER_")
    assert all(said == spoke for said, spoke in found if spoke != british)


def test_who_does_not_speak_is_not_named(diarizer: PyannoteDiarizer, demo: Recording) -> None:
    """The voice of another recording changes nothing: the turns are those without known speakers."""
    known = known_from("awb-en-us-f1", "flite/awb")
    assert diarizer.diarize(demo.samples, known=known) == diarizer.diarize(demo.samples)


def test_a_name_may_read_like_a_label(diarizer: PyannoteDiarizer, demo: Recording) -> None:
    """The second speaker gets the first one's label as a name: then nobody else is called so."""
    [voice] = known_from("slt-rms", RMS)
    found = pairs(diarizer.diarize(demo.samples, known=[KnownSpeaker("SPEAKER_00", voice.clip)]), demo)
    assert set(found) == {("SPEAKER_00", RMS), ("SPEAKER_02", SLT)}


@pytest.mark.parametrize("clip", [np.zeros(48_000, np.int16), np.full(48_000, 9000, np.int16)])
def test_a_clip_without_a_voice_is_refused(
    diarizer: PyannoteDiarizer, demo: Recording, clip: Samples
) -> None:
    """It would be near to somebody by chance."""
    known = [*known_from("slt-rms", RMS), KnownSpeaker("nobody", clip)]
    with pytest.raises(InvalidRequest, match=r"references\[1\]") as caught:
        diarizer.diarize(demo.samples[:80_000], known=known)
    assert (caught.value.param, caught.value.code) == ("known_speaker_references", "no_voice")


def test_silence_has_no_known_speakers(diarizer: PyannoteDiarizer) -> None:
    """And no samples have none either."""
    known = known_from("slt-rms", RMS)
    for samples in (np.zeros(0, np.int16), np.zeros(48_000, np.int16)):
        assert diarizer.diarize(samples, known=known) == Diarization((), ())


def test_community_1_names_a_voice_by_its_own_embedding(demo: Recording, tmp_path: Path) -> None:
    """Its clustering gives voices to compare too; the weights are random, so any distance will do."""
    torch.manual_seed(0)
    save_community_1(tmp_path)
    any_distance = DiarizationSettings(known_speaker_threshold=2.0)
    diarizer = load_pyannote(str(tmp_path), device="cpu", token=None, settings=any_distance)
    clip = demo.samples[: 6 * SAMPLE_RATE_HZ]
    found = diarizer.diarize(clip, bounds=SpeakerBounds(1), known=[KnownSpeaker("Ada", clip)])
    assert {turn.speaker for turn in found.turns} == {"Ada"}
