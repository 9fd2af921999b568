"""Names for diarized speakers: whose reference sounds like them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from serve_app.transcript import Diarization, Turn

Embeddings = npt.NDArray[np.floating]  # (voices, dimension)


def match(references: Embeddings, speakers: Embeddings, max_distance: float) -> dict[int, int]:
    """Which speaker has which reference's voice: row of `speakers` -> row of `references`.

    Pairs are nearer than `max_distance` (cosine) and one to one, the nearest ones on the whole: where
    somebody is taken for two speakers, one of them stays without a name, because two voices that
    diarization tells apart may be near the same reference. An embedding of zeros or NaN is near nobody.
    """
    if not len(references) or not len(speakers):
        return {}
    distances = np.nan_to_num(cdist(references, speakers, "cosine"), nan=2.0)
    # What is too far counts the same, however far: it shall not decide who gets a near one.
    pairs = zip(*linear_sum_assignment(np.minimum(distances, max_distance)), strict=True)
    return {int(speaker): int(name) for name, speaker in pairs if distances[name, speaker] < max_distance}


def rename(diarization: Diarization, names: Mapping[str, str], given: Sequence[str]) -> Diarization:
    """The same turns, speakers called by `names` where they are in it.

    Another speaker keeps the label, unless one of the `given` names reads the same: then it gets the
    first SPEAKER_00, SPEAKER_01, ... that nobody has.
    """
    labels = dict.fromkeys(turn.speaker for turn in (*diarization.turns, *diarization.exclusive_turns))
    taken = {*labels, *given}
    unused = (label for label in map("SPEAKER_{:02d}".format, count()) if label not in taken)
    called = {label: names.get(label) or (next(unused) if label in given else label) for label in labels}

    def renamed(turns: Sequence[Turn]) -> tuple[Turn, ...]:
        return tuple(replace(turn, speaker=called[turn.speaker]) for turn in turns)

    return Diarization(renamed(diarization.turns), renamed(diarization.exclusive_turns))
