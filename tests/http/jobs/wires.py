"""An application with the routes of another vendor's API on a real store; the test plays the runner."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI
from job_api import store_at
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.http.app import OWN_MACHINE_ONLY
from serve_app.http.middleware import Gate
from serve_app.jobs.migration import migrate
from serve_app.jobs.records import ClaimedJob
from serve_app.jobs.service import Jobs
from serve_app.settings import IntakeSettings
from serve_app.settings.jobs import JobsSettings, WebhookSettings

AUDIO = "https://example.com/talk.mp3"


class Named:
    """Says whose key a request has, as the gate does; the test names it in a header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["api_key_name"] = dict(scope["headers"]).get(b"x-key", b"").decode()
        await self.app(scope, receive, send)


class Wire:
    """The application, its client and its jobs."""

    def __init__(self, jobs: Jobs, app: FastAPI, client: httpx.AsyncClient) -> None:
        self.jobs, self.app, self._client = jobs, app, client

    async def ask(self, method: str, path: str, status: int = 200, **kwargs: Any) -> httpx.Response:
        """The answer, which must have this status."""
        answer = await self._client.request(method, path, **kwargs)
        assert answer.status_code == status, answer.text
        return answer

    async def run(self) -> ClaimedJob:
        """The next job, as a runner takes it; it must be there."""
        claimed = await self.jobs.store.claim("runner", 60)
        assert claimed is not None
        return claimed


def served(jobs: Jobs, router: APIRouter) -> FastAPI:
    """The application."""
    app = FastAPI(middleware=[Middleware(Gate, OWN_MACHINE_ONLY, 60.0, None), Middleware(Named)])
    app.include_router(router)
    return app


async def opened(directory: Path, **changes: Any) -> Jobs:
    """Jobs that are kept in this folder."""
    settings = JobsSettings(
        store=store_at(directory),
        state_dir=str(directory),
        **{"webhooks": WebhookSettings(allowed_hosts=("127.0.0.1",)), **changes},
    )
    await migrate(store_at(directory))
    return Jobs(settings, IntakeSettings(allowed_hosts=("127.0.0.1",)))


def on_the_wire(
    directory: Path,
    routes: Callable[[Jobs], APIRouter],
    story: Callable[[Wire], Awaitable[None]],
    **changes: Any,
) -> None:
    """Runs a story on a new application."""

    async def told() -> None:
        jobs = await opened(directory, **changes)
        app = served(jobs, routes(jobs))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                await story(Wire(jobs, app, client))
        finally:
            await jobs.store.close()

    asyncio.run(told())
