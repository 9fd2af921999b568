"""A real Chromium for the tests of the page, and the service that it opens."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from page_service import Site, serving

from serve_app.cli.demo import sample as demo_sample

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = [
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


@pytest.fixture(scope="module")  # not longer: while Playwright is there, asyncio.run() fails in other tests
def browser() -> Iterator["Browser"]:
    """Debian's Chromium; the tests are skipped where it is not installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("There is no chromium: apt-get install chromium.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts the service with the settings of `page_service.serving`."""
    with ExitStack() as held:
        yield lambda **settings: held.enter_context(serving(tmp_path, **settings))


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Opens the page of a service in a fresh browser profile. An error in its scripts is a failure."""
    wrong: list[str] = []
    with ExitStack() as held:

        def opened(site: Site, **settings: Any) -> "Page":
            context = browser.new_context(**{"locale": "en-GB", "permissions": ["microphone"], **settings})
            held.callback(context.close)
            context.set_default_timeout(15_000)
            page = context.new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if is_wrong(said.text) else None)
            page.goto(site.url)
            return page

        yield opened
    assert wrong == []


def is_wrong(said: str) -> bool:
    """Whether a browser message is about the page, and not about a status that a test wants."""
    return "Content Security Policy" in said or "Uncaught" in said or "Refused" in said


@pytest.fixture(scope="session")
def recording() -> Path:
    """Two real people on the telephone, 30 s."""
    return demo_sample()
