"""The audio loader's class without a cluster: disks that are full, and files that wait."""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from fakes import recording as samples
from loopback import SlowFile, answering, intake, recording, serving
from sounds import wav

from serve_app import deployments
from serve_app.audio import AudioInfo, RawAudio, Selection
from serve_app.deployments import audio_loader as loader_module
from serve_app.errors import Overloaded, SourceUnavailable, UnusableAudio
from serve_app.transcript import Samples


def loader() -> Any:
    untyped: Any = deployments.AudioLoader  # Serve's decorator turns the class into a Deployment
    return untyped.func_or_class(intake())


async def loaded(
    url: str | None,
    chunks: Sequence[Awaitable[bytes]] = (),
    *,
    checksum: int | None = None,
    replica: Any = None,
) -> tuple[AudioInfo, Samples]:
    """A file of one part."""
    parts = (replica or loader()).load(url, {}, list(chunks), None, checksum)
    info, loaded_samples = [each async for each in parts]
    assert info.is_last
    return info, loaded_samples


def stored(data: bytes) -> Awaitable[bytes]:
    """Stands for a reference to bytes."""
    found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    found.set_result(data)
    return found


@pytest.mark.parametrize("size", [10, 2 << 20])
@pytest.mark.parametrize("by_url", [True, False])
def test_a_full_disk_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, size: int, by_url: bool) -> None:
    """Whether it shows while the file is written, or only when the last of it is or the file is closed."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115

    async def run() -> None:
        if not by_url:
            await loaded(None, [stored(b"x" * size)])
        async with serving(answering(b"x" * size)) as port:
            await loaded(f"http://127.0.0.1:{port}/")

    with pytest.raises(Overloaded):
        asyncio.run(run())


@pytest.mark.parametrize("slow", ["write", "flush"])
def test_a_slow_disk_stops_nothing_else(slow: str) -> None:
    """While the end of an upload reaches the disk, other calls of the replica go on: a health check, other
    files.
    """

    async def run() -> None:
        with SlowFile(slow) as file:
            joining = asyncio.create_task(loader_module._join([stored(b"x")], file))
            assert await asyncio.to_thread(file.asked.wait, 60)
            file.go_on.set()  # which nobody could if the flush stopped the event loop
            await joining
            assert not file.gave_up

    asyncio.run(run())


def test_no_disk_at_all_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is where not even an empty file can be made."""

    def refuse(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)

    async def run() -> None:
        await loaded(None, [stored(b"x")])

    with pytest.raises(Overloaded):
        asyncio.run(run())


def test_a_long_file_comes_part_by_part() -> None:
    """What is known of each part stands before its samples; together they are the file."""

    async def run() -> None:
        seconds = [1] * 30 + [2] * 30 + [3]
        parts = loader().load(None, {}, [stored(wav(samples(*seconds)))])
        found = [each async for each in parts]
        infos, heard = found[::2], found[1::2]
        spans = [(info.start_s, info.end_s, info.is_last) for info in infos]
        assert spans == [(0.0, 30.0, False), (30.0, 60.0, False), (60.0, 61.0, True)]
        assert np.concatenate(heard).tolist() == samples(*seconds).tolist()
        assert all({"fetch", "decode"} <= set(info.timings) for info in infos)

    asyncio.run(run())


@pytest.mark.parametrize("is_broken", [True, False])
def test_time_that_a_decoder_worked_in_vain_counts(measured: dict[str, float], is_broken: bool) -> None:
    """Where the file is none that can be decoded, and where the client leaves after the first part."""

    async def run() -> None:
        file = b"no audio" * 1000 if is_broken else wav(samples(*[1] * 61))
        parts = loader().load(None, {}, [stored(file)])
        with suppress(UnusableAudio):
            await anext(parts)
        await parts.aclose()

    asyncio.run(run())
    assert measured["whisperx_stage_busy_seconds"] > 0


def test_a_url_that_is_fetched_again_must_give_the_same() -> None:
    """Another recording of the same length would be the second half of this one's transcript."""
    said = {"/one": wav(samples(1, 2)), "/other": wav(samples(1, 3))}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=said[request.path])

    async def run() -> None:
        async with serving(answer) as port:
            url = f"http://127.0.0.1:{port}"
            first, heard = await loaded(f"{url}/one")
            again, heard_again = await loaded(f"{url}/one", checksum=first.checksum)
            assert heard_again.tolist() == heard.tolist()
            assert again.checksum == first.checksum
            with pytest.raises(SourceUnavailable) as refused:
                await loaded(f"{url}/other", checksum=first.checksum)
        assert refused.value.code == "source_changed"

    asyncio.run(run())


@pytest.mark.parametrize(("files", "fetched"), [(1, 0), (2, 1)])
def test_files_that_wait_are_few_and_do_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, files: int, fetched: int
) -> None:
    """Where all places are taken nothing more is fetched; who waits too long is told to come back."""
    monkeypatch.setattr(loader_module, "MAX_FILES", files)
    monkeypatch.setattr(loader_module, "MAX_WAIT_S", 0.05)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    requests: list[web.Request] = []

    async def run() -> None:
        decoding, decoded = asyncio.Event(), asyncio.Event()

        async def decode(*_: Any, **__: Any) -> AsyncGenerator[tuple[AudioInfo, Samples], None]:
            decoding.set()
            await decoded.wait()
            yield AudioInfo(0.0, 1.0, is_last=True), samples(1)

        monkeypatch.setattr(loader_module, "decode", decode)
        replica = loader()
        first = asyncio.create_task(loaded(None, [stored(b"x")], replica=replica))
        await decoding.wait()
        async with serving(recording(requests, answering(b"x"))) as port:
            with pytest.raises(Overloaded):
                await loaded(f"http://127.0.0.1:{port}/", replica=replica)
            assert len(requests) == fetched
            decoded.set()
            assert (await first)[0].end_s == 1.0
            await loaded(f"http://127.0.0.1:{port}/", replica=replica)

    asyncio.run(run())


def test_samples_without_a_header_are_loaded() -> None:
    """As their sender says they are; nothing in them is asked for that."""

    async def run() -> None:
        talk = samples(1, 2)
        parts = loader().load(None, {}, [stored(talk.tobytes())], raw=RawAudio())
        info, found = [each async for each in parts]
        assert info.end_s == 2.0
        assert np.array_equal(found, talk)

    asyncio.run(run())


def test_a_selection_reaches_the_decoder() -> None:
    """Of two channels a stretch, each as a row; the peaks and the length are those of the stretch."""
    both = np.stack([samples(1, 2, 3), samples(4, 5, 6)], axis=1)

    async def run() -> tuple[AudioInfo, Samples]:
        selection = Selection(1.0, 2.0, channels_apart=True)
        parts = loader().load(None, {}, [stored(wav(both))], None, None, None, selection)
        info, loaded_samples = [each async for each in parts]
        return info, loaded_samples

    info, rows = asyncio.run(run())
    assert np.array_equal(rows, [samples(2), samples(5)])
    assert (info.start_s, info.end_s, info.expected_s, info.channels) == (0.0, 1.0, 1.0, 2)
    assert len(info.peaks) == 20
