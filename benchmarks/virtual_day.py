"""`python -m benchmarks.virtual_day`: the policy of autoscaling through a day of 24 hours, in half a minute.

No Ray and no waiting: windows arrive, wait, run in batches for as long as a simulated T4 takes, and every
second `ByAudio` decides behind Serve's own delays, from metrics as old and as averaged as Serve's. It shows
what benchmarks/autoscaling.py cannot, which runs the real graph: the delays and a model that takes a minute
to load, in a day of their true length. One JSON line on standard output; `--plot FILE` draws it.
"""

import json
import math
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig

from benchmarks.days import capacity, load
from benchmarks.simulated import WINDOW_S, asr_s
from serve_app.deployments.autoscaling import ByAudio
from serve_app.settings import Settings

BATCH = 16
CAPACITY = capacity(BATCH)
WINDOWS_OF_A_FILE = 10
LOAD_S = 60.0  # of a model, or of a node with it
SAMPLE_S, PUSH_S = 6.0, 10.0  # Serve's defaults for the look-back of 30 s
CONFIG = AutoscalingConfig(min_replicas=1, max_replicas=6, upscale_delay_s=10.0, downscale_delay_s=300.0)
POLICY = {"audio_s_per_replica": 2 * BATCH * WINDOW_S, "speed": CAPACITY}


