"""Windows of all requests share one gate: how many are in flight, and whose turn it is."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from fakes import FakeStages, recording, window_text
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio import AudioInfo, Source
from serve_app.batching.batcher import Batcher
from serve_app.options import Options
from serve_app.request.admission import WindowGate
from serve_app.request.calls import DetectCall, TranscribeCall
from serve_app.request.pipeline import transcribe
from serve_app.transcript import Speech, Window, WindowText

ROUTER_QUEUE = (
    1024  # calls that a replica takes; those behind wait in Serve's router, first come first served
)
BATCH = 16


class SteppedDevice:
    """Runs a batch when it is told to."""

    def __init__(self) -> None:
        self.step = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def run(self, items: list[Any]) -> list[Any]:
        self.step.acquire()
        self.ended.release()
        return items


def test_a_clip_behind_twenty_long_files_waits_for_three_batches_at_most() -> None:
    """However much the files have queued, a later request's window is among the next to run."""

    async def run() -> int:
        device = SteppedDevice()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=BATCH)
        router = asyncio.Semaphore(ROUTER_QUEUE)
        fake = FakeStages(recording(1))
        searched = asyncio.Semaphore(0)

        async def detect(call: DetectCall) -> Speech:
            searched.release()
            return Speech(tuple(Window(float(n), n + 1.0) for n in range(call.audio.windows)), None, 0.0)

        async def recognise(call: TranscribeCall) -> WindowText:
            async with router:
                await batcher.submit(call.window, call.request_id, is_first=call.is_first)
            return window_text(1, call.language)

        stages = replace(
            fake.stages(diarizes=False, windows_in_flight=192), detect=detect, transcribe=recognise
        )

        def request(windows: int) -> "asyncio.Task[Any]":
            own = replace(stages, load=lambda source: nullcontext(Windows(windows)))
            return asyncio.create_task(transcribe(own, Source(), Options(language="en")))

        files = [request(144) for _ in range(20)]
        for _ in files:
            await searched.acquire()
        for _ in range(20):  # each of their windows has come as far as it can
            await asyncio.sleep(0)
        clip = request(1)
        waited = 0
        while not clip.done():
            device.step.release()
            waited += 1
            await asyncio.to_thread(device.ended.acquire)
            for _ in range(20):  # what the batch has freed moves up
                await asyncio.sleep(0)
        for file in files:
            file.cancel()
        device.step.release(1000)
        await asyncio.gather(*files, return_exceptions=True)
        return waited

    assert asyncio.run(run()) <= 3


@dataclass
class Windows:
    """Audio that is only a number of windows."""

    windows: int

    async def parts(self) -> AsyncGenerator[AudioInfo]:
        yield AudioInfo(0.0, float(self.windows), is_last=True)


@given(
    max_windows=st.integers(1, 5),
    windows=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    cancelled=st.sets(st.integers(0, 40)),
)
def test_places_are_bounded_shared_in_turn_and_never_lost(
    max_windows: int, windows: list[int], cancelled: set[int]
) -> None:
    """Whatever is cancelled, every other window gets in, and never too many at once."""

    async def run() -> None:
        gate = WindowGate(max_windows)
        inside, most, entered = 0, 0, list[int]()

        async def window(request: int) -> None:
            nonlocal inside, most
            async with gate.place(str(request)):
                inside += 1
                most = max(most, inside)
                entered.append(request)
                try:
                    await asyncio.sleep(0)
                finally:
                    inside -= 1

        requests = [request for request, count in enumerate(windows) for _ in range(count)]
        tasks = [asyncio.create_task(window(request)) for request in requests]
        await asyncio.sleep(0)
        for number in cancelled:
            if number < len(tasks):
                tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= max_windows + len(windows) - 1
        left = sum(not task.cancelled() for task in tasks)
        assert len(entered) >= left
        async with asyncio.timeout(1):  # all places are free again
            for _ in range(max_windows):
                await gate.place("later").__aenter__()

    asyncio.run(run())


def test_requests_enter_in_turn() -> None:
    """A request that comes later waits for one window of each earlier one, not for all of them."""

    async def run() -> list[str]:
        gate, entered = WindowGate(1), list[str]()

        async def window(request_id: str) -> None:
            async with gate.place(request_id):
                entered.append(request_id)
                await asyncio.sleep(0)

        names = ["a"] * 4 + ["b"] * 3
        await asyncio.gather(*(window(name) for name in names))
        return entered

    assert asyncio.run(run()) == ["a", "b", "a", "b", "a", "b", "a"]


def test_a_request_with_nothing_inside_does_not_wait() -> None:
    """A clip's window enters however many of a long file's are in, and wait."""

    async def run() -> None:
        gate = WindowGate(2)
        async with gate.place("file"), gate.place("file"):
            waiting = asyncio.create_task(gate.place("file").__aenter__())
            await asyncio.sleep(0)
            async with asyncio.timeout(1), gate.place("clip"):
                assert not waiting.done()
                assert gate.waiting == 1
        await waiting
        assert gate.waiting == 0

    asyncio.run(run())
