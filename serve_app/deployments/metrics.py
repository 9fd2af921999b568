"""What operators watch: metrics in Ray's registry, which Ray's own exporter hands to Prometheus."""

import logging
from collections import Counter

from ray.serve import metrics

from serve_app.errors import TranscriptionError

logger = logging.getLogger("ray.serve")  # Serve's logger adds the request id to every line


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
        self._metric = metrics.Counter(
            "whisperx_retries",
            description="Calls of a stage that were made again, and audio that was loaded again.",
            tag_keys=("stage", "cause"),  # type: ignore[arg-type]  # Serve's hint means any number
        )

    def note(self, stage: str, cause: str, error: BaseException | None = None) -> None:
        """Counts one more; the log names the kind of error, whose text might hold what a caller sent."""
        self.counts[stage, cause] += 1
        self._metric.inc(tags={"stage": stage, "cause": cause})
        kind = f" ({type(error).__name__})" if error else ""
        logger.warning("%s: again, because of %s%s", stage, cause, kind)
