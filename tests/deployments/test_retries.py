"""Calls that are made again: what for, how often, with which audio, and after how long."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest
from fakes import References
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayTaskError,
)
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.batching.items import BatcherDied
from serve_app.deadline import timeout
from serve_app.deployments.calls import retries as retries_module
from serve_app.deployments.calls.audio_ref import LOADINGS, LoadedAudio
from serve_app.deployments.calls.handles import AudioLost, Hung, audio_behind, caller
from serve_app.deployments.calls.retries import ATTEMPTS, MOST_DEATHS, lasting, resuming
from serve_app.deployments.calls.spare import or_on_cpu
from serve_app.deployments.metrics import Retries
from serve_app.deployments.watchdog import Patience
from serve_app.errors import ModelCrashed, Overloaded, TranscriptionError, UnusableAudio
from serve_app.transcript import Source, Speech, StageWarning, Window

WINDOW = Window(0.0, 2.0)
LOST = ObjectLostError("ab", None, "")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries_module, "PAUSE_S", 0.0)


class Loading:
    """What a loader's handle gives: references that are numbers, one more each time."""

    def __init__(self) -> None:
        self.asked_for: list[int | None] = []
        self.cancelled = 0

    async def load(self, checksum: int | None, early: bool) -> "Loading":
        self.asked_for.append(checksum)
        assert early == (len(self.asked_for) == 1)
        return self

    async def _to_object_ref_gen(self) -> References:
        return References(self.references(len(self.asked_for)))

    async def references(self, number: int) -> AsyncGenerator[Any, None]:
        yield number

    def cancel(self) -> None:
        self.cancelled += 1


class Request:
    """Audio of one request, and calls whose first outcomes are `errors`."""

    def __init__(self, *errors: Exception) -> None:
        self.loading = Loading()
        self.retries = Retries()
        self.audio = LoadedAudio(Source(), self.loading.load, self.retries)
        self.errors = list(errors)
        self.used: list[int] = []  # references, call after call

    async def call(self, ref: list[int], *_: Any, **__: Any) -> str:
        self.used.append(ref[0])
        await asyncio.sleep(0)  # let the others call, too
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def run(self, calls: int = 1) -> list[str]:
        async def all_at_once() -> list[str]:
            await self.audio.load()
            call = lasting("asr", self.call, self.retries)
            return list(await asyncio.gather(*(call(self.audio, WINDOW) for _ in range(calls))))

        return asyncio.run(all_at_once())


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ActorDiedError(), "replica_died"),
        (NodeDiedError("gone"), "replica_died"),
        (ActorUnavailableError("gone", None), "replica_unavailable"),
        (BatcherDied(), "replica_unavailable"),
        (OutOfMemoryError("killed"), "replica_out_of_memory"),
        (OwnerDiedError("ab", None, ""), "answer_lost"),
        (TranscriptionError("full", None, "asr_out_of_memory"), "out_of_memory"),
    ],
)
def test_what_a_replica_owed_is_asked_for_again(error: Exception, cause: str) -> None:
    """Once more for each trouble, counted by its cause."""
    request = Request(error)
    assert request.run() == ["done"]
    assert request.retries.counts == {("asr", cause): 1}
    assert request.used == [1, 1]


def test_a_callers_error_is_not_asked_for_again() -> None:
    """Audio that cannot be used stays so."""
    request = Request(UnusableAudio("no"))
    with pytest.raises(UnusableAudio):
        request.run()
    assert len(request.used) == 1


def test_attempts_are_bounded() -> None:
    """After the last one a 503 that does not tell what is wrong inside."""
    request = Request(*[ActorUnavailableError("actor", None)] * ATTEMPTS)
    with pytest.raises(Overloaded) as raised:
        request.run()
    assert (raised.value.code, len(request.used)) == ("asr_failed", ATTEMPTS)
    assert "actor" not in raised.value.message


