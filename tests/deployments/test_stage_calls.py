"""Calls that are made again: what for, how often, with which audio, and when they are given up."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import Reference, References
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayTaskError,
)
from tenacity import wait_none

from serve_app.audio import AudioInfo, Selection, Source
from serve_app.batching.batcher import BatcherDied
from serve_app.deployments.calls import stage_calls
from serve_app.deployments.calls.audio_ref import MAX_LOADINGS, AudioSlice, LoadedAudio
from serve_app.deployments.calls.handles import AudioLost
from serve_app.deployments.calls.stage_calls import MAX_ATTEMPTS, Stage
from serve_app.deployments.metrics import RequestMetrics, Retries
from serve_app.errors import InvalidRequest, ModelCrashed, OutOfMemory, Overloaded, UnusableAudio
from serve_app.request.admission import Admission
from serve_app.request.calls import AlignCall, DiarizeCall, StageCall
from serve_app.transcript import KnownSpeaker, Window, WindowText

TEXT = WindowText("a", "en", None, -0.1, 0.0, 1.0)
LOST = ObjectLostError("ab", None, "")
TWO_PARTS = (AudioInfo(0.0, 30.0, is_last=False, checksum=7), AudioInfo(30.0, 45.0, is_last=True, checksum=7))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_calls, "PAUSE", wait_none())


class Loader:
    """What a loader's handle gives. The samples of part n of loading m are the text "m.n"."""

    def __init__(self, *parts: AudioInfo) -> None:
        self.parts = parts or (AudioInfo(0.0, 10.0, is_last=True, checksum=7),)
        self.asked_for: list[int | None] = []
        self.ends_in: dict[int, Exception] = {}  # number of the loading -> its error, after the first part
        self.may_go_on = asyncio.Event()  # behind the first part
        self.may_go_on.set()

    async def start(self, checksum: int | None) -> "Loader":
        self.asked_for.append(checksum)
        await asyncio.sleep(0)  # as a call of a handle, it lets others run
        return self

    async def _to_object_ref_gen(self) -> References:
        return References(self._references(len(self.asked_for)))

    async def _references(self, loading: int) -> AsyncGenerator[Any, None]:
        for number, part in enumerate(self.parts):
            if number:
                await self.may_go_on.wait()
                if loading in self.ends_in:
                    yield Reference(self.ends_in[loading])
                    return
            yield Reference(part)
            yield Reference(f"{loading}.{number}")

    def cancel(self) -> None:
        """It has ended, or need not go on."""


class Request:
    """Audio of one request, and a stage whose first outcomes are `errors`."""

    def __init__(self, *errors: Exception, loader: Loader | None = None) -> None:
        self.loader = loader or Loader()
        self.retries = Retries()
        self.audio = LoadedAudio(self.loader.start, self.retries)
        self.errors = list(errors)
        self.used: list[list[str]] = []  # samples that each call had
        self.runs_alone: list[bool] = []

    def remote(self, call: StageCall) -> Awaitable[str]:
        return _Response(self._answer(call))

    async def _answer(self, call: StageCall) -> str:
        audio: AudioSlice = call.audio
        self.used.append([await part[0] for part in audio.parts])
        self.runs_alone.append(call.runs_alone)
        await asyncio.sleep(0)  # let the others call, too
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def call(self, start_s: float = 0.0, end_s: float = 2.0) -> AlignCall:
        return AlignCall(audio=self.audio, request_id="id", window=Window(start_s, end_s), text=TEXT)

    def run(self, calls: int = 1) -> list[str]:
        async def all_at_once() -> list[str]:
            await self.audio.load()
            stage: Stage[Any] = Stage("asr", self, self.retries)
            return list(await asyncio.gather(*(stage.call(self.call(), 0.0, 2.0) for _ in range(calls))))

        return asyncio.run(all_at_once())


class _Response:
    """Of a handle's call."""

    def __init__(self, answer: Awaitable[Any]) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        return self._answer.__await__()

    def cancel(self) -> None: ...


class Method:
    """A handle's method that runs this function."""

    def __init__(self, function: Callable[[Any], Awaitable[Any]]) -> None:
        self._function = function

    def remote(self, call: Any) -> _Response:
        return _Response(self._function(call))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ActorDiedError(), "replica_died"),
        (NodeDiedError("gone"), "replica_died"),
        (ActorUnavailableError("gone", None), "replica_unavailable"),
        (BatcherDied(), "replica_unavailable"),
        (OutOfMemoryError("killed"), "replica_out_of_memory"),
        (OwnerDiedError("ab", None, ""), "answer_lost"),
        (OutOfMemory("full", None, "asr_out_of_memory"), "out_of_memory"),
    ],
)
def test_a_call_is_made_again_where_that_helps(error: Exception, cause: str) -> None:
    """Once more for each trouble, counted by its cause."""
    request = Request(error)
    assert request.run() == ["done"]
    assert request.retries.counts == {("asr", cause): 1}
    assert request.used == [["1.0"]] * 2


