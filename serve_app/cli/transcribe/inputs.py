"""What is to be transcribed: files, URLs, and what lies in folders; and what of it was done before."""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from serve_app.client.calls import is_url

_SUFFIX = re.compile(
    r"\.(3gp|aac|ac3|aiff?|amr|ape|asf|au|avi|caf|eac3|flac|flv|m4[abv]|mka|mkv|mov|mp[234]|mpe?g|mts|og[ag]"
    r"|opus|ts|tta|w64|wave?|webm|wm[av]|wv)",
    re.IGNORECASE,
)
WATCH_S = 1.0  # a file of a watched folder is whole when it has not changed for so long


@dataclass(frozen=True, slots=True)
class Input:
    """A file or URL, and the path of its outputs in their folder, without a suffix."""

    source: str
    output: str

    def version(self) -> list[Any]:
        """What changes when the audio does. Raises OSError for a file that cannot be read."""
        if is_url(self.source):
            return [self.source]
        status = Path(self.source).stat()
        return [self.source, status.st_size, status.st_mtime_ns]

    def digest(self, *more: Any) -> str:
        """The hash of the audio, or of its URL, and of this. Raises OSError."""
        if is_url(self.source):
            return hash_of(self.source, *more)
        with Path(self.source).open("rb") as file:
            return hash_of(hashlib.file_digest(file, "sha256").hexdigest(), *more)


def hash_of(*parts: Any) -> str:
    """One hash of all of these."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Inputs:
    """Gives each file once, and each a path of its own for its outputs."""

    def __init__(self) -> None:
        self._sources: set[str] = set()
        self._outputs: set[str] = set()

    def found(self, paths: Sequence[str]) -> Iterator[Input]:
        """Those of these paths and URLs; of a folder its audio and video files, by suffix, in any depth."""
        for path in paths:
            if is_url(path):
                address = urlsplit(path)
                name = PurePosixPath(unquote(address.path)).name or address.hostname or "audio"
                yield from self._new(path, PurePosixPath(name))
            elif Path(path).is_dir():
                for file in sorted(_media(Path(path))):
                    yield from self._new(str(file), PurePosixPath(file.relative_to(path).as_posix()))
            else:
                yield from self._new(path, PurePosixPath(Path(path).name))

    async def watched(self, folder: Path, pause: Callable[[float], Any]) -> AsyncIterator[list[Input]]:
        """The new files of a folder, for ever, each when it is no longer written to."""
        before: dict[Path, tuple[int, int]] = {}
        while True:
            now = {path: _size_and_time(path) for path in await asyncio.to_thread(list, _media(folder))}
            whole = sorted(path for path, state in now.items() if before.get(path) == state)
            new = [
                each
                for path in whole
                for each in self._new(str(path), PurePosixPath(path.relative_to(folder).as_posix()))
            ]
            if new:
                yield new
            before = now
            await pause(WATCH_S)

    def _new(self, source: str, name: PurePosixPath) -> Iterator[Input]:
        source = source if is_url(source) else str(Path(source).absolute())
        if source in self._sources:
            return
        short = str(name.with_suffix(""))
        output = str(name) if short in self._outputs else short  # a.mp3 and a.wav: a.srt and a.wav.srt
        self._sources.add(source)
        self._outputs.add(output)
        yield Input(source, output)


def _media(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if _SUFFIX.fullmatch(Path(name).suffix) and not name.startswith("."):
                yield Path(parent) / name


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # it was there a moment ago
        return 0, 0
    return status.st_size, status.st_mtime_ns


class Done:
    """What was transcribed before into a folder: a line for each in a hidden file there."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / ".whisperx-serve"
        self._marks = set(self._file.read_text().split()) if self._file.exists() else set()

    def __contains__(self, mark: str) -> bool:
        return mark in self._marks

    def add(self, mark: str) -> None:
        """Notes it for later runs."""
        self._marks.add(mark)
        with self._file.open("a") as file:
            file.write(f"{mark}\n")
