"""What a replica of the graph learns from the requests that have ended."""

import asyncio
from typing import Any

import pytest

from serve_app.audio import Source
from serve_app.deployments.calls import graph as module
from serve_app.errors import NoRoom
from serve_app.options import Options
from serve_app.request.admission import USUAL_REQUEST_S
from serve_app.settings import Settings
from serve_app.transcript import Transcript

SOURCE = Source(url="http://example/a.wav")


class Handle:
    """Of any deployment; nothing is called."""

    def __getattr__(self, name: str) -> Any:
        return self

    def options(self, **_: Any) -> Any:
        return self


@pytest.mark.parametrize(("method", "is_usual"), [("run", False), ("diarize", True)])
def test_only_transcriptions_say_how_long_a_request_takes(
    method: str, is_usual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retry-After and the real-time factor are about these; diarization alone is another kind of work."""
    factors: list[float] = []

    async def work(*_: Any) -> Transcript:
        return Transcript(segments=(), language="en", duration_s=10.0, model="base")

    async def retry_after_s() -> int | None:
        handle: Any = Handle()
        settings = Settings.model_validate({"requests_in_flight": 1})
        graph = module.Graph(
            settings,
            handle,
            handle,
            handle,
            handle,
            handle,
            (),
            other_transcribers={},
            limit_s=60.0,
            kind="request",
        )
        monkeypatch.setattr(graph._metrics._rtf, "observe", lambda value, tags: factors.append(value))
        await getattr(graph, method)(SOURCE, Options())
        with graph.admission.admit(), pytest.raises(NoRoom) as error, graph.admission.admit():
            pass
        return error.value.retry_after_s

    times_s = iter([0.0, 1000.0, 1000.0])
    monkeypatch.setattr(module, "monotonic", lambda: next(times_s))
    monkeypatch.setattr(module, "transcribe", work)
    monkeypatch.setattr(module, "diarize", work)
    wait_s = asyncio.run(retry_after_s())
    assert (wait_s == USUAL_REQUEST_S / 2) == is_usual
    assert (factors == []) == is_usual