@pytest.mark.parametrize("error", [UnusableAudio("no"), ValueError("a mistake"), Overloaded("full")])
def test_other_errors_are_not_retried(error: Exception) -> None:
    """Audio that cannot be used stays so, and so does a mistake of ours."""
    request = Request(error)
    with pytest.raises(type(error)):
        request.run()
    assert len(request.used) == 1


def test_attempts_are_bounded() -> None:
    """After the last one a 503 that does not tell what is wrong inside."""
    request = Request(*[ActorUnavailableError("actor", None)] * MAX_ATTEMPTS)
    with pytest.raises(Overloaded) as raised:
        request.run()
    assert (raised.value.code, len(request.used)) == ("asr_failed", MAX_ATTEMPTS)
    assert "actor" not in raised.value.message


def test_calls_of_another_model_are_counted_as_its_own() -> None:
    """The error's code is that of recognition all the same: clients know no models of it."""
    request = Request(*[ActorUnavailableError("actor", None)] * MAX_ATTEMPTS)

    async def run() -> None:
        await request.audio.load()
        stage: Stage[Any] = Stage("asr-small", request, request.retries)
        await stage.call_for_window(request.call())

    with pytest.raises(Overloaded, match="The asr-small stage keeps failing") as raised:
        asyncio.run(run())
    assert raised.value.code == "asr_failed"
    assert request.retries.counts == {("asr-small", "replica_unavailable"): MAX_ATTEMPTS - 1}


def test_a_full_device_stays_the_reason() -> None:
    """After the last attempt the stage's own words reach the caller."""
    request = Request(*[OutOfMemory("full", None, "asr_out_of_memory")] * MAX_ATTEMPTS)
    with pytest.raises(OutOfMemory, match="full"):
        request.run()


class Replica:
    """Dies of number 13 and takes all that it has with it."""

    def __init__(self) -> None:
        self.deaths = 0
        self.alone: list[int] = []  # numbers that had a batch of their own
        self._inside: list[asyncio.Future[str]] = []

    async def align(self, call: AlignCall) -> str:
        number = int(call.window.end_s)
        if call.runs_alone:
            self.alone.append(number)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._inside.append(answer)
        for _turn in range(3):  # let the others come, too
            await asyncio.sleep(0)
        if number == 13 and not answer.done():
            self.deaths += 1
            for other in self._inside:
                if not other.done():
                    other.set_exception(ActorDiedError())
            self._inside.clear()
        elif not answer.done():
            answer.set_result(f"<{number}>")
        return await answer


@pytest.mark.parametrize("poison_at", [0, 5])
def test_a_window_that_kills_its_replica_costs_nobody_else(poison_at: int) -> None:
    """The others come through; it itself ends in an error that asks for no retry."""
    numbers = [1, 2, 3, 4, 5]
    numbers.insert(poison_at, 13)
    replica, request = Replica(), Request()

    async def run() -> list[Any]:
        await request.audio.load()
        stage: Stage[Any] = Stage("asr", Method(replica.align), request.retries)
        calls = (stage.call(request.call(0.0, float(number)), 0.0, 1.0) for number in numbers)
        return list(await asyncio.gather(*calls, return_exceptions=True))

    ended = dict(zip(numbers, asyncio.run(run()), strict=True))
    crashed = ended.pop(13)
    assert isinstance(crashed, ModelCrashed)
    assert (crashed.status, crashed.code, crashed.retry_after_s) == (500, "model_crashed", None)
    assert ended == {number: f"<{number}>" for number in ended}
    assert replica.deaths == 5
    assert replica.alone.count(13) == 3


