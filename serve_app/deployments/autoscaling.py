"""How many replicas a stage needs, by the audio that it has to work on: docs/autoscaling.md.

Serve's own policy counts calls, but a call may be a window of a second or a file of hours.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.config import AutoscalingContext

BUSY_S = "busy_s_"  # a replica reports one counter for each batcher: this, and the batcher's name
BUSY = 0.9  # the part of its time in which a full replica runs batches; with more its queue grows


class ByAudio:
    """`policy_function` of a stage with a model. Serve applies the bounds and the delays of the config.

    The stage gets a replica for each `audio_s_per_replica` of audio that waits or runs. A short queue does
    not say how many replicas keep it short. So replicas are kept for the work of the last seconds: one for
    each `speed` seconds of audio done in a second. Without `speed` there are enough to be 90 % busy.
    """

    def __init__(self, audio_s_per_replica: float, speed: float | None = None) -> None:
        if not audio_s_per_replica > 0 or not (speed is None or speed > 0):
            raise ValueError("audio_s_per_replica and speed must be above 0")
        self.audio_s_per_replica = audio_s_per_replica
        self.speed = speed

    def __call__(self, state: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas to have, and what Serve is to keep until the next call: nothing."""
        calls, target = state.total_num_requests, state.target_num_replicas
        if not state.current_num_replicas:  # at zero, or the first ones are still starting
            return max(target, min(1, math.ceil(calls))), {}
        unfinished_s: dict[Any, float] = (state.aggregated_metrics or {}).get("unfinished_audio_s", {})
        needed = math.ceil(sum(unfinished_s.values()) / self.audio_s_per_replica)
        counter, full = (BUSY_S, BUSY) if self.speed is None else ("done_audio_s", self.speed)
        work_per_s = _largest_slopes(state.raw_metrics or {}, counter)
        needed = max(needed, min(target, math.ceil(sum(work_per_s.values()) / full)))
        needed = min(needed, math.ceil(calls)) if calls else needed  # a call runs on one replica
        if calls or any(unfinished_s.values()):
            needed = max(needed, 1)
        if len(unfinished_s) < state.current_num_replicas:  # one has not reported yet, and may have work
            needed = max(needed, target)
        return needed, {}


def _largest_slopes(counters: Mapping[str, Mapping[Any, Sequence[Any]]], prefix: str) -> dict[Any, float]:
    """For each replica the slope of its fastest counter, of those whose names begin with `prefix`."""
    found: dict[Any, float] = {}
    for name, of_replicas in counters.items():
        if name.startswith(prefix):
            for replica, samples in of_replicas.items():
                found[replica] = max(found.get(replica, 0.0), _per_s(samples))
    return found


def _per_s(samples: Sequence[Any]) -> float:
    """The mean slope of a counter: Serve gives its values, with their times, within the look-back period."""
    if len(samples) < 2 or samples[-1].timestamp <= samples[0].timestamp:
        return 0.0
    slope: float = (samples[-1].value - samples[0].value) / (samples[-1].timestamp - samples[0].timestamp)
    return slope
