"""What operators watch: metrics in Ray's registry, which Ray's own exporter hands to Prometheus.

Only what Serve does not measure itself. docs/operations.md says what each is for. Serve adds the tags
deployment, replica and application.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping

from ray.serve import metrics

from serve_app.audio import AudioInfo
from serve_app.batching.batcher import BatchRun
from serve_app.errors import TranscriptionError
from serve_app.transcript import Transcript

logger = logging.getLogger("ray.serve")  # Serve's logger adds the request id to every line

SECONDS = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0]
TIMES_REAL = [0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


class OneLineErrors(logging.Filter):
    """Makes an error that is meant for the caller one line of the log; Serve would log its traceback in every
    replica that it passes."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, TranscriptionError) and error.code != TranscriptionError.code:
            record.msg, record.args = "Request failed: %s: %s", (error.code, error.message)
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        return True


def log_errors_in_one_line() -> None:
    """Installs the filter in this process, once."""
    if not any(isinstance(each, OneLineErrors) for each in logger.filters):
        logger.addFilter(OneLineErrors())


class Retries:
    """Counts what was done again, per stage and cause, and logs it as it happens."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()  # (stage, cause) -> times, in this process
        self._metric = _counter(
            "retries",
            "Calls of a stage that were made again, and audio that was loaded again.",
            "stage",
            "cause",
        )

    def note(self, stage: str, cause: str, error: BaseException | None = None) -> None:
        """Counts one more; the log names the kind of error, whose text might hold what a caller sent."""
        self.counts[stage, cause] += 1
        self._metric.inc(tags={"stage": stage, "cause": cause})
        kind = f" ({type(error).__name__})" if error else ""
        logger.warning("%s: again, because of %s%s", stage, cause, kind)


class RequestMetrics:
    """Requests and jobs as the process that owns them sees them; `kind` is "request" or "job"."""

    def __init__(self, kind: str) -> None:
        self._kind = {"kind": kind}
        self._in_s = _counter("audio_in_seconds", "Audio that was decoded.", "kind")
        self._done_s = _counter("audio_done_seconds", "Audio of requests that got their transcript.", "kind")
        self._ended = _counter(
            "requests",
            "Requests and attempts at jobs that have ended; outcome is ok or the error's code.",
            "kind",
            "outcome",
            "status",
        )
        self._rtf = _histogram(
            "real_time_factor",
            "Time from the whole body to the transcript, over the audio's length.",
            TIMES_REAL,
            "kind",
        )
        self._warnings = _counter("warnings", "Warnings in transcripts.", "stage", "code")

    def decoded(self, part: AudioInfo) -> None:
        """Counts a part of a file, once, even if it has to be loaded again."""
        _add(self._in_s, part.end_s - part.start_s, self._kind)

    def succeeded(self) -> None:
        self._ended.inc(1, self._kind | {"outcome": "ok", "status": "200"})

    def transcribed(self, transcript: Transcript, wall_s: float) -> None:
        """What only requests for a transcript tell: how fast they were, and what went wrong in them."""
        if transcript.duration_s > 0:
            self._done_s.inc(transcript.duration_s, self._kind)
            self._rtf.observe(wall_s / transcript.duration_s, self._kind)
        for warning in transcript.warnings:
            self._warnings.inc(1, {"stage": warning.stage, "code": warning.code})

    def failed(self, error: BaseException) -> None:
        """The status is that of the HTTP answer; there is none where the client left or a job was stopped."""
        if isinstance(error, asyncio.CancelledError):
            outcome, status = "canceled", ""
        else:
            known = error if isinstance(error, TranscriptionError) else TranscriptionError
            outcome, status = known.code, str(known.status)
        self._ended.inc(1, self._kind | {"outcome": outcome, "status": status})


class IngressMetrics:
    """What an Ingress has refused, and what it holds."""

    def __init__(self) -> None:
        self._errors = _counter(
            "errors", "HTTP answers that were errors, by code and status.", "code", "status"
        )
        self._held = {
            "windows_waiting": _gauge(
                "windows_waiting", "Windows that wait until windows_in_flight lets them in."
            ),
            "requests_open": _gauge("requests_open", "Requests that are received, worked on or answered."),
            "audio_held_seconds": _gauge("audio_held_seconds", "Audio that these requests hold."),
        }

    def refused(self, code: str, status: int) -> None:
        self._errors.inc(1, {"code": code, "status": str(status)})

    def holds(self, **values: float) -> None:
        """Sets the gauges that are named."""
        for name, value in values.items():
            self._held[name].set(value)


class JobMetrics:
    """The store of jobs, which all JobRunners share: each of them shows the same numbers."""

    def __init__(self) -> None:
        self._jobs = _gauge("jobs", "Jobs in the store.", "status")
        self._webhooks = _gauge("webhooks", "Webhooks in the store.", "status")
        self._oldest_s = _gauge(
            "jobs_oldest_queued_seconds", "How long the job has waited that has waited longest."
        )
        self._errors = _counter("job_store_errors", "Times that a JobRunner could not use the store.")
        self._counts: tuple[Mapping[str, int], Mapping[str, int], float] | None = None

    def counted(self, jobs: Mapping[str, int], webhooks: Mapping[str, int], oldest_queued_s: float) -> None:
        """Keeps what was counted, which `show` shows until the next count."""
        self._counts = (jobs, webhooks, oldest_queued_s)

    def store_failed(self) -> None:
        self._errors.inc()

    def show(self) -> None:
        """Sets the gauges, also while the store is away: Ray forgets one that has not been set for 20 s."""
        if self._counts is None:
            return
        jobs, webhooks, oldest_queued_s = self._counts
        for gauge, counts in ((self._jobs, jobs), (self._webhooks, webhooks)):
            for status, count in counts.items():
                gauge.set(count, {"status": status})
        self._oldest_s.set(oldest_queued_s)


class StageMetrics:
    """A replica of a stage; only those with a model have the gauges."""

    def __init__(self, stage: str) -> None:
        self._stage, self._loading_s = stage, 0.0
        self._counted_s: dict[str, float] = {}  # busy time, by batcher
        self._wait_s = _histogram(
            "stage_wait_seconds", "How long a call waited in a replica.", SECONDS, "stage"
        )
        self._run_s = _histogram("stage_run_seconds", "How long a batch ran.", SECONDS, "stage")
        self._busy_s = _counter("stage_busy_seconds", "Time in which batches ran.", "stage")
        self._items = _counter("batch_items", "Calls that ran in batches.", "stage")
        self._slots = _counter("batch_slots", "Calls like these that the batches could have held.", "stage")
        self._queued = _gauge("stage_queued", "Calls that wait in a replica.", "stage")
        self._unfinished_s = _gauge("stage_unfinished_audio_seconds", "Audio that waits or runs.", "stage")
        self._load_s = _gauge("model_load_seconds", "How long the models took to load.", "stage")
        self._gpu_bytes = _gauge("gpu_memory_bytes", "What torch has of the GPU in this replica.", "stage")
        self._windows = _counter("windows", "Windows that were recognised.")
        self._fallbacks = _counter("fallbacks", "Those that were decoded again at higher temperatures.")

    def ran(self, name: str, run: BatchRun) -> None:
        """Notes a batch that has run; `name` is the batcher's, of which a stage may have several."""
        tags = {"stage": name}
        for wait_s in run.waits_s:
            self._wait_s.observe(wait_s, tags)
        self._run_s.observe(run.run_s, tags)
        self._items.inc(len(run.waits_s), tags)
        self._slots.inc(run.slots, tags)

    def worked(self, name: str, busy_s: float) -> None:
        """Notes a batcher's busy time since it started, so that a batch of minutes counts while it runs."""
        _add(self._busy_s, busy_s - self._counted_s.get(name, 0.0), {"stage": name})
        self._counted_s[name] = busy_s

    def waited(self, seconds: float) -> None:
        self._wait_s.observe(seconds, {"stage": self._stage})

    def ran_alone(self, seconds: float) -> None:
        """Notes work that is not batched."""
        self._run_s.observe(seconds, {"stage": self._stage})
        _add(self._busy_s, seconds, {"stage": self._stage})

    def recognized(self, attempts: int) -> None:
        """Counts a window that has its text."""
        self._windows.inc()
        if attempts > 1:
            self._fallbacks.inc()

    def loaded(self, seconds: float) -> None:
        self._loading_s += seconds

    def holds(self, queued: int, unfinished_audio_s: float, gpu_bytes: int | None) -> None:
        """Sets the gauges; Ray forgets one that has not been set for 20 s."""
        tags = {"stage": self._stage}
        self._load_s.set(self._loading_s, tags)
        self._queued.set(queued, tags)
        self._unfinished_s.set(unfinished_audio_s, tags)
        if gpu_bytes is not None:
            self._gpu_bytes.set(gpu_bytes, tags)


def _add(counter: metrics.Counter, value: float, tags: dict[str, str]) -> None:
    """Counts a quantity that may be nothing, which Ray's counters refuse."""
    if value > 0:
        counter.inc(value, tags)


def _counter(name: str, description: str, *tags: str) -> metrics.Counter:
    # Serve's hint of tag_keys means a tuple of one.
    return metrics.Counter(f"whisperx_{name}", description, tags)  # type: ignore[arg-type]


def _gauge(name: str, description: str, *tags: str) -> metrics.Gauge:
    return metrics.Gauge(f"whisperx_{name}", description, tags)  # type: ignore[arg-type]


def _histogram(name: str, description: str, boundaries: list[float], *tags: str) -> metrics.Histogram:
    return metrics.Histogram(f"whisperx_{name}", description, boundaries, tags)  # type: ignore[arg-type]