class Replica:
    """Dies of number 13 and takes all that it has with it."""

    def __init__(self) -> None:
        self.deaths = 0
        self.alone: list[int] = []  # numbers that asked for a batch of their own
        self._inside: list[asyncio.Future[str]] = []

    async def call(self, ref: list[int], window: Window, alone: bool, **_: Any) -> str:
        number = int(window.end_s)
        if alone:
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
    """The others come through alone; it itself ends in an error that asks for no retry."""
    numbers = [1, 2, 3, 4, 5]
    numbers.insert(poison_at, 13)
    replica = Replica()
    request = Request()

    async def run() -> list[Any]:
        await request.audio.load()
        call = lasting("asr", replica.call, request.retries, Patience())
        windows = (call(request.audio, Window(0.0, float(number))) for number in numbers)
        return list(await asyncio.gather(*windows, return_exceptions=True))

    ended = dict(zip(numbers, asyncio.run(run()), strict=True))
    crashed = ended.pop(13)
    assert isinstance(crashed, ModelCrashed)
    assert (crashed.status, crashed.code, crashed.retry_after_s) == (500, "model_crashed", None)
    assert ended == {number: f"<{number}>" for number in ended}
    assert replica.deaths == 4
    assert replica.alone.count(13) == 2


def test_a_suspect_that_hangs_does_not_hold_the_others_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those behind it are told to come again while it still has the stage for itself."""
    monkeypatch.setattr(retries_module, "SUSPECT_WAITS_S", 0.05, raising=False)
    request = Request()
    deaths: Counter[Window] = Counter()
    first, second = Window(0.0, 1.0), Window(1.0, 2.0)
    hangs = asyncio.Event()

    async def call(ref: list[int], window: Window, alone: bool = False, **_: Any) -> None:
        if deaths[window] < 2:
            deaths[window] += 1
            raise ActorDiedError
        hangs.set()
        await asyncio.Event().wait()

    async def run() -> None:
        await request.audio.load()
        stage = lasting("diarization", call, request.retries)
        hanging = asyncio.create_task(stage(request.audio, first))
        await hangs.wait()
        with pytest.raises(Overloaded) as raised:
            async with timeout(10):
                await stage(request.audio, second)
        assert raised.value.code == "diarization_failed"
        hanging.cancel()

    asyncio.run(run())


def test_everybody_hears_of_a_loading_that_cannot_be_begun_again() -> None:
    """A stage that waits for audio ends when another stage's attempt to load it again has failed."""

    class Full(Growing):
        async def load(self, checksum: int | None, early: bool) -> "Loading":
            if self.asked_for:
                raise Overloaded("no room")
            return await super().load(checksum, early)

    request = Request()
    loading = Full(None)
    request.audio = LoadedAudio(Source(), loading.load, request.retries)

    async def run() -> None:
        await request.audio.load()
        version = await request.audio.later_than(0)
        waiting = asyncio.create_task(request.audio.later_than(version))
        with pytest.raises(Overloaded):
            await request.audio.load_again(version)
        with pytest.raises(AudioLost):
            async with timeout(10):
                await waiting

    asyncio.run(run())


def test_a_full_device_stays_the_reason() -> None:
    """After the last attempt the stage's own words reach the caller."""
    request = Request(*[Overloaded("full", None, "asr_out_of_memory")] * ATTEMPTS)
    with pytest.raises(Overloaded, match="full"):
        request.run()


def test_only_what_a_gpu_has_no_memory_for_goes_to_cpus() -> None:
    """Whatever else is wrong would be wrong there, too."""

    async def gpu(code: str) -> str:
        raise Overloaded("not now", None, code)

    async def cpu(code: str) -> str:
        return f"a text after {code}"

    counted = Retries()
    call = or_on_cpu("asr", gpu, cpu, no_replica, counted)
    assert asyncio.run(call("asr_out_of_memory")) == "a text after asr_out_of_memory"
    for code in ("asr_failed", "asr_out_of_host_memory"):
        with pytest.raises(Overloaded, match="not now"):
            asyncio.run(call(code))
    assert counted.counts == {("asr", "on_cpu"): 1}


