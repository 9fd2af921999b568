"""What the replicas of all deployments share: options, environment, and the batcher in front of a model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from ray.serve.config import RequestRouterConfig

from serve_app.batching.batcher import Batcher
from serve_app.deployments.autoscaling import BUSY_S
from serve_app.deployments.metrics import Retries, StageMetrics, log_errors_in_one_line
from serve_app.deployments.watchdog import CallTimeout, Watchdog, with_halved_batches
from serve_app.jobs.webhooks.signatures import VARIABLE
from serve_app.settings import PlacementSettings
from serve_app.stages import devices

Model = TypeVar("Model")

# Serve's queue in front of a replica costs back-off; ours is inside, so a replica takes many calls, and where
# one is full after all, the router looks again soon.
MAX_ONGOING_REQUESTS = 1024
ROUTER = RequestRouterConfig.model_validate({"initial_backoff_s": 0.005, "max_backoff_s": 0.02})

# A replica that does not answer three health checks, half a minute, is killed. Constructors are not checked,
# so a model may load for as long as it takes.
OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": MAX_ONGOING_REQUESTS,
    "request_router_config": ROUTER,
    "health_check_period_s": 5.0,
    "health_check_timeout_s": 10.0,
}

BOOKED_CPUS = 0.25  # small, so that a graph of one replica each fits on two cores; threads are set in `args:`
BOOKED_BY_OTHERS = 0.05  # so that five models beside the first one fit there, too

ENVIRONMENT = {  # only what is right on every node: the graph may be built on another node than this
    "OMP_NUM_THREADS": "1",  # until a model's loader sets it
    # Replicas share the cores, so threads that wait sleep; but not at once: a nap between the small steps of
    # speech detection costs more than they do (64 instead of 27 ms for 5 s of audio).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",
    "MALLOC_ARENA_MAX": "1",  # an arena for each of Ray's threads would grow for thousands of requests
    "CUDA_VISIBLE_DEVICES": "",  # Ray shows the GPU even to replicas that booked none
    "GRPC_VERBOSITY": "ERROR",  # else Ray logs a line for every child process of a decoder
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of calls whose request has failed already
    "PYANNOTE_METRICS_ENABLED": "0",  # no telemetry about our users' audio
}
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # a glibc that has no such setting ignores it
NO_MODEL_TOKENS = {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": ""}
NO_WEBHOOK_SECRETS = {VARIABLE: ""}
NO_SECRETS = NO_MODEL_TOKENS | NO_WEBHOOK_SECRETS
NO_DATABASE = {"PGPASSWORD": ""}  # only the Ingress and the JobRunner ask the store of jobs


def actor_options(
    gpu_share: float,
    environment: Mapping[str, str],
    placement: PlacementSettings,
    num_cpus: float = BOOKED_CPUS,
) -> dict[str, Any]:
    """`ray_actor_options` of a replica that books this part of a GPU, with more environment variables."""
    variables = {**ENVIRONMENT, **environment}
    labels = placement.gpu if gpu_share else placement.cpu
    if gpu_share:
        del variables["CUDA_VISIBLE_DEVICES"]
    return {
        "num_cpus": num_cpus,
        "runtime_env": {"env_vars": variables},
        **({"num_gpus": gpu_share} if gpu_share else {}),
        **({"label_selector": labels} if labels else {}),
    }


class BatchConfig(BaseModel):
    """`user_config` of a stage, which can change at run time. It replaces what the graph was built with."""

    model_config = ConfigDict(extra="forbid")

    max_batch_size: int = Field(8, ge=1, le=256)

    def apply(self, batcher: Batcher[Any, Any], changes: dict[str, Any]) -> None:
        """Sets the batcher to this with `changes`; raises ValidationError for what is no setting."""
        for name, value in self.model_validate(self.model_dump() | changes):
            setattr(batcher, name, value)


class ModelReplica:
    """A replica with a model: its batchers, its health, and settings that change while it runs."""

    def __init__(self, stage: str, timeout: CallTimeout, batch: BatchConfig | None = None) -> None:
        log_errors_in_one_line()
        self._stage = stage
        self._watchdog = Watchdog(timeout)
        self._retries = Retries()
        self._metrics = StageMetrics(stage)
        self._batch = batch
        self._batchers: list[Batcher[Any, Any]] = []

    def _loaded(self, load: Callable[[], Model]) -> Model:
        """The model, whose loading is timed."""
        begun_s = monotonic()
        model = load()
        self._metrics.loaded(monotonic() - begun_s)
        return model

    def _batcher(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        audio_s: Callable[[Any], float] = lambda item: 0.0,
        **options: Any,
    ) -> Batcher[Any, Any]:
        """A batcher around the model call `run`, which is watched and does not fail for a whole batch.

        `user_config` is for the first one.
        """
        watched = with_halved_batches(self._watchdog.over(run, audio_s), self._stage, self._retries.note)
        name = f"{self._stage}_{options['name']}" if "name" in options else self._stage
        on_run = partial(self._metrics.ran, name)
        options = {"max_batch_size": 1, "audio_s": audio_s, "on_run": on_run, **options, "name": name}
        batcher: Batcher[Any, Any] = Batcher(watched, **options)
        self._batchers.append(batcher)
        if len(self._batchers) == 1:
            self.reconfigure({})
        return batcher

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve calls this with `user_config` when a replica starts and when it changes."""
        if self._batch:
            self._batch.apply(self._batchers[0], config)

    async def counters(self) -> dict[str, float]:
        """Batches, items and times so far: what batch occupancy is computed from."""
        batcher = self._batchers[0]
        return vars(batcher.counters) | {"queued": batcher.queued, "running": batcher.running}

    async def check_health(self) -> None:
        """Raises where a model call hangs or a batcher has ended, so that Serve replaces the replica."""
        self._watchdog.check()
        for batcher in self._batchers:
            batcher.check()
            self._metrics.worked(batcher.name, batcher.busy_s)
        queued, unfinished_s = self._workload()
        self._metrics.holds(queued, unfinished_s, devices.gpu_memory_bytes())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.ByAudio` goes by; Serve asks for it every few seconds."""
        return {
            "unfinished_audio_s": self._workload()[1],
            "done_audio_s": sum(each.counters.audio_s for each in self._batchers),
            # One for each thread: autoscaling looks at the busiest.
            **{BUSY_S + each.name: each.busy_s for each in self._batchers},
        }

    def _workload(self) -> tuple[int, float]:
        """How many calls wait, and the seconds of audio that wait or run."""
        return sum(each.queued for each in self._batchers), sum(
            each.unfinished_audio_s for each in self._batchers
        )

    async def ready(self) -> bool:
        """The model is loaded: a replica answers only after its constructor."""
        return True
