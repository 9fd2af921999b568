"""Answers of Serve's own proxy to requests of our application: its reports are replaced, all else passes."""

import asyncio
from typing import Any

import httpx
import pytest
from ray.serve._private.common import DeploymentID, EndpointInfo
from ray.serve._private.http_util import _apply_middlewares
from ray.serve._private.proxy_router import ProxyRouter
from ray.serve._private.thirdparty.get_asgi_route_name import RoutePattern, extract_route_patterns
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serve_app.http.app import create_app
from serve_app.ray_patches.proxy_errors import RewriteServe503

REPORT = "The actor died unexpectedly before finishing this task.\n\tpid: 4711\n\tip: 10.0.0.7"


async def unused(*_: Any) -> Any:
    """For what an application would do with a request."""


OURS = extract_route_patterns(create_app(unused, unused, model="none", max_bytes=1))
OTHERS = [RoutePattern(["POST"], "/predict")]


class Proxy:
    """Serve's HTTP proxy with its real routes, in front of applications that all give the same answer."""

    def __init__(self, answer: Any, applications: "Applications") -> None:
        self.answer = answer
        self.proxy_router = ProxyRouter(lambda *_: object())  # type: ignore[arg-type]
        self.proxy_router.update_routes(
            {
                DeploymentID("Ingress", prefix): EndpointInfo(prefix, route_patterns=patterns)
                for prefix, patterns in applications.items()
            }
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(scope, receive, send)


class PassesOn:
    """A middleware that the operator has put into the proxy."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, *args: Any) -> None:
        await self.app(*args)


Applications = dict[str, list[RoutePattern] | None]


def through(
    answer: Any,
    path: str = "/predict",
    routes: Applications | None = None,
    *,
    root_path: str = "",
    request_id: bytes = b"7",
) -> httpx.Response:
    """The answer behind Serve's proxy, where our application is at / unless `routes` has others."""
    middlewares: Any = [Middleware(PassesOn), Middleware(RewriteServe503)]

    async def get() -> httpx.Response:
        app = _apply_middlewares(Proxy(answer, routes or {"/": OURS}), middlewares)
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(root_path + path, headers={b"X-Request-ID": request_id})

    return asyncio.run(get())


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """As Serve's proxy where the Ingress died before it had answered."""


DIED = PlainTextResponse(REPORT, 503)
PAGE = "https://page.example"


@pytest.mark.parametrize("answer", [nothing, DIED])
def test_a_lost_ingress_is_a_503_to_be_tried_again(answer: Any) -> None:
    """In the shape of every error, with the request's id, and without Ray's report."""
    found = through(answer)
    assert (found.status_code, found.json()["error"]["code"]) == (503, "ingress_lost")
    assert int(found.headers["retry-after"]) > 0
    assert found.headers.get_list("x-request-id") == ["7"]
    assert "4711" not in found.text


@pytest.mark.parametrize("allowed", [PAGE, "*"])
@pytest.mark.parametrize("failure", [nothing, DIED, PlainTextResponse("Request 7 timed out.", 408)])
def test_pages_that_can_read_our_answers_can_read_the_proxys(failure: Any, allowed: str) -> None:
    """The proxy learns from our answers which pages those are; others learn nothing."""
    answers: list[Any] = [
        PlainTextResponse("OK", headers={"Access-Control-Allow-Origin": allowed}),
        failure,
        failure,
    ]

    async def next_answer(scope: Any, receive: Any, send: Any) -> None:
        await answers.pop(0)(scope, receive, send)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(RewriteServe503(Proxy(next_answer, {"/": OURS})))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            origins = (PAGE, PAGE, "https://evil.example")
            return [await client.get("/predict", headers={"Origin": origin}) for origin in origins]

    _, ours, others = asyncio.run(ask())
    assert ours.status_code in (408, 503)
    assert ours.headers["access-control-allow-origin"] == allowed
    assert ours.headers["access-control-expose-headers"] == "Retry-After, X-Request-ID"
    assert ours.headers["vary"] == "Origin"
    assert others.headers.get("access-control-allow-origin") == ("*" if allowed == "*" else None)


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
    """Also errors that the application words itself."""
    found = through(answer)
    assert (found.status_code, found.content) == (answer.status_code, answer.body)
    assert found.headers.get("retry-after") == answer.headers.get("retry-after")
    assert found.headers.get_list("x-request-id") == ["7"]


@pytest.mark.parametrize(
    ("path", "root_path", "ours"),
    [
        ("/speech/predict", "", True),
        ("/speech/predict", "/behind/nginx", True),
        ("/speech", "", True),
        ("/speech/other/predict", "", False),
        ("/starting/predict", "", False),
        ("/speechless", "", False),
        ("/-/healthz", "", False),
    ],
)
def test_other_applications_behind_the_same_proxy_are_left_alone(
    path: str, root_path: str, ours: bool
) -> None:
    """Their plain 503 and their silence are theirs, wherever they and we are, whatever they are called."""
    routes: Applications = {"/speech": OURS, "/speech/other": OTHERS, "/starting": None}
    refused = through(DIED, path, routes, root_path=root_path)
    assert (refused.text != REPORT) == ours
    if ours:
        assert through(nothing, path, routes, root_path=root_path).status_code == 503
    else:
        with pytest.raises(AssertionError):  # httpx's, as nothing was answered
            through(nothing, path, routes, root_path=root_path)


@pytest.mark.parametrize("answer", [DIED, nothing], ids=["503", "silence"])
@pytest.mark.parametrize("path", ["/asr", "/speech/asr", "/speech//asr"])
def test_bazarr_keeps_no_sentence_as_subtitles(answer: Any, path: str) -> None:
    """Like the application's own errors there, the proxy's have no body, wherever the application is."""
    refused = through(answer, path, {"/speech" if path.startswith("/speech") else "/": OURS})
    assert (refused.status_code, refused.content) == (503, b"")
    assert refused.headers["x-error-code"] == "ingress_lost"
    assert "retry-after" in refused.headers


@pytest.mark.parametrize("answer", [DIED, nothing], ids=["503", "silence"])
@pytest.mark.parametrize("prefix", ["", "/speech", "/v2"])
@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/v2/transcript", {"error"}),
        ("/v2/transcript/7/srt", {"error"}),
        ("/async_request/7", {"error", "error_code", "detail"}),
        ("/environments/production/async_predict", {"error", "error_code", "detail"}),
    ],
)
def test_clients_of_other_apis_can_read_it(answer: Any, prefix: str, path: str, keys: set[str]) -> None:
    """AssemblyAI's and Baseten's want a sentence as `error`, wherever the application is."""
    body = through(answer, prefix + path, {prefix or "/": OURS}).json()
    assert body.keys() == keys
    assert "send it again" in body["error"]


def test_our_own_clients_can_read_it_behind_a_prefix_like_assemblyais() -> None:
    """The prefix is no part of the path that decides."""
    assert through(DIED, "/v2/predict", {"/v2": OURS}).json()["error"]["code"] == "ingress_lost"


def test_a_request_id_that_serve_cannot_read_is_replaced() -> None:
    """Serve decodes it as UTF-8, outside of all error handling."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope["headers"])[b"x-request-id"].decode()
        await PlainTextResponse(given)(scope, receive, send)

    found = through(echo, request_id=b"\xff")
    assert found.headers.get_list("x-request-id") == [found.text]


@pytest.mark.parametrize("app", [nothing, PassesOn(nothing)])
def test_without_serves_routes_nothing_is_touched(app: Any) -> None:
    """As in a replica behind HAProxy."""
    middleware = RewriteServe503(app)

    async def call() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await middleware({"type": "http", "path": "/predict", "headers": []}, unused, send)
        assert sent == []

    asyncio.run(call())