async def no_replica() -> bool:
    return False


def test_where_no_cpu_replica_starts_the_error_is_the_gpus() -> None:
    """Whether none ever does, Serve has given it up, or it dies; and what comes next does not wait again."""
    asked: list[str] = []

    async def gpu() -> str:
        raise Overloaded("full", None, "asr_out_of_memory")

    async def waiting() -> None:
        asked.append("begun")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            asked.append("cancelled")

    async def given_up() -> str:
        raise DeploymentUnavailableError(DeploymentID("TranscriberOnCpu"))

    async def killed() -> str:
        raise ModelCrashed("it crashes on this audio; leave it out")

    def fails(call: Callable[[], Any]) -> None:
        with pytest.raises(Overloaded, match="full"):
            asyncio.run(call())

    for cpu in (given_up, killed):
        fails(or_on_cpu("asr", gpu, cpu, no_replica, Retries()))
    call = or_on_cpu("asr", gpu, waiting, no_replica, Retries(), start_s=1.0)
    for _ in range(2):
        fails(call)
    assert asked == ["begun", "cancelled"]


def test_lost_audio_is_loaded_once_for_all_that_miss_it() -> None:
    """Three windows lose it together: one more loading, and it must be the same as before."""
    request = Request(*[AudioLost("gone")] * 3)
    request.audio.checksum = 7
    assert request.run(calls=3) == ["done"] * 3
    assert request.used == [1, 1, 1, 2, 2, 2]
    assert request.loading.asked_for == [7, 7]
    assert request.retries.counts == {("loader", "audio_lost"): 1, ("asr", "audio_lost"): 3}


def test_audio_is_not_loaded_for_ever() -> None:
    """A file that takes its loader down every time is given up."""
    request = Request(*[AudioLost("gone")] * 100)
    with pytest.raises(Overloaded):
        request.run(calls=3)
    assert len(request.loading.asked_for) <= LOADINGS


@pytest.mark.parametrize(
    "error", [LOST, ActorDiedError(), RayTaskError("load", "", LOST).as_instanceof_cause()]
)
def test_a_stage_without_audio_says_so(error: Exception) -> None:
    """Whether the object, its loader or a piece of the upload is gone: the stage itself has not died."""

    async def run() -> None:
        gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        gone.set_exception(error)
        with pytest.raises(AudioLost):
            await audio_behind([gone])

    asyncio.run(run())


class Search:
    """Finds a window in each of so many parts, from number `scan` on, and breaks off before some of them."""

    def __init__(self, breaks: Sequence[tuple[int, Exception]], parts: int = 5) -> None:
        self.windows = [Window(float(n), n + 1.0) for n in range(parts)]
        self.breaks = list(breaks)
        self.scans: list[Any] = []

    async def detect(self, ref: list[int], scan: Any, request_id: str) -> AsyncGenerator[Speech, None]:
        self.scans.append(scan)
        yield Speech((), 5.0, (StageWarning("decode", "truncated_audio", ""),), checksum=5)
        for number in range(scan or 0, len(self.windows)):
            if self.breaks and self.breaks[0][0] == number:
                raise self.breaks.pop(0)[1]
            yield Speech((self.windows[number],), 5.0, scan=number + 1)

    def parts(self, request: Request) -> list[Speech]:
        async def run() -> list[Speech]:
            await request.audio.load()
            search = resuming("speech", self.detect, request.retries)
            return [part async for part in search(request.audio, "id")]

        return asyncio.run(run())


def test_a_search_that_breaks_off_goes_on() -> None:
    """Windows come once each and in order, and what is said of the file is said once."""
    request = Request()
    search = Search([(2, AudioLost("gone")), (2, ActorDiedError()), (4, AudioLost("gone"))])
    parts = search.parts(request)
    assert [window for part in parts for window in part.windows] == search.windows
    assert search.scans == [None, 2, 2, 4]
    assert sum(len(part.warnings) for part in parts) == 1
    assert request.audio.checksum == 5


