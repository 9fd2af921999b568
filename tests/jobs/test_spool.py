"""Uploads of jobs: other processes find them, and old ones are removed."""

import asyncio
import io
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serve_app.jobs import spool as spool_module
from serve_app.jobs.spool import Spool, SpoolUnavailable


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


def test_a_folder_that_is_away_is_no_lost_file(tmp_path: Path) -> None:
    """It may not be mounted yet; a file that is missing in a folder that is there is lost."""

    async def run() -> None:
        spool = Spool(str(tmp_path / "spool"))
        name = await put(spool)
        os.rename(tmp_path / "spool", tmp_path / "away")
        with pytest.raises(SpoolUnavailable):
            await read(spool, name)
        os.rename(tmp_path / "away", tmp_path / "spool")
        assert await read(spool, name) == b"audio"
        await spool.remove(name)
        with pytest.raises(FileNotFoundError):
            await read(spool, name)

    asyncio.run(run())


def test_only_our_own_old_uploads_are_swept(tmp_path: Path) -> None:
    """An operator's files, files that a job needs and new files stay."""

    async def run() -> None:
        spool = Spool(str(tmp_path))
        needed, orphan, new = [await put(spool) for _ in range(3)]
        others = ["notes.txt", "0" * 32, f"{orphan}.bak"]
        for name in others:
            (tmp_path / name).write_text("an operator's")
        for name in (needed, orphan, *others):
            os.utime(tmp_path / name, (1, 1))
        await spool.sweep([needed])
        assert set(os.listdir(tmp_path)) == {needed, new, *others}

    asyncio.run(run())


def test_a_store_that_hangs_keeps_nobody_else_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls end as unavailable, and the event loop's own threads stay free meanwhile."""
    monkeypatch.setattr(spool_module, "TIMEOUT_S", 0.2)
    os.mkfifo(tmp_path / "hung")  # to open it for reading takes until somebody opens it for writing

    async def run() -> None:
        spool = Spool(str(tmp_path))
        reading = [asyncio.create_task(read(spool, "hung")) for _ in range(100)]
        await asyncio.sleep(0)
        try:
            assert await asyncio.wait_for(asyncio.to_thread(str), 60) == ""
            for outcome in await asyncio.wait_for(asyncio.gather(*reading, return_exceptions=True), 60):
                assert isinstance(outcome, SpoolUnavailable)
        finally:
            writer = os.open(tmp_path / "hung", os.O_RDWR)
            name = await put(spool)
            os.close(writer)
        assert await read(spool, name) == b"audio"

    asyncio.run(run())