def test_a_quarantined_call_that_hangs_does_not_hold_the_others_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those behind it are told to come again while it still has the stage for itself."""
    monkeypatch.setattr(stage_calls, "QUARANTINE_TIMEOUT_S", 0.05)
    request = Request()
    deaths: Counter[float] = Counter()
    hangs = asyncio.Event()

    async def die_twice_then_hang(call: AlignCall) -> None:
        if deaths[call.window.start_s] < 2:
            deaths[call.window.start_s] += 1
            raise ActorDiedError
        hangs.set()
        await asyncio.Event().wait()

    async def run() -> None:
        await request.audio.load()
        stage: Stage[Any] = Stage("alignment", Method(die_twice_then_hang), request.retries)
        hanging = asyncio.create_task(stage.call(request.call(0.0), 0.0, 1.0))
        await hangs.wait()
        with pytest.raises(Overloaded) as raised:
            async with asyncio.timeout(10):
                await stage.call(request.call(1.0), 1.0, 2.0)
        assert raised.value.code == "alignment_failed"
        hanging.cancel()

    asyncio.run(run())


def test_lost_audio_is_loaded_once_for_all_that_miss_it() -> None:
    """Three windows lose it together: one more loading, and it must be the same as before."""
    request = Request(*[AudioLost("gone")] * 3)
    assert request.run(calls=3) == ["done"] * 3
    assert request.used == [["1.0"]] * 3 + [["2.0"]] * 3
    assert request.loader.asked_for == [None, 7]
    assert request.retries.counts == {("loader", "audio_lost"): 1, ("asr", "audio_lost"): 3}


def test_audio_is_not_loaded_for_ever() -> None:
    """A file that takes its loader down every time is given up."""
    request = Request(*[AudioLost("gone")] * 100)
    with pytest.raises(Overloaded):
        request.run(calls=3)
    assert len(request.loader.asked_for) <= MAX_LOADINGS


@pytest.mark.parametrize(
    "error", [LOST, ActorDiedError(), RayTaskError("load", "", LOST).as_instanceof_cause()]
)
def test_a_stage_without_audio_says_so(error: Exception) -> None:
    """Whether the object, its loader or a piece of the upload is gone: the stage itself has not died."""

    async def run() -> None:
        with pytest.raises(AudioLost):
            await AudioSlice([[Reference(error)]], 0.0).samples()

    asyncio.run(run())


def test_calls_get_the_parts_that_they_are_about_as_soon_as_those_are_there() -> None:
    """A window has its part while the rest is being decoded; a call about the whole file waits for all."""

    async def run() -> None:
        loader = Loader(*TWO_PARTS)
        loader.may_go_on.clear()
        request = Request(loader=loader)
        await request.audio.load()
        stage: Stage[Any] = Stage("asr", request, request.retries)
        parts = request.audio.parts()
        assert await anext(parts) == TWO_PARTS[0]
        assert await stage.call(request.call(1.0, 30.0), 1.0, 30.0) == "done"
        whole = asyncio.create_task(stage.call(request.call()))
        across = asyncio.create_task(stage.call(request.call(29.0, 31.0), 29.0, 31.0))
        await asyncio.wait({whole, across}, timeout=0.05)
        assert not whole.done()
        assert not across.done()
        loader.may_go_on.set()
        await asyncio.gather(whole, across)
        assert await anext(parts) == TWO_PARTS[1]
        with pytest.raises(StopAsyncIteration):
            await anext(parts)
        assert await stage.call(request.call(31.0, 45.0), 31.0, 45.0) == "done"
        assert request.used == [["1.0"], ["1.0", "1.1"], ["1.0", "1.1"], ["1.1"]]

    asyncio.run(run())


@pytest.mark.parametrize("end", [ActorDiedError(), AudioLost("a piece of the upload")])
def test_a_loading_that_breaks_off_is_begun_again(end: Exception) -> None:
    """Whoever follows the parts gets each once; calls have those of the new loading."""

    async def run() -> None:
        loader = Loader(*TWO_PARTS)
        loader.ends_in[1] = end
        request = Request(loader=loader)
        await request.audio.load()
        assert [part async for part in request.audio.parts()] == list(TWO_PARTS)
        assert loader.asked_for == [None, 7]
        assert await Stage("asr", request, request.retries).call(request.call()) == "done"
        assert request.used == [["2.0", "2.1"]]

    asyncio.run(run())


@pytest.mark.parametrize("error", [UnusableAudio("not audio"), ValueError("a mistake")])
def test_what_is_wrong_with_a_file_is_heard_by_all_and_not_retried(error: Exception) -> None:
    """By who follows the parts, by calls that wait for one, and by those that come later."""

    async def run() -> None:
        loader = Loader(*TWO_PARTS)
        loader.ends_in[1] = error
        request = Request(loader=loader)
        await request.audio.load()
        stage: Stage[Any] = Stage("asr", request, request.retries)
        waiting = asyncio.create_task(stage.call(request.call()))
        for heard in (waiting, stage.call(request.call(31.0, 40.0), 31.0, 40.0)):
            with pytest.raises(type(error)):
                await heard
        with pytest.raises(type(error)):
            async for _ in request.audio.parts():
                pass
        assert loader.asked_for == [None]
        assert request.retries.counts == {}

    asyncio.run(run())


def test_everybody_hears_of_a_loading_that_cannot_be_begun_again() -> None:
    """A call that waits for audio ends when another call's attempt to load it again has failed."""

    class Full(Loader):
        async def start(self, checksum: int | None) -> Loader:
            if self.asked_for:
                raise Overloaded("no room")
            return await super().start(checksum)

    async def run() -> None:
        loader = Full(*TWO_PARTS)
        loader.may_go_on.clear()
        request = Request(AudioLost("gone"), loader=loader)
        await request.audio.load()
        stage: Stage[Any] = Stage("asr", request, request.retries)
        waiting = asyncio.create_task(stage.call(request.call(31.0, 40.0), 31.0, 40.0))
        with pytest.raises(Overloaded):
            await stage.call(request.call(), 0.0, 2.0)
        with pytest.raises(Overloaded):
            async with asyncio.timeout(10):
                await waiting

    asyncio.run(run())