def test_a_search_that_gets_on_outlives_more_deaths_than_other_calls() -> None:
    """One at each window; but not for ever."""
    request = Request()
    search = Search([(number, ActorDiedError()) for number in range(MOST_DEATHS - 1)], parts=100)
    assert [window for part in search.parts(request) for window in part.windows] == search.windows
    assert request.retries.counts == {("speech", "replica_died"): MOST_DEATHS - 1}
    with pytest.raises(ModelCrashed):
        Search([(number, ActorDiedError()) for number in range(MOST_DEATHS)], parts=100).parts(Request())


@pytest.mark.parametrize(("at", "scans"), [(0, [None] * 4), (3, [None, 3, 3, 3])])
def test_a_search_that_always_dies_at_the_same_place_ends(at: int, scans: list[int | None]) -> None:
    """What was found before that does not excuse the file."""
    search = Search([(at, ActorDiedError())] * 10)
    with pytest.raises(ModelCrashed):
        search.parts(Request())
    assert search.scans == scans


def test_a_suspect_that_gets_on_stays_one() -> None:
    """Or others, which only share its replicas, would be blamed for what it does now and then."""
    search = Search([(0, ActorDiedError())] * 2 + [(3, ActorDiedError())] * 10)
    with pytest.raises(ModelCrashed):
        search.parts(Request())
    assert search.scans == [None, None, None, 3]


class Growing(Loading):
    """A first loading that gives the beginning and ends in `end`, and others that give the whole: the number
    of the loading, and whether it is all.
    """

    def __init__(self, end: Exception | None) -> None:
        super().__init__()
        self.end = end
        self.go_on = asyncio.Event()

    async def references(self, number: int) -> AsyncGenerator[Any, None]:
        if number == 1:
            yield (1, "beginning")
            await self.go_on.wait()
        yield self.end if number == 1 and self.end else (number, "whole")


@pytest.mark.parametrize(("end", "loadings"), [(None, 1), (AudioLost("killed"), 2)])
def test_a_file_is_searched_while_it_is_decoded(end: Exception | None, loadings: int) -> None:
    """From where the search of its beginning ended, whatever happens to the loader meanwhile; calls about a
    window have what there is, calls about the whole file wait.
    """
    request = Request()
    loading = Growing(end)
    request.audio = LoadedAudio(Source(), loading.load, request.retries)
    windows = {"beginning": (Window(0.0, 1.0), Window(1.0, 2.0)), "whole": (Window(2.0, 3.0),)}
    searched: list[tuple[Any, Any]] = []

    async def detect(ref: list[Any], scan: Any, request_id: str) -> AsyncGenerator[Speech, None]:
        (found,) = ref
        searched.append((found, scan))
        if isinstance(found, Exception):
            raise found
        how_much = found[1]
        begins = how_much == "beginning"
        yield Speech((), 2.0 if begins else 3.0, whole=not begins)
        yield Speech(windows[how_much], 2.0, whole=not begins, scan=f"in the {how_much}")
        if begins:
            yield Speech((), 2.0, whole=False, scan="searched to here")

    async def used(ref: list[Any], *_: Any, **__: Any) -> Any:
        if isinstance(ref[0], Exception):
            raise ref[0]
        return ref[0]

    async def run() -> list[Window]:
        await request.audio.load()
        about_all = asyncio.ensure_future(lasting("diarization", used, request.retries)(request.audio))
        about_window = lasting("asr", used, request.retries, Patience())
        found: list[Window] = []
        async for part in resuming("speech", detect, request.retries)(request.audio, "id"):
            found += part.windows
            if part.scan == "searched to here":
                assert await about_window(request.audio, WINDOW) == (1, "beginning")
                assert not about_all.done()
                loading.go_on.set()
        assert await about_all == await about_window(request.audio, WINDOW) == (loadings, "whole")
        return found

    assert asyncio.run(run()) == [*windows["beginning"], *windows["whole"]]
    assert searched[0] == ((1, "beginning"), None)
    assert searched[-1] == ((loadings, "whole"), "searched to here")
    assert len(loading.asked_for) == loadings


