"""The client for programs without an event loop; asynchronous.py has the same calls."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Self, TypeVar

import httpx
from tenacity import Retrying

from serve_app.client import answers, calls, retries
from serve_app.client.answers import Event, StreamBroken, connected
from serve_app.client.calls import Audio, Body, Call
from serve_app.client.retries import OnRetry

T = TypeVar("T")


class Client:
    """Talks to one service. Calls raise the errors of serve_app.errors, Unreachable, and OSError for a file.

    `base_url` is $WHISPERX_URL if not given, `api_key` is $WHISPERX_API_KEY. A call waits up to
    `timeout_s` for its answer. Errors that may pass, such as a full service, are retried for `retry_for_s`,
    after the answer's Retry-After if it has one; `on_retry` is called with each such error.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 3600,
        retry_for_s: float = 120,
        on_retry: OnRetry = lambda error: None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(transport=transport, **calls.connection(base_url, api_key, timeout_s))
        self._retry_for_s, self._on_retry = retry_for_s, on_retry
        self.jobs = Jobs(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def transcribe(self, audio: Audio, **options: Any) -> dict[str, Any] | str:
        """The transcript of a file (its path, its bytes or an open file) or of a URL.

        Options are those of /predict. The result is a dict for `json` and `words`, else a str.
        """
        with calls.body(audio, options) as body:
            return answers.transcript_of(self.send(calls.prediction(), body))

    def stream(self, audio: Audio, **options: Any) -> Iterator[str]:
        """The text of a file, piece by piece, as soon as a sentence and all before it are final.

        Options are those of OpenAI's route; its `model` is `whisper-1` unless you name another.
        """
        with (
            calls.body(audio, calls.streaming(audio, options)) as body,
            closing(self.follow(calls.streamed(), body)) as events,
        ):
            for event in events:
                if piece := answers.piece_of(event):
                    yield piece

    def diarize(self, audio: Audio, **options: Any) -> dict[str, Any] | str:
        """Who speaks when, without the text; options are those of /v1/audio/diarization. rttm is a str."""
        with calls.body(audio, options) as body:
            return answers.transcript_of(self.send(calls.speakers(), body))

    def detect_speech(self, audio: Audio, **options: Any) -> list[dict[str, int]]:
        """Where speech is: `start` and `end` of each stretch, in milliseconds."""
        with calls.body(audio, options) as body:
            return answers.list_of(self.send(calls.speech(), body))

    def send(self, call: Call, body: Body = dict) -> httpx.Response:
        """The whole answer to a call."""

        def attempt() -> httpx.Response:
            response = self._open(call, body)
            with connected(response.url):
                response.read()
            return response

        return self._persistently(call, attempt)

    def follow(self, call: Call, body: Body = dict) -> Generator[Event | None, None, None]:
        """The events of a stream; None for comments and blank lines. Raises StreamBroken too."""
        response = self._persistently(call, partial(self._open, call, body))
        reader = answers.EventReader()
        with closing(response), connected(response.url, StreamBroken):
            for line in response.iter_lines():
                yield reader.read(line)

    def _persistently(self, call: Call, attempt: Callable[[], T]) -> T:
        policy = retries.policy(self._retry_for_s, call.deadline, self._on_retry)
        return Retrying(**policy)(attempt)

    def _open(self, call: Call, body: Body) -> httpx.Response:
        request = self._http.build_request(**call.arguments(self._http.timeout), **body())
        with connected(request.url):
            response = self._http.send(request, stream=True)
            if not call.expects(response):
                response.read()
                raise answers.error_of(response)
        return response


class Jobs:
    """The jobs of the client's API key: requests that outlive their connections. A job is a dict."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(self, audio: Audio, *, idempotency_key: str | None = None, **options: Any) -> dict[str, Any]:
        """A new job; options are those of /predict and of /v1/jobs, such as `webhook_url`.

        Retries make no second job. The same `idempotency_key` gives the same job again, also later.
        """
        with calls.body(audio, options) as body:
            return self._job(calls.submission(idempotency_key), body)

    def get(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        return self._job(calls.of_job("GET", job_id))

    def list(self, status: Sequence[str] = (), limit: int = 20, after: str | None = None) -> dict[str, Any]:
        """A page of `jobs`, newest first; its `next` is the `after` of the next page."""
        return self._job(calls.page(status, limit, after))

    def events(self, job_id: str, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        """The job now, at each change, and when it has ended. Raises TimeoutError."""
        deadline, seen = retries.Deadline(timeout_s), ""
        while True:
            changes = self._client.follow(calls.events(job_id, seen, deadline))
            with deadline.reconnecting(), closing(changes):
                for event in changes:
                    deadline.check()
                    if event and event.name != answers.SEGMENTS:
                        seen = event.id
                        yield event.data
                        if answers.has_ended(event.data):
                            return
            time.sleep(deadline.pause_s())

    def wait(self, job_id: str, timeout_s: float | None = None) -> dict[str, Any]:
        """The job when it has ended, also if it failed. Raises TimeoutError."""
        return [*self.events(job_id, timeout_s)][-1]

    def result(self, job_id: str, **rendering: Any) -> dict[str, Any] | str:
        """The transcript of a job that has succeeded, in any `response_format`."""
        return answers.transcript_of(self._client.send(calls.result(job_id, rendering)))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancels the job and returns it; it ends within seconds."""
        return self._job(calls.of_job("POST", job_id, "/cancel"))

    def delete(self, job_id: str) -> None:
        """Erases the job, its audio and its transcript."""
        self._client.send(calls.of_job("DELETE", job_id))

    def _job(self, call: Call, body: Body = dict) -> dict[str, Any]:
        return answers.dict_of(self._client.send(call, body))