def test_known_speakers_clips_are_loaded_again_with_the_file() -> None:
    """Which of them was lost does not show."""
    request, clip = Request(), Request()
    used: list[tuple[str, str]] = []

    async def diarize(call: DiarizeCall) -> str:
        (speaker,) = call.known
        used.append((await call.audio.parts[0][0], await speaker.clip.parts[0][0]))
        if len(used) == 1:
            raise AudioLost("one of them")
        return "turns"

    async def run() -> str:
        await request.audio.load()
        await clip.audio.load()
        stage: Stage[Any] = Stage("diarization", Method(diarize), request.retries)
        known = (KnownSpeaker("Ada", clip.audio),)
        answer: str = await stage.call(DiarizeCall(audio=request.audio, request_id="id", known=known))
        return answer

    assert asyncio.run(run()) == "turns"
    assert used == [("1.0", "1.0"), ("2.0", "2.0")]


def test_a_part_that_is_too_much_for_the_server_ends_the_request() -> None:
    """What is noted of its length may refuse it, long after the request was let in."""

    def refuse(audio: LoadedAudio, part: AudioInfo) -> None:
        if part.end_s > 30:
            raise Overloaded("too much")

    async def run() -> None:
        audio = LoadedAudio(Loader(*TWO_PARTS).start, Retries(), refuse)
        await audio.load()
        parts = audio.parts()
        await anext(parts)
        with pytest.raises(Overloaded, match="too much"):
            await anext(parts)

    asyncio.run(run())


def test_many_that_wait_for_a_loading_that_breaks_off_begin_one_more() -> None:
    """However many calls wait for parts of the file, and follow them."""

    async def run() -> None:
        loader = Loader(*TWO_PARTS)
        loader.ends_in[1] = ActorDiedError()
        loader.may_go_on.clear()
        request = Request(loader=loader)
        await request.audio.load()
        stage: Stage[Any] = Stage("asr", request, request.retries)
        calls = [asyncio.create_task(stage.call(request.call(31.0, 40.0), 31.0, 40.0)) for _ in range(5)]
        parts = request.audio.parts()
        await anext(parts)
        loader.may_go_on.set()
        await asyncio.gather(*calls, anext(parts))
        assert request.retries.counts == {("loader", "audio_lost"): 1}

    asyncio.run(run())


def test_a_call_that_is_cancelled_on_the_replicas_side_is_made_again() -> None:
    """As when its process ends: as a cancellation it would end the window's task without a word."""
    request = Request(asyncio.CancelledError())  # type: ignore[arg-type]
    assert request.run() == ["done"]
    assert request.retries.counts == {("asr", "replica_unavailable"): 1}


def test_parts_that_are_loaded_again_are_not_counted_again() -> None:
    """A running request does not lose its room to others that came meanwhile."""
    noted: list[float] = []

    async def run() -> None:
        loader = Loader(*TWO_PARTS)
        audio = LoadedAudio(loader.start, Retries(), lambda _, part: noted.append(part.end_s))
        await audio.load()
        _, loading = await audio.between()
        await audio.load_again(loading)
        await audio.between()

    asyncio.run(run())
    assert noted == [30.0, 45.0]


def test_a_loader_that_dies_as_it_takes_the_file_again_is_not_the_files_fault() -> None:
    """The next loading may come through."""

    class Dying(Loader):
        async def start(self, checksum: int | None) -> Loader:
            await super().start(checksum)
            if len(self.asked_for) == 2:
                raise ActorDiedError
            return self

    loader = Dying()
    request = Request(AudioLost("gone"), loader=loader)
    assert request.run() == ["done"]
    assert request.used == [["1.0"], ["3.0"]]


