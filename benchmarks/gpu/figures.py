"""Measured figures: a step writes each one down as soon as it has it, so that a killed step keeps them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SIMULATED = "simulated: "  # what the names of the simulated device's constants begin with


@dataclass(frozen=True)
class Figure:
    """One measured value, and between which values it should be."""

    name: str
    value: float | str
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    kind: str = "measured"
    machine: str = ""

    @property
    def has_limit(self) -> bool:
        return self.at_most is not None or self.at_least is not None

    @property
    def is_within(self) -> bool:
        """Whether it is between its limits; True where it has none. Not a number never is."""
        if not self.has_limit:
            return True
        value = float(self.value)
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    @property
    def shown(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        return f"{value} {self.unit}".strip()

    @property
    def limit_shown(self) -> str:
        limits = (("≥", self.at_least), ("≤", self.at_most))
        return ", ".join(f"{sign} {limit:.4g}" for sign, limit in limits if limit is not None)


@dataclass(frozen=True)
class Report:
    """Appends figures of one machine to a file."""

    path: Path
    machine: str

    def __call__(
        self,
        name: str,
        value: float | str | None,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """A figure without a value is shown as unknown, and has no limits."""
        if value is None:
            value, unit, at_most, at_least = "unknown", "", None, None
        value = value if isinstance(value, str) else float(value)  # numpy's are not JSON
        figure = Figure(name, value, unit, at_most, at_least, machine=self.machine)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(figure)) + "\n")
        print(f"{figure.name}: {figure.shown}", flush=True)


def read(path: Path) -> list[Figure]:
    """The figures of a file; a line that was cut off when its writer was killed is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    return [Figure(**json.loads(line)) for line in lines[:-1]]  # what follows the last newline is cut off


def as_json(figure: Figure) -> dict[str, Any]:
    return asdict(figure) | {"is_within": figure.is_within}
