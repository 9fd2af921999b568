"""The client for programs with an event loop; synchronous.py has the same calls."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar

import httpx
from tenacity import AsyncRetrying

from serve_app.client import calls
from serve_app.client.answers import (
    SEGMENTS,
    Event,
    EventReader,
    StreamBroken,
    connected,
    dict_of,
    error_of,
    has_ended,
    transcript_of,
)
from serve_app.client.calls import Audio, Body, Call, OnRetry

T = TypeVar("T")


class AsyncClient:
    """Talks to one service. Calls raise the errors of serve_app.errors, Unreachable, and OSError for a file.

    `base_url` is $WHISPERX_URL if not given, `api_key` is $WHISPERX_API_KEY. An answer may take `timeout_s`.
    What may pass, such as a full service, is tried again for `retry_for_s`, as its Retry-After says;
    `on_retry` is called with the error each time.
    """

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
        """The transcript of a file (its path, its bytes or an open file) or of a URL.

        Options are those of /predict. It is a dict for `json` and `words`, else a str.
        """
        with calls.body(audio, options) as body:
            return transcript_of(await self.send(Call("POST", "/predict"), body))

    async def stream(self, audio: Audio, **options: Any) -> AsyncGenerator[str, None]:
        """The text of a file, piece by piece, as soon as a sentence and all before it are final."""
        with calls.body(audio, calls.streaming(audio, options)) as body:
            async with aclosing(self.follow(calls.streamed(), body)) as events:
                async for event in events:
                    if event and event.data["type"] == "transcript.text.delta":
                        yield event.data["delta"]

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
        reader = EventReader()
        async with aclosing(response):
            with connected(response.url, StreamBroken):
                async for line in response.aiter_lines():
                    yield reader.read(line)

    async def _persistently(self, call: Call, attempt: Callable[[], Awaitable[T]]) -> T:
        policy = calls.policy(self._retry_for_s, call.deadline, self._on_retry)
        return await AsyncRetrying(**policy)(attempt)

    async def _open(self, call: Call, body: Body) -> httpx.Response:
        request = self._http.build_request(**call.arguments(self._http.timeout), **body())
        with connected(request.url):
            response = await self._http.send(request, stream=True)
            is_expected = call.expects(response)
            if not is_expected:
                await response.aread()
        if not is_expected:
            raise error_of(response)
        return response


class AsyncJobs:
    """The jobs of the client's API key: requests that outlive their connections. A job is a dict."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def submit(
        self, audio: Audio, *, idempotency_key: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """A new job; options are those of /predict and of /v1/jobs, such as `webhook_url`.

        However often it has to be sent, there is one job, and the same key later gives that one again.
        """
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
        deadline, seen = calls.Deadline(timeout_s), ""
        while True:
            changes = self._client.follow(calls.events(job_id, seen, deadline))
            with deadline.reconnecting():
                async with aclosing(changes):
                    async for event in changes:
                        deadline.check()
                        if event and event.name != SEGMENTS:
                            seen = event.id
                            yield event.data
                            if has_ended(event.data):
                                return
            deadline.check()
            await asyncio.sleep(deadline.left_s(calls.RECONNECT_S))

    async def wait(self, job_id: str, timeout_s: float | None = None) -> dict[str, Any]:
        """The job when it has ended, well or not. Raises TimeoutError."""
        return [job async for job in self.events(job_id, timeout_s)][-1]

    async def result(self, job_id: str, **rendering: Any) -> dict[str, Any] | str:
        """The transcript of a job that has succeeded, in any `response_format`."""
        return transcript_of(await self._client.send(calls.of_job("GET", job_id, "/result", rendering)))

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """The job, which has ended or will within seconds."""
        return await self._job(calls.of_job("POST", job_id, "/cancel"))

    async def delete(self, job_id: str) -> None:
        """Erases the job, its audio and its transcript."""
        await self._client.send(calls.of_job("DELETE", job_id))

    async def _job(self, call: Call, body: Body = dict) -> dict[str, Any]:
        return dict_of(await self._client.send(call, body))