class Handle:
    """Of any deployment; all its methods are the handle itself, and loading is the loader's."""

    def __init__(self, loader: Loader | None = None) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return self

    def options(self, **_: Any) -> Any:
        return self

    def remote(self, *_: Any) -> Any:
        return self._loader


def calls_of(handle: Any, admission: Admission) -> stage_calls.StageCalls:
    return stage_calls.StageCalls(
        *[handle] * 5,
        admission=admission,
        max_audio_s=7200.0,
        retries=Retries(),
        metrics=RequestMetrics("request"),
    )


@pytest.mark.parametrize(
    ("part", "charged_s"),
    [
        (AudioInfo(0.0, 30.0, is_last=True), 30.0),
        (AudioInfo(0.0, 30.0, is_last=True, skipped_s=600.0), 630.0),
        (AudioInfo(0.0, 30.0, is_last=True, skipped_s=1e9), 7230.0),  # a gap, of which nothing was decoded
        (AudioInfo(0.0, 30.0, is_last=True, channels=8), 240.0),
        (AudioInfo(0.0, 30.0, is_last=True, skipped_s=600.0, channels=2), 1260.0),
    ],
)
def test_a_key_is_charged_what_was_decoded(
    part: AudioInfo, charged_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where decoding began to the end of the stretch, for each channel that is recognised apart."""
    charged: list[float] = []
    monkeypatch.setattr(stage_calls, "charge", charged.append)
    handle: Any = Handle()
    calls_of(handle, Admission(1, 1.0))._note_length(handle, part)
    assert charged == [charged_s]


@pytest.mark.parametrize(("start_s", "charged_s"), [(600.0, 600.0), (1e9, 7200.0)])
def test_a_start_behind_the_end_is_charged(
    start_s: float, charged_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder had to look for it; other wrong requests cost nothing."""
    charged: list[float] = []
    monkeypatch.setattr(stage_calls, "charge", charged.append)
    source = Source(url="http://example/a.wav", selection=Selection(start_s))

    async def fail(error: Exception) -> None:
        handle = Handle(Loader())
        with pytest.raises(InvalidRequest):
            async with calls_of(handle, Admission(1, 1.0)).load(source):
                raise error

    asyncio.run(fail(InvalidRequest("start_s: the file ends at 5 s.", "start_s")))
    asyncio.run(fail(InvalidRequest("track: there is none.", "track")))
    assert charged == [charged_s]


@pytest.mark.parametrize(("is_last", "held_s"), [(False, 7200.0), (True, 30.0)])
def test_a_file_counts_by_its_declared_length_only_until_it_is_decoded(is_last: bool, held_s: float) -> None:
    """A file of seconds that declares hours keeps nobody else out."""
    held: list[float] = []

    class Noting(Admission):
        def hold(self, audio: object, seconds: float) -> None:
            held.append(seconds)

    handle: Any = Handle()
    calls = calls_of(handle, Noting(1, 1.0))
    part: Any = AudioInfo(0.0, 30.0, is_last=is_last, expected_s=9999.0)
    calls._note_length(handle, part)
    calls._note_length(handle, replace(part, channels=2))  # apart, each takes memory
    assert held == [held_s, 2 * held_s]


def test_calls_about_channels_have_their_rows() -> None:
    """All channels are loaded together, and once more together where they are lost."""
    both = np.array([[1, 2], [3, 4]], np.int16)

    class Rows(Loader):
        async def _references(self, loading: int) -> AsyncGenerator[Any, None]:
            for part in self.parts:
                yield Reference(part)
                yield Reference(LOST if loading == 1 else both)

    async def work() -> None:
        loader, retries = Rows(), Retries()
        audio = LoadedAudio(loader.start, retries)

        async def answer(call: StageCall) -> list[int]:
            return [int(sample) for sample in await call.audio.samples()]

        stage: Stage[Any] = Stage("asr", Method(answer), retries)
        window = Window(0.0, 2.0)
        calls = [
            AlignCall(audio=audio, request_id="id", channel=channel, window=window, text=TEXT)
            for channel in (0, 1)
        ]
        await audio.load()
        assert await asyncio.gather(*(stage.call(call, 0.0, 2.0) for call in calls)) == [[1, 2], [3, 4]]
        assert len(loader.asked_for) == 2
        audio.forget()

    asyncio.run(work())
