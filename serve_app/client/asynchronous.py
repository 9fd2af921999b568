"""The client for programs with an event loop; synchronous.py has the same calls and describes them.

The two differ only where they wait; calls.py, answers.py and retries.py have the rest.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar

import httpx
from tenacity import AsyncRetrying

from serve_app.client import answers, calls, retries
from serve_app.client.answers import Event, StreamBroken, connected
from serve_app.client.calls import Audio, Body, Call
from serve_app.client.retries import OnRetry

T = TypeVar("T")


class AsyncClient:
    """Talks to one service as `Client` does, with the same arguments and errors; its calls are awaited."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 3600,
        retry_for_s: float = 120,
        on_retry: OnRetry = lambda error: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(transport=transport, **calls.connection(base_url, api_key, timeout_s))
        self._retry_for_s, self._on_retry = retry_for_s, on_retry
        self.jobs = AsyncJobs(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def transcribe(self, audio: Audio, **options: Any) -> dict[str, Any] | str:
        """The transcript of a file or a URL, as `Client.transcribe` gives it."""
        with calls.body(audio, options) as body:
            return answers.transcript_of(await self.send(calls.prediction(), body))

    async def stream(self, audio: Audio, **options: Any) -> AsyncGenerator[str, None]:
        """The text of a file, piece by piece, as soon as a sentence and all before it are final."""
        with calls.body(audio, calls.streaming(audio, options)) as body:
            async with aclosing(self.follow(calls.streamed(), body)) as events:
                async for event in events:
                    if piece := answers.piece_of(event):
                        yield piece

    async def diarize(self, audio: Audio, **options: Any) -> dict[str, Any] | str:
        """Who speaks when, as `Client.diarize` gives it."""
        with calls.body(audio, options) as body:
            return answers.transcript_of(await self.send(calls.speakers(), body))

    async def detect_speech(self, audio: Audio, **options: Any) -> list[dict[str, int]]:
        """Where speech is, as `Client.detect_speech` gives it."""
        with calls.body(audio, options) as body:
            return answers.list_of(await self.send(calls.speech(), body))

    async def send(self, call: Call, body: Body = dict) -> httpx.Response:
        """The whole answer to a call."""

        async def attempt() -> httpx.Response:
            response = await self._open(call, body)
            with connected(response.url):
                await response.aread()
            return response

        return await self._persistently(call, attempt)

    async def follow(self, call: Call, body: Body = dict) -> AsyncGenerator[Event | None, None]:
        """The events of a stream; None for comments and blank lines. Raises StreamBroken too."""
        response = await self._persistently(call, partial(self._open, call, body))
        reader = answers.EventReader()
        async with aclosing(response):
            with connected(response.url, StreamBroken):
                async for line in response.aiter_lines():
                    yield reader.read(line)

    async def _persistently(self, call: Call, attempt: Callable[[], Awaitable[T]]) -> T:
        policy = retries.policy(self._retry_for_s, call.deadline, self._on_retry)
        return await AsyncRetrying(**policy)(attempt)

    async def _open(self, call: Call, body: Body) -> httpx.Response:
        request = self._http.build_request(**call.arguments(self._http.timeout), **body())
        with connected(request.url):
            response = await self._http.send(request, stream=True)
            if not call.expects(response):
                await response.aread()
                raise answers.error_of(response)
        return response


class AsyncJobs:
    """The jobs of the client's API key: requests that outlive their connections. A job is a dict."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def submit(
        self, audio: Audio, *, idempotency_key: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """A new job, as `Jobs.submit` makes it."""
        with calls.body(audio, options) as body:
            return await self._job(calls.submission(idempotency_key), body)

    async def get(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        return await self._job(calls.of_job("GET", job_id))

    async def list(
        self, status: Sequence[str] = (), limit: int = 20, after: str | None = None
    ) -> dict[str, Any]:
        """A page of `jobs`, newest first; its `next` is the `after` of the next page."""
        return await self._job(calls.page(status, limit, after))

    async def events(
        self, job_id: str, timeout_s: float | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The job now, at each change, and when it has ended. Raises TimeoutError."""
        deadline, seen = retries.Deadline(timeout_s), ""
        while True:
            changes = self._client.follow(calls.events(job_id, seen, deadline))
            with deadline.reconnecting():
                async with aclosing(changes):
                    async for event in changes:
                        deadline.check()
                        if event and event.name != answers.SEGMENTS:
                            seen = event.id
                            yield event.data
                            if answers.has_ended(event.data):
                                return
            await asyncio.sleep(deadline.pause_s())

    async def wait(self, job_id: str, timeout_s: float | None = None) -> dict[str, Any]:
        """The job when it has ended, also if it failed. Raises TimeoutError."""
        return [job async for job in self.events(job_id, timeout_s)][-1]

    async def result(self, job_id: str, **rendering: Any) -> dict[str, Any] | str:
        """The transcript of a job that has succeeded, in any `response_format`."""
        return answers.transcript_of(await self._client.send(calls.result(job_id, rendering)))

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancels the job and returns it; it ends within seconds."""
        return await self._job(calls.of_job("POST", job_id, "/cancel"))

    async def delete(self, job_id: str) -> None:
        """Erases the job, its audio and its transcript."""
        await self._client.send(calls.of_job("DELETE", job_id))

    async def _job(self, call: Call, body: Body = dict) -> dict[str, Any]:
        return answers.dict_of(await self._client.send(call, body))
