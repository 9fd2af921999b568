"""Uploads of jobs: what one process keeps, others find, and what is removed."""

import asyncio
import io
import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from serve_app.jobs.spool import Spool


class CachingFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files in memory behind a cache of listings as s3fs has it: what is not in a listing is not found."""

    protocol = "caching"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("caching://")))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self.dircache[self._strip_protocol(path)] = super().ls(path, detail=True, **kwargs)
        return super().ls(path, detail=detail, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":
            self._ls_from_cache(path)  # raises FileNotFoundError
        return super()._open(path, mode, **kwargs)


fsspec.register_implementation("caching", CachingFileSystem)


async def put(spool: Spool, content: bytes = b"audio") -> str:
    return await spool.put(io.BytesIO(content))


async def read(spool: Spool, name: str) -> bytes:
    async with spool.opened(name) as file:
        return file.read()


def test_a_file_of_another_process_is_found_after_a_sweep() -> None:
    """The listing that the sweep has read does not answer for files that came later."""

    async def run() -> None:
        spool = Spool("caching://bucket/jobs")
        first = await put(spool)
        await spool.sweep([first])
        MemoryFileSystem().pipe_file("/bucket/jobs/later", b"the other's")
        assert await read(spool, "later") == b"the other's"

    asyncio.run(run())


def test_only_our_own_old_uploads_are_swept(tmp_path: Path) -> None:
    """Neither an operator's files nor what a job still needs, nor what was just stored."""

    async def run() -> None:
        spool = Spool(str(tmp_path))
        needed, orphan, new = [await put(spool) for _ in range(3)]
        others = ["notes.txt", "0" * 32, f"{orphan}.bak"]
        for name in others:
            (tmp_path / name).write_text("an operator's")
        for name in (needed, orphan, *others):
            os.utime(tmp_path / name, (1, 1))
        await spool.sweep([needed])
        assert {path.name for path in tmp_path.iterdir()} == {needed, new, *others}

    asyncio.run(run())
