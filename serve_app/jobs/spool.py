"""Uploads of jobs that wait: files in a folder, or in a store that fsspec has a driver for, such as S3."""

import asyncio
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serve_app.errors import Overloaded

TIMEOUT_S = 600.0  # of a call; one that hangs in a file server or a bucket goes on in its thread
NAME = re.compile(r"job-[0-9a-f]{32}")  # of our files; files with other names are never removed
ORPHAN_AGE_S = 3600.0  # an upload that is older and has no job was left by a server that died

T = TypeVar("T")


class SpoolUnavailable(Overloaded, code="job_spool_unavailable"):
    """The audio of jobs cannot be written or read now."""


class SpoolAway(SpoolUnavailable):
    """The folder is not there, so no upload can be read."""


class Spool:
    """The files of one folder. A file that `put` has stored survives a power cut."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that no installed driver of fsspec can use."""
        try:
            # A listing that is kept would hide what other processes write.
            self._files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ValueError(f"jobs.spool: {url} cannot be used: {error}") from None
        self._folder = str(path).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)
        # Calls that hang must not take the event loop's own threads, which requests need.
        self._threads = ThreadPoolExecutor(8, "spool")

    async def put(self, file: BinaryIO) -> str:
        """Keeps all of `file`; gives the name that the other methods take. Raises SpoolUnavailable."""
        file.seek(0)
        try:
            return await _in_time(self._threads.submit(self._put, file))
        except Exception as error:  # each driver has errors of its own
            raise _unavailable("stored") from error

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[BinaryIO]:
        """The file, or a copy on this machine, open. Raises FileNotFoundError, SpoolUnavailable."""
        opening = self._threads.submit(self._open, name)
        try:
            file = await _in_time(opening)
        except FileNotFoundError:
            raise
        except BaseException as error:
            opening.add_done_callback(_close)
            if isinstance(error, NotADirectoryError):
                raise SpoolAway(
                    f"The folder {self._folder} (jobs.spool) is not there; try again later."
                ) from error
            if isinstance(error, Exception):
                raise _unavailable("read") from error
            raise
        with file:
            yield file

    async def remove(self, *names: str) -> None:
        """Removes files; `sweep` later removes those that cannot be removed now."""
        if names:
            with suppress(TimeoutError):
                await _in_time(self._threads.submit(self._remove, names))

    async def sweep(self, known: Collection[str]) -> None:
        """Removes old files that `put` has made and that are not among the `known` ones."""
        with suppress(TimeoutError):
            await _in_time(self._threads.submit(self._sweep, known))

    def _put(self, file: BinaryIO) -> str:
        name = f"job-{secrets.token_hex(16)}"
        if not self._is_local:  # object stores show a file only once it is whole
            with self._files.open(self._path(name), "wb") as target:
                shutil.copyfileobj(file, target, 1 << 20)
            return name
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        descriptor = os.open(self._path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as target:
                shutil.copyfileobj(file, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())
            _sync_folder(self._folder)
        except BaseException:
            self._remove([name])
            raise
        return name

    def _open(self, name: str) -> BinaryIO:
        if self._is_local:
            if not os.path.isdir(self._folder):  # not mounted here, perhaps: that says nothing of the file
                raise NotADirectoryError(self._folder)
            return open(self._path(name), "rb")
        with self._files.open(self._path(name), "rb") as kept:
            copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  (the caller closes it)
            shutil.copyfileobj(kept, copy, 1 << 20)
        copy.seek(0)
        return copy

    def _remove(self, names: Collection[str]) -> None:
        for name in names:
            with suppress(Exception):  # it is gone, or `sweep` removes it later
                self._files.rm_file(self._path(name))

    def _sweep(self, known: Collection[str]) -> None:
        with suppress(Exception):  # the next sweep finds them again
            for found in self._files.ls(self._folder, detail=True):
                name = str(found["name"]).rpartition("/")[2]
                is_orphan = name not in known and NAME.fullmatch(name)
                if is_orphan and time.time() - _changed_s(found) > ORPHAN_AGE_S:
                    self._remove([name])

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


def _unavailable(what: str) -> SpoolUnavailable:
    return SpoolUnavailable(f"The audio of the job cannot be {what} now (jobs.spool); try again later.")


async def _in_time(call: "Future[T]") -> T:
    async with asyncio.timeout(TIMEOUT_S):
        return await asyncio.wrap_future(call)


def _close(opening: "Future[BinaryIO]") -> None:
    """Closes a file that was opened too late."""
    with suppress(Exception):  # it was not opened at all
        opening.result().close()


def _changed_s(found: dict[str, Any]) -> float:
    """When a file was written; the drivers call it differently. Unknown: now."""
    changed: Any = found.get("mtime") or found.get("LastModified") or found.get("last_modified")
    return changed.timestamp() if isinstance(changed, datetime) else float(changed or time.time())


def _sync_folder(path: str) -> None:
    """Makes the new name in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
