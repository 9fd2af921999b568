"""The files and URLs to transcribe, also those in folders, and the record of those done before."""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from serve_app.cli import CommandFailed
from serve_app.client.calls import is_url

# Without .ts, which is TypeScript more often than video.
_SUFFIX = re.compile(
    r"\.(3gp|aac|ac3|aiff?|amr|ape|asf|au|avi|awb|caf|eac3|flac|flv|gsm|m4[abv]|mka|mkv|mov|mp[234]"
    r"|mpe?g|mts|og[ag]|opus|tta|w64|wave?|webm|wm[av]|wv)",
    re.IGNORECASE,
)
WATCH_S = 5.0  # a file in a watched folder is complete when it has not changed for this long


@dataclass(frozen=True, slots=True)
class Input:
    """A file or URL, and the path of its outputs in the output folder, without a suffix."""

    source: str
    output: str

    def version(self) -> list[Any]:
        """Values that change when the audio changes. Raises OSError for a file that cannot be read."""
        if is_url(self.source):
            return [self.source]
        status = Path(self.source).stat()
        return [self.source, status.st_size, status.st_mtime_ns]

    def digest(self, *more: Any) -> str:
        """The hash of the audio, or of its URL, and of `more`. Raises OSError."""
        if is_url(self.source):
            return hash_of(self.source, *more)
        with Path(self.source).open("rb") as file:
            return hash_of(hashlib.file_digest(file, "sha256").hexdigest(), *more)


def hash_of(*parts: Any) -> str:
    """The hash of these values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def in_words(error: OSError) -> str:
    """The error in words, with its file."""
    return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)


def url_name(url: str) -> str:
    """The name of a file fetched from this URL. Raises ValueError if it is not a URL."""
    address = urlsplit(url)
    name = PurePosixPath(unquote(address.path)).name or address.hostname or "audio"
    return re.sub(r"[\0-\x1f\x7f]", "_", name)


class Inputs:
    """Gives each file once, and again when it has changed; no two files share a path for outputs.

    `on_error` is called with the error of each folder that cannot be read.
    """

    def __init__(self, on_error: Callable[[OSError], object]) -> None:
        self._on_error = on_error
        self._given: dict[str, tuple[int, int]] = {}  # size and time of sources
        self._outputs: dict[str, str] = {}  # of sources
        self._taken: set[str] = set()  # outputs
        self._unreadable: set[str] = set()

    def found(self, paths: Sequence[str]) -> Iterator[Input]:
        """The inputs at these paths and URLs; for a folder its audio and video files at any depth."""
        for path in paths:
            if is_url(path):
                yield from self._new(path, PurePosixPath(url_name(path)))
            elif Path(path).is_dir():
                for file in sorted(self._media(Path(path))):
                    yield from self._new(str(file), PurePosixPath(file.relative_to(path).as_posix()))
            else:
                yield from self._new(path, PurePosixPath(Path(path).name))

    async def watched(self, folder: Path) -> AsyncIterator[list[Input]]:
        """The new and changed files of a folder, without end, each when it is no longer written to."""
        before: dict[Path, tuple[int, int]] = {}
        while True:
            now = {path: _size_and_time(path) for path in await asyncio.to_thread(list, self._media(folder))}
            whole = sorted(path for path, state in now.items() if before.get(path) == state)
            new = [
                each
                for path in whole
                for each in self._new(str(path), PurePosixPath(path.relative_to(folder).as_posix()))
            ]
            if new:
                yield new
            before = now
            await asyncio.sleep(WATCH_S)

    def _new(self, source: str, name: PurePosixPath) -> Iterator[Input]:
        source = source if is_url(source) else str(Path(source).absolute())
        state = (0, 0) if is_url(source) else _size_and_time(Path(source))
        if self._given.get(source) == state:
            return
        self._given[source] = state
        if source not in self._outputs:
            # a/x.mp3, a/x.wav, b/x.mp3, c/x.mp3: x.srt, x.wav.srt, x.mp3.srt, x.mp3.2.srt
            names = chain((str(name.with_suffix("")), str(name)), (f"{name}.{n}" for n in count(2)))
            self._outputs[source] = next(each for each in names if each not in self._taken)
            self._taken.add(self._outputs[source])
        yield Input(source, self._outputs[source])

    def _media(self, folder: Path) -> Iterator[Path]:
        for parent, folders, names in os.walk(folder, onerror=self._note_unreadable):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if _SUFFIX.fullmatch(Path(name).suffix) and not name.startswith("."):
                    yield Path(parent) / name

    def _note_unreadable(self, error: OSError) -> None:
        if error.filename not in self._unreadable:
            self._unreadable.add(error.filename)
            self._on_error(error)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # it has just been removed
        return 0, 0
    return status.st_size, status.st_mtime_ns


class Done:
    """The record of a folder's outputs: a hidden file with the name of each output and its request's mark.

    The last line of an output counts. Raises CommandFailed where the file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / ".whisperx-serve"
        self._marks: dict[str, str] = {}
        try:
            text = self._file.read_text(errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise CommandFailed(f"the record of earlier runs cannot be read: {in_words(error)}.") from None
        for line in text.splitlines():
            with suppress(ValueError, TypeError):  # a line that was cut off
                output, mark = json.loads(line)
                self._marks[output] = mark

    def has(self, path: Path, mark: str) -> bool:
        """Whether the output at this path was last written for this mark."""
        return self._marks.get(self._name(path)) == mark

    def add(self, paths: Sequence[Path], mark: str) -> None:
        """Records outputs for later runs. Raises OSError."""
        new = {self._name(path): mark for path in paths}
        with self._file.open("a") as file:
            file.write("".join(f"{json.dumps(pair)}\n" for pair in new.items()))
        self._marks |= new

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder))