def test_a_loading_that_gives_nothing_is_begun_again() -> None:
    """As when its replica is gone before anything of it has come."""
    request = Request()

    class Empty(Loading):
        async def references(self, number: int) -> AsyncGenerator[Any, None]:
            if number == 1:
                raise ActorDiedError
            yield number

    request.loading = Empty()
    request.audio = LoadedAudio(Source(), request.loading.load, request.retries)
    assert request.run(calls=3) == ["done"] * 3
    assert request.used == [2, 2, 2]


@pytest.mark.parametrize("about_whole_file", [True, False])
@pytest.mark.parametrize("broken_loading", [1, 2])
def test_a_programming_error_is_not_lost_audio(broken_loading: int, about_whole_file: bool) -> None:
    """Whoever waits for the audio hears of it at once: loading again, now or later, would not help."""
    request = Request(AudioLost("gone"))

    class Broken(Loading):
        async def references(self, number: int) -> AsyncGenerator[Any, None]:
            if number == broken_loading:
                raise AttributeError("a Ray without this method")
            yield number

    request.loading = Broken()
    request.audio = LoadedAudio(Source(), request.loading.load, request.retries)

    async def run() -> None:
        await request.audio.load()
        patience = None if about_whole_file else Patience()
        await lasting("asr", request.call, request.retries, patience)(request.audio, WINDOW)

    with pytest.raises(AttributeError, match="a Ray without this method"):
        asyncio.run(run())
    assert len(request.loading.asked_for) == broken_loading


def test_a_call_that_a_hung_replica_has_is_made_again() -> None:
    """Its deadline is by the length of the window and costs no attempt; the next one is twice as long."""
    limits_s: list[float] = []
    request = Request()

    async def hanging(ref: list[int], *_: Any, limit_s: Callable[[], float]) -> str:
        limits_s.append(limit_s())
        if len(limits_s) <= ATTEMPTS:
            raise Hung
        return "done"

    async def run() -> Any:
        await request.audio.load()
        return await lasting("asr", hanging, request.retries, Patience(1.0, 0.5))(request.audio, WINDOW)

    assert asyncio.run(run()) == "done"
    assert limits_s == [2.0 * 2**n for n in range(ATTEMPTS + 1)]
    assert request.retries.counts == {("asr", "hung"): ATTEMPTS}


def test_a_long_queue_is_not_a_hung_replica() -> None:
    """Where others' windows took long, this one may too: the deadline follows while the call runs."""
    request = Request()
    limit: list[Callable[[], float]] = []

    async def noting(ref: list[int], *_: Any, limit_s: Callable[[], float]) -> None:
        limit.append(limit_s)

    async def run() -> None:
        await request.audio.load()
        await lasting("asr", noting, request.retries, Patience(1.0, 0.5))(request.audio, WINDOW)
        request.audio.slowest_s[noting] = 10.0

    asyncio.run(run())
    assert limit[0]() == 32.0


class Response:
    """Of a handle: accepted when `taken` is set, answered never."""

    def __init__(self) -> None:
        self.taken = asyncio.Event()
        self.cancelled = False

    def remote(self, *_: Any) -> "Response":
        return self

    async def _to_object_ref(self) -> None:
        await self.taken.wait()

    def __await__(self) -> Any:
        return asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.cancelled = True


def test_waiting_for_a_replica_is_not_hanging() -> None:
    """A call's time runs from when a replica has taken it: until then none may live. Then it is cancelled."""

    async def run() -> None:
        response = Response()
        call = asyncio.create_task(caller(response)(limit_s=lambda: 0.0))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not call.done()
        response.taken.set()
        with pytest.raises(Hung):
            await asyncio.wait_for(call, 10)
        assert response.cancelled

    asyncio.run(run())
