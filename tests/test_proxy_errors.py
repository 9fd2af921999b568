"""Answers of Serve's own proxy: those of the application pass, Ray's reports do not."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serve_app.proxy_errors import InOurWords

REPORT = "The actor died unexpectedly before finishing this task.\n\tpid: 4711\n\tip: 10.0.0.7"


def through(answer: Any) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(InOurWords(answer))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/predict", headers={"X-Request-ID": "7"})

    return asyncio.run(get())


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """As Serve's proxy where the Ingress died before it had answered."""


@pytest.mark.parametrize("answer", [nothing, PlainTextResponse(REPORT, 503, {"X-Request-ID": "7"})])
def test_a_lost_ingress_is_a_503_to_be_tried_again(answer: Any) -> None:
    """In the shape of every error, with the request's id, and without Ray's report."""
    found = through(answer)
    assert (found.status_code, found.json()["error"]["code"]) == (503, "ingress_lost")
    assert int(found.headers["retry-after"]) > 0
    assert found.headers["x-request-id"] == "7"
    assert "4711" not in found.text


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"error": {"code": "internal_error"}}, 500),
        JSONResponse({"model_output": []}),
        PlainTextResponse("Path '/x' not found.", 404),
        PlainTextResponse("Closed for maintenance.", 503, {"Retry-After": "600"}),
        JSONResponse({"status": "not ready"}, 503),
    ],
)
def test_other_answers_pass_as_they_are(answer: Response) -> None:
    """Also errors that the application, or another one behind the same proxy, words itself."""
    found = through(answer)
    assert (found.status_code, found.content) == (answer.status_code, answer.body)
    assert found.headers.get("retry-after") == answer.headers.get("retry-after")
