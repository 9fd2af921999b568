"""What operators watch: metrics in Ray's registry, which Ray's own exporter hands to Prometheus."""

import logging
from collections import Counter

from ray.serve import metrics

logger = logging.getLogger("ray.serve")  # Serve's logger adds the request id to every line


class Retries:
    """Everything that was done again: counted per stage and cause, and logged as it happens."""

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
