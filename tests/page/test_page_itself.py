"""The page as such: who can use it, on which screens, in which language, how fast, under which policy."""

import re
import wave
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_service import Site, long_talk
from playwright.sync_api import Page, expect

from serve_app.http.app import create_app

OpenPage = Callable[..., Page]
Serve = Callable[..., Site]

SERIOUS = ("serious", "critical")


def axe() -> str:
    """The program of axe-core, from the wheel that brings it."""
    package = find_spec("axe_playwright_python")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "axe.min.js").read_text()


def found_by_axe(page: Page) -> list[tuple[str, list[str]]]:
    page.evaluate(axe() + ";0")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    found: dict[str, Any] = page.evaluate("rules => axe.run(document, rules)", rules)
    return [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in found["violations"]
        if rule["impact"] in SERIOUS
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everybody_can_use_it(
    scheme: str, width: int, serve: Serve, open_page: OpenPage, recording: Path
) -> None:
    """axe finds nothing serious at any step, and nothing is wider than the screen."""
    site = serve(with_key=True)
    page = open_page(
        site, color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True
    )  # axe

    def check() -> None:
        assert found_by_axe(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width

    expect(page.locator("#key")).to_be_visible()
    for summary in page.locator("#new summary").all():
        summary.click()
    page.locator("#key-field").fill("wx_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not know this API key")
    check()
    page.locator("#key-field").fill("wx_page")
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_be_hidden()
    page.set_input_files("#files", recording)
    expect(page.locator("#stages li", has_text="Writing text").locator(".detail")).to_have_text("1 of 4")
    check()
    site.graph.may_end.set()
    expect(page.locator("#segments > li")).to_have_count(5)
    page.locator("#segments .word").nth(9).click()
    page.locator("#subtitles summary").click()
    page.locator("#segments .edit").last.click()
    check()


def test_everything_can_be_reached_by_keyboard(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """In the order in which it stands on the page, with a visible focus."""
    site = serve()
    site.graph.may_end.set()
    page = open_page(site)
    page.set_input_files("#files", recording)
    expect(page.locator("#segments > li")).to_have_count(5)
    page.locator("h1").click()
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        place = page.evaluate(
            "(({ id, className, tagName }) => id || className || tagName)(document.activeElement)"
        )
        if place == "BODY":
            break
        reached.append(place)
        outline = "getComputedStyle(document.activeElement.matches('input.hidden') ? "
        outline += "document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
        assert page.evaluate(outline) != "none", place
    wanted = [
        "files",
        "record",
        "url",
        "play",
        "speed",
        "zoom",
        "follow",
        "seek",
        "find",
        "shade",
        "copy-text",
    ]
    assert [place for place in reached if place in wanted] == wanted
    assert (
        reached.index("copy-text") < reached.index("time") < reached.index("edit") < reached.index("refresh")
    )


@pytest.mark.parametrize(("locale", "title"), [("de-AT", "Neues Transkript"), ("fr-FR", "New transcript")])
def test_it_speaks_german_and_english(locale: str, title: str, serve: Serve, open_page: OpenPage) -> None:
    """The browser's language at first, then the user's choice."""
    page = open_page(serve(), locale=locale)
    expect(page.locator("#new-title")).to_have_text(title)
    page.locator("#interface-language").select_option("en")
    expect(page.locator("#new-title")).to_have_text("New transcript")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_both_languages_have_all_texts() -> None:
    """No name of a text is missing in one of them, or in the program."""
    folder = Path(create_app.__code__.co_filename).parents[1] / "page" / "static"
    words = (folder / "words.js").read_text()
    english, german = (
        set(
            re.findall(
                r"^    (\w+):", words.partition(f"  {code}: {{")[2].partition("\n  },")[0], re.MULTILINE
            )
        )
        for code in ("en", "de")
    )
    assert english == german
    used = set(re.findall(r'data-t(?:-label|-placeholder)?="(\w+)"', (folder / "index.html").read_text()))
    for path in folder.glob("*.js"):
        used |= set(re.findall(r'\bt\("(\w+)"', path.read_text()))
    assert used <= english


def test_three_hours_do_not_freeze_it(
    serve: Serve, open_page: OpenPage, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Opening, searching, jumping, renaming and scrolling through 30,000 words block it for no second."""
    site = serve()
    site.graph.transcript = replace(long_talk(), peaks=b64encode(bytes(range(100)) * 2160).decode())
    site.graph.may_end.set()
    page = open_page(site, bypass_csp=True)  # `wait_for_function` brings a script
    page.evaluate("""() => {
      window.tasks = [];
      new PerformanceObserver((list) => tasks.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({ type: "longtask" });
    }""")
    with wave.open(str(tmp_path / "long.wav"), "wb") as silence:
        silence.setparams((1, 1, 4000, 0, "NONE", ""))
        silence.writeframes(b"\x80" * 4000 * 3 * 3600)
    page.set_input_files("#files", tmp_path / "long.wav")
    count = len(site.graph.transcript.segments)
    longest = {"open": longest_task(page, f"document.querySelectorAll('#segments > li').length === {count}")}
    page.locator("#find").fill("numbers")
    longest["search"] = longest_task(page, f"document.getElementById('found').textContent === '1 of {count}'")
    page.locator("#seek").fill("9000")
    longest["jump"] = longest_task(
        page, "document.getElementById('clock').textContent === '2:30:00 / 3:00:00'"
    )
    page.locator("#speakers input").first.fill("Ann")
    longest["rename"] = longest_task(
        page, "document.querySelector('.speaker').selectedOptions[0].textContent === 'Ann'"
    )
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    longest["scroll"] = longest_task(page, "scrollY > 10000")
    figure(f"page: 3 h, {count} segments; longest task in ms: {longest}")
    assert max(longest.values()) < 1000


def longest_task(page: Page, condition: str) -> int:
    """Milliseconds of the longest task since the last call, once this holds; 0 where none was above 50."""
    # Not an assertion of Playwright, which describes all of the text before it tries again.
    page.wait_for_function(condition, timeout=60_000)
    page.wait_for_timeout(300)  # the browser tells of tasks a moment later
    return int(page.evaluate("Math.max(0, ...tasks.splice(0))"))


def test_it_works_behind_a_prefix(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """All of its addresses are relative; without the last slash it is redirected."""
    site = serve(root_path="/speech")
    site.graph.may_end.set()
    answer = httpx.get(site.url.rstrip("/"))
    assert answer.is_redirect
    assert answer.headers["location"].endswith("/speech/")
    page = open_page(site)
    page.set_input_files("#files", recording)
    expect(page.locator("#segments > li")).to_have_count(5)
    page.get_by_text("The same as a command or program").click()
    expect(page.locator("#command")).to_contain_text("/speech/predict")


def test_its_policy_allows_no_scripts_of_others(serve: Serve) -> None:
    """Each answer has a nonce of its own, and the page is never shown in another one's frame."""
    site = serve()
    first, second = httpx.get(site.url), httpx.get(site.url)
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert policy != second.headers["content-security-policy"]
    assert "<style" not in first.text
    assert not re.search(r"<script(?![^>]* src=)| style=| on\w+=", first.text)


def test_its_files_are_cached_until_they_change(serve: Serve) -> None:
    """A browser asks with the tag of its copy; other names are a 404 in the API's shape."""
    site = serve()
    file = httpx.get(f"{site.url}page/main.js")
    assert file.headers["content-type"].startswith("text/javascript")
    again = httpx.get(f"{site.url}page/main.js", headers={"If-None-Match": file.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(f"{site.url}page/wavesurfer.min.js").status_code == 200
    for name in ("index.html", "routes.py", "%2e%2e%2froutes.py"):
        missing = httpx.get(f"{site.url}page/{name}")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "http_404")
