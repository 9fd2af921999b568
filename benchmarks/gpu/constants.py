"""The simulated device's constants as they were measured: a diff of benchmarks/simulated.py.

The diff is printed, not applied: the file describes a T4, and the machine may have another GPU.
"""

import ast
import difflib
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gpu.figures import SIMULATED, Figure

FILE = Path(__file__).parents[1] / "simulated.py"


def measured(figures: Iterable[Figure]) -> dict[str, float]:
    """The constants among the figures."""
    return {
        figure.name.removeprefix(SIMULATED): float(figure.value)
        for figure in figures
        if figure.name.startswith(SIMULATED)
    }


def corrected(source: str, constants: dict[str, float]) -> str:
    """The source with these values in place of what is assigned to the names at its top level."""
    lines = source.splitlines(keepends=True)
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        name, value = statement.targets[0].id, statement.value
        if name in constants and value.lineno == value.end_lineno:
            row, begin, end = value.lineno - 1, value.col_offset, value.end_col_offset
            # Offsets are in bytes.
            line = lines[row].encode()
            lines[row] = (line[:begin] + f"{constants[name]:.3g}".encode() + line[end:]).decode()
    return "".join(lines)


def diff(constants: dict[str, float], machine: str) -> str:
    """A unified diff for `git apply`; empty where nothing was measured."""
    source = FILE.read_text()
    changed = difflib.unified_diff(
        source.splitlines(keepends=True),
        corrected(source, constants).splitlines(keepends=True),
        "a/benchmarks/simulated.py",
        f"b/benchmarks/simulated.py\tmeasured on {machine}",
        n=1,
    )
    return "".join(changed)