@dataclass(eq=False)
class Replica:
    """A Transcriber: its windows by their times of arrival, and what Serve knows of it."""

    works_from_s: float
    is_ending: bool = False
    waiting: deque[float] = field(default_factory=deque)
    batch: list[float] = field(default_factory=list)
    batch_ends_s: float = 0.0
    done_s: float = 0.0
    samples: deque[Any] = field(default_factory=deque)  # (time, unfinished, done)
    pushed: list[Any] = field(default_factory=list)

    @property
    def windows(self) -> int:
        return len(self.waiting) + len(self.batch)

    def step(self, now_s: float) -> list[float]:
        """Ends and begins batches; the windows that are done."""
        done: list[float] = []
        while self.batch_ends_s <= now_s and (self.batch or self.waiting):
            done += self.batch
            self.done_s += WINDOW_S * len(self.batch)
            self.batch = [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
            if self.batch:
                begun_s = max(self.batch_ends_s, now_s - 1.0)
                self.batch_ends_s = begun_s + asr_s([WINDOW_S] * len(self.batch))
        return done

    def measure(self, now_s: float) -> None:
        """As Serve samples and pushes."""
        if now_s % SAMPLE_S == 0:
            self.samples.append((now_s, WINDOW_S * self.windows, self.done_s, self.windows))
            while self.samples[0][0] < now_s - CONFIG.look_back_period_s:
                self.samples.popleft()
        if now_s % PUSH_S == 0:
            self.pushed = list(self.samples)


Look = tuple[float, float, int, int]  # hour, load, the fewest Transcribers that keep up with it, Transcribers


def simulate(day_s: float, seed: int = 1, looks: list[Look] | None = None) -> dict[str, float]:
    """What became of the day. `looks` gets one for each minute."""
    rng, settings = random.Random(seed), Settings()
    after_delays: Any = autoscaling_policy._apply_delay_logic
    policy = ByAudio(**POLICY)
    kept: dict[str, Any] = {}
    replicas, gate, target = [Replica(0.0)], deque[float](), 1
    had_s = ideal_s = files = refused = most_waiting = stopped = 0.0
    waits_s: list[float] = []
    for second in range(int(day_s)):
        now_s = float(second)
        working = [each for each in replicas if each.works_from_s <= now_s and not each.is_ending]
        arriving = _poisson(load(now_s, day_s) * CAPACITY / WINDOW_S / WINDOWS_OF_A_FILE, rng)
        files += arriving
        for _ in range(arriving):
            open_files = (len(gate) + sum(each.windows for each in replicas)) / WINDOWS_OF_A_FILE
            if open_files >= settings.requests_in_flight:
                refused += 1
            else:
                gate += [now_s] * WINDOWS_OF_A_FILE
        inside = sum(each.windows for each in replicas)
        while gate and inside < settings.windows_in_flight and working:
            some = rng.sample(working, min(2, len(working)))  # Serve's router chooses from two
            min(some, key=lambda each: each.windows).waiting.append(gate.popleft())
            inside += 1
        for each in replicas:
            waits_s += [now_s - begun_s for begun_s in each.step(now_s)]
            if each.works_from_s <= now_s:
                each.measure(now_s)
        replicas = [each for each in replicas if each.windows or not each.is_ending]
        wanted, _ = policy(_state(working, target))
        target, kept = after_delays(wanted, target, CONFIG, kept, now_s)
        target = max(CONFIG.min_replicas, min(CONFIG.max_replicas, target))
        alive = [each for each in replicas if not each.is_ending]
        replicas += [Replica(now_s + LOAD_S) for _ in range(target - len(alive))]
        for each in alive[target:]:  # the newest, as Serve does
            each.is_ending = True
            stopped += 1
        had_s += len(replicas)
        ideal_s += max(1, math.ceil(load(now_s, day_s)))
        most_waiting = max(most_waiting, len(gate))
        if looks is not None and not second % 60:
            now = load(now_s, day_s)
            looks.append((now_s / 3600, now, max(1, math.ceil(now)), len(replicas)))
    waits_s.sort()
    return {
        "files": files,
        "refused": refused,
        "windows_done": len(waits_s),
        "over_ideal": had_s / ideal_s,
        "over_always_max": had_s / (CONFIG.max_replicas * day_s),
        "stopped": stopped,
        "window_median_s": waits_s[len(waits_s) // 2],
        "window_p99_s": waits_s[int(0.99 * len(waits_s))],
        "window_max_s": waits_s[-1],
        "most_windows_before_the_gate": most_waiting,
    }


def _state(working: list[Replica], target: int) -> Any:
    reported = {n: each.pushed for n, each in enumerate(working) if each.pushed}
    return SimpleNamespace(
        current_num_replicas=len(working),
        target_num_replicas=target,
        total_num_requests=sum(fmean(calls for *_, calls in seen) for seen in reported.values()),
        aggregated_metrics={
            "unfinished_audio_s": {n: fmean(sample[1] for sample in seen) for n, seen in reported.items()}
        },
        raw_metrics={
            "done_audio_s": {
                n: [SimpleNamespace(timestamp=at_s, value=done_s) for at_s, _, done_s, _ in seen]
                for n, seen in reported.items()
            }
        },
    )


def _poisson(mean: float, rng: random.Random) -> int:
    left, found = math.exp(-mean), 0
    product = rng.random()
    while product > left:
        product *= rng.random()
        found += 1
    return found


def draw(days: dict[str, list[Look]], path: Path) -> None:
    """Load and Transcribers over the hours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for place, (name, looks) in enumerate(days.items(), 1):
        at, loads, ideal, had = zip(*looks, strict=True)
        panel = figure.add_subplot(1, len(days), place, title=f"{name}, simulated", xlabel="hours")
        panel.step(at, had, color="#b3462e", where="post", label="Transcribers")
        panel.step(at, ideal, color="#3b6ea5", where="post", label="ideal")
        panel.plot(at, loads, color="#888888", label="load, in full Transcribers")
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=90)


def main(
    hours: Annotated[float, typer.Option(help="Length of the first day; the second is half as long.")] = 24.0,
    seed: int = 1,
    plot: Annotated[Path | None, typer.Option(help="File of the plot.")] = None,
) -> None:
    lengths_s = {"day": 3600 * hours, "twice as steep": 1800 * hours}
    looks: dict[str, list[Look]] = {name: [] for name in lengths_s}
    found = {name: simulate(day_s, seed, looks[name]) for name, day_s in lengths_s.items()}
    if plot:
        draw(looks, plot)
    print(json.dumps({"simulated": True, **found}))


if __name__ == "__main__":
    typer.run(main)
