"""What a check is and finds, and how all are run: at once, until a common deadline, each on its own."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING, Any

from serve_app.cli import INSTALL

if TYPE_CHECKING:
    from serve_app.cli.doctor.devices import Devices
    from serve_app.settings import Settings

TOTAL_S = 14.0  # of the whole command; importing torch takes most of it on a busy machine


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"  # the service starts, but not as well as it could
    ERROR = "error"  # the service does not start, or requests fail
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What a check found: a state, and a sentence that says what was found and what to do about it."""

    state: State
    message: str


def fine(message: str) -> Finding:
    return Finding(State.OK, message)


def warning(message: str) -> Finding:
    return Finding(State.WARNING, message)


def wrong(message: str) -> Finding:
    """An error. Messages of other modules may have several lines."""
    return Finding(State.ERROR, f"{' '.join(message.split()).rstrip('.')}.")


def skipped(message: str) -> Finding:
    return Finding(State.SKIPPED, message)


@dataclass(frozen=True)
class Check:
    """A check and the name under which its finding is shown."""

    name: str
    run: Callable[[], Finding]


def known_finding(name: str, finding: Finding) -> Check:
    """A check whose finding is known already."""
    return Check(name, lambda: finding)


@dataclass(frozen=True)
class Result:
    """A finding with the name of its check, as it is shown."""

    name: str
    state: State
    message: str


class NoConfig(Exception):
    """A check needs a config file that is right."""


@dataclass(frozen=True)
class Application:
    """One application of the config file."""

    settings: "Settings"
    deployments: dict[str, dict[str, Any]]  # by name, as in the file
    host: str
    port: int
    has_proxy: bool = True


@dataclass(frozen=True)
class Subject:
    """What is checked: this machine, for an application."""

    devices: Callable[[], "Devices"]
    clock_url: str | None = None
    found: Application | None = None  # None: the config file is wrong
    metrics_port: int = 0  # that `serve` will be given; 0: a free one

    @property
    def application(self) -> Application:
        """The application. Raises NoConfig."""
        if self.found is None:
            raise NoConfig
        return self.found

    @property
    def settings(self) -> "Settings":
        """The settings of the application. Raises NoConfig."""
        return self.application.settings


def run_all(checks: Sequence[Check], until_s: float) -> list[Result]:
    """The results in the order of the checks. Those that have not ended at this time are left behind."""
    findings: dict[int, Finding] = {}

    def run(number: int, check: Check) -> None:
        findings[number] = _finding(check)

    threads = [
        threading.Thread(target=run, args=(number, check), daemon=True) for number, check in enumerate(checks)
    ]
    begun_s = monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until_s - monotonic()))
    waited_s = monotonic() - begun_s
    late = warning(
        f"Not ended after {waited_s:.0f} s; what it asks hangs, or this machine is busy: try again."
    )
    found = [findings.get(number, late) for number in range(len(checks))]
    return [Result(check.name, one.state, one.message) for check, one in zip(checks, found, strict=True)]


def _finding(check: Check) -> Finding:
    """What the check finds; an exception's own text is not shown, because it may hold a secret."""
    try:
        return check.run()
    except NoConfig:
        return skipped("The config file must be right first.")
    except ImportError as error:
        return missing_package(error)
    except Exception as error:  # noqa: BLE001  (the other checks are shown all the same)
        return warning(f"This check failed itself ({type(error).__name__}); please report that.")


def missing_package(error: ImportError) -> Finding:
    name = (error.name or "a package").partition(".")[0]
    return wrong(f"{name} cannot be imported; install it again: {INSTALL}.")
