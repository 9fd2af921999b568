"""What becomes of files that mean harm: `python -m benchmarks.malformed` prints one line a file.

Every file of ../shared/data/malformed (where that folder is there), the list that `hostile_files` makes,
and with `--mutations N` that many random accidents to intact files, decoded as the service decodes, with its
default length limit, two at a time. Last comes one JSON line. The exit code is 1 where anything but audio or
a 4xx came out, a kind of file ended as it must not, a file or URL that a file named was touched, or something
was left over.
"""

import asyncio
import json
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, BinaryIO

import psutil
import typer

from benchmarks.decoding import decode_whole
from benchmarks.hostile_files import EXPECTED, FOLDER, Trap, generated, mutated, whole_files
from serve_app.errors import TranscriptionError

LIMITS = {"max_audio_s": 14_400.0, "timeout_s": 60.0}


@dataclass(frozen=True)
class Outcome:
    """How one file ended: "audio", the code of a 4xx, or what went wrong in this project."""

    name: str
    end: str
    duration_s: float  # of the decoded sound
    wall_s: float
    warnings: tuple[str, ...] = ()
    failed: bool = False

    def line(self) -> str:
        return f"{self.name:52} {self.end:20} {self.duration_s:9.2f} s  {' '.join(self.warnings)}".rstrip()


async def outcome(name: str, file: BinaryIO, *, max_audio_s: float, timeout_s: float) -> Outcome:
    """Decodes `file`; nothing that comes of it is raised. Twice `timeout_s` is a hang."""
    began_s = time.monotonic()

    def wall_s() -> float:
        return time.monotonic() - began_s

    try:
        async with asyncio.timeout(2 * timeout_s):
            info, _ = await decode_whole(file, max_audio_s=max_audio_s, timeout_s=timeout_s)
    except TranscriptionError as error:
        return Outcome(name, error.code, 0.0, wall_s(), failed=not 400 <= error.status < 500)
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return Outcome(name, repr(error), 0.0, wall_s(), failed=True)
    warnings = tuple(warning.code for warning in info.warnings)
    return Outcome(name, "audio", info.end_s, wall_s(), warnings)


async def outcomes(
    files: Iterable[tuple[str, Path | bytes]], *, max_audio_s: float, timeout_s: float
) -> list[Outcome]:
    """The outcome of each file, in order, two at a time; bytes are written to a file without a name."""
    found: dict[int, Outcome] = {}
    todo = enumerate(files)

    async def work() -> None:
        for number, (name, content) in todo:
            with content.open("rb") if isinstance(content, Path) else tempfile.TemporaryFile() as file:
                if isinstance(content, bytes):
                    file.write(content)
                found[number] = await outcome(name, file, max_audio_s=max_audio_s, timeout_s=timeout_s)

    await asyncio.gather(work(), work())
    return [found[number] for number in sorted(found)]


def leftovers() -> tuple[int, set[int]]:
    """Open descriptors, and children dead or alive, of this process."""
    return len(os.listdir("/proc/self/fd")), {child.pid for child in psutil.Process().children()}


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most memory that one decoder held, in KiB; their own account of it, read 100 times a second."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            for child in psutil.Process().children():
                with suppress(OSError, StopIteration):  # it has just ended
                    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                    if "ffmpeg" in lines[0]:  # before that it shares this process's memory
                        line = next(line for line in lines if line.startswith("VmHWM"))
                        peak[0] = max(peak[0], int(line.split()[1]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def unexpected(found: Iterable[Outcome]) -> list[str]:
    """Lines of the outcomes that their files' kind does not allow."""
    return [one.line() for one in found if one.end not in EXPECTED.get(one.name.split(":")[0], {one.end})]


def mutations(number: int) -> Iterator[tuple[str, bytes]]:
    sources, random = list(whole_files().values()), Random(0)
    for index in range(number):
        yield f"mutation {index}", mutated(sources, random)


def main(
    mutations_wanted: Annotated[int, typer.Option("--mutations", help="Random accidents to decode.")] = 0,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trap = Trap(Path(folder))
        os.chdir(folder)  # so that a name without a path is the neighbour
        files: list[tuple[str, Path | bytes]] = [*generated(trap).items()]
        files += [
            (str(path.relative_to(FOLDER)), path) for path in sorted(FOLDER.rglob("*")) if path.is_file()
        ]
        trap.sprung()
        asyncio.run(outcomes([("first", b"\0")], **LIMITS))  # what is made once
        before = leftovers()
        with watched() as peak:
            found = asyncio.run(outcomes(files, **LIMITS))
            random_found = asyncio.run(outcomes(mutations(mutations_wanted), **LIMITS))
        touched, after = trap.sprung(), leftovers()
        trap.close()
    for one in found:
        print(one.line())
    every = [*found, *random_found]
    wrong = [one.line() for one in every if one.failed] + unexpected(found)
    figures = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "files": len(found),
        "outcomes": Counter(one.end for one in found),
        "mutations": len(random_found),
        "mutation_outcomes": Counter(one.end for one in random_found),
        "wrong": wrong,
        "touched": touched,
        "descriptors_left": after[0] - before[0],
        "children_left": len(after[1] - before[1]),
        "slowest_s": max(one.wall_s for one in every),
        "most_child_mib": peak[0] >> 10,
        "most_own_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    print(json.dumps(figures))
    sys.exit(bool(wrong or touched or after != before))


if __name__ == "__main__":
    typer.run(main)
