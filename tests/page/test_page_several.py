"""Several things at once on the page: many files, quick clicks, jobs that end, a key that comes late."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from page_service import KEY, Site
from playwright.sync_api import Page, Route, expect

OpenPage = Callable[..., Page]
Serve = Callable[..., Site]

IS_GUARDED = "!dispatchEvent(new Event('beforeunload', { cancelable: true }))"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five files; the second is the largest."""
    paths = [tmp_path / f"f{number}.mp3" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * (2_000_000 if number == 1 else 1000 + number))
    return paths


def sizes(site: Site) -> list[int]:
    """How large the files are that were transcribed."""
    return sorted(len(audio) for audio, _ in site.graph.heard)


def settle(page: Page) -> None:
    """Waits until the page has shown the last answer."""
    page.evaluate(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
    )


def record(page: Page) -> None:
    """Records a second."""
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#record-time")).to_have_text(re.compile("0:0[1-9]"))
    assert page.evaluate(IS_GUARDED)
    page.get_by_role("button", name="Stop and transcribe").click()


def test_a_refused_file_stops_no_other(serve: Serve, open_page: OpenPage, files: list[Path]) -> None:
    """The page names the file and the reason until the user discards it, also after opening a transcript."""
    site = serve(max_bytes=1_000_000)
    site.graph.may_end.set()
    page = open_page(site)
    page.set_input_files("#files", files)
    expect(page.locator("#jobs .state")).to_have_text(["done"] * 4)
    expect(page.locator("#transcript-title")).to_have_text("f0.mp3")
    assert sizes(site) == [1000, 1002, 1003, 1004]
    page.get_by_role("button", name="Open: f3.mp3").click()
    expect(page.locator("#transcript-title")).to_have_text("f3.mp3")
    expect(page.get_by_role("alert")).to_contain_text("f1.mp3: The file is larger than this server takes.")
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_missing_key_is_noticed_once_for_all_files(
    serve: Serve, open_page: OpenPage, files: list[Path]
) -> None:
    """Without a key only the first file is sent; after the user enters the key, all are sent."""
    site = serve(with_key=True)
    site.graph.may_end.set()
    page = open_page(site)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method) if request.method == "POST" else None)
    page.set_input_files("#files", files[2:])
    expect(page.get_by_role("alert")).to_contain_text("f2.mp3, f3.mp3, f4.mp3: The server needs an API key.")
    assert len(sent) == 1
    page.get_by_label("This server asks for an API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#jobs .state")).to_have_text(["done"] * 3)
    expect(page.get_by_role("alert")).to_be_empty()
    assert sizes(site) == [1002, 1003, 1004]


def test_a_server_without_jobs_takes_one_file_at_a_time(
    serve: Serve, open_page: OpenPage, files: list[Path]
) -> None:
    """The page asks to be kept open, names the files that wait, and replaces no transcript by another."""
    site = serve(with_jobs=False)
    page = open_page(site)
    page.set_input_files("#files", [files[0], *files[2:4]])
    expect(page.get_by_role("alert")).to_contain_text("keep this page open")
    assert site.graph.begun.wait(30)
    assert page.evaluate(IS_GUARDED)
    assert sizes(site) == [1000]
    page.set_input_files("#files", files[4])
    expect(page.get_by_role("alert")).to_contain_text("f4.mp3: This server keeps no jobs")
    page.get_by_role("button", name="Discard").click()
    site.graph.may_end.set()
    expect(page.locator("#transcript-title")).to_have_text("f0.mp3")
    expect(page.get_by_role("alert")).to_contain_text(
        "f2.mp3, f3.mp3: This server keeps no jobs, so it takes one"
    )
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("f3.mp3: ")
    expect(page.locator("#transcript-title")).to_have_text("f0.mp3")
    page.get_by_role("button", name="Show: f2.mp3").click()
    expect(page.locator("#transcript-title")).to_have_text("f2.mp3")
    assert sizes(site) == [1000, 1002]
    assert not page.evaluate(IS_GUARDED)


def test_a_key_is_enough_for_a_server_without_jobs(serve: Serve, open_page: OpenPage) -> None:
    """The form disappears once the key is right, although there are no jobs to list."""
    page = open_page(serve(with_key=True, with_jobs=False))
    page.get_by_label("This server asks for an API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_recording_waits_for_the_key(serve: Serve, open_page: OpenPage) -> None:
    """A recording made before the key was entered is sent afterwards, without another click."""
    site = serve(with_key=True)
    site.graph.may_end.set()
    page = open_page(site)
    record(page)
    expect(page.get_by_role("alert")).to_contain_text(re.compile(r"Recording .*\.webm: .*needs an API key"))
    assert page.evaluate(IS_GUARDED)
    page.get_by_label("This server asks for an API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#transcript-title")).to_have_text(re.compile(r"^Recording"))
    assert len(site.graph.heard) == 1
    assert not page.evaluate(IS_GUARDED)


def test_a_recording_that_was_not_sent_can_be_saved(serve: Serve, open_page: OpenPage) -> None:
    """After the user cancels its upload, a recording can be saved, and sent again."""
    site = serve()
    site.graph.may_end.set()
    page = open_page(site)
    page.route("**/v1/jobs", lambda route: None)  # the upload does not end
    record(page)
    page.locator("#running-cancel").click()
    expect(page.get_by_role("alert")).to_contain_text("The upload was canceled.")
    assert page.evaluate(IS_GUARDED)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save Recording").click()
    assert download.value.path().read_bytes()[:4] == bytes.fromhex("1a45dfa3")
    assert not page.evaluate(IS_GUARDED)
    page.unroute("**/v1/jobs")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#transcript-title")).to_have_text(re.compile(r"^Recording"))
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_second_click_starts_no_second_recording(serve: Serve, open_page: OpenPage) -> None:
    """While the browser asks for permission the button does nothing more."""
    page = open_page(serve())
    page.evaluate("""() => {
      const original = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      window.asked = 0;
      window.allowed = new Promise((allow) => (window.allow = allow));
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        window.asked++;
        await window.allowed;
        return original(wanted);
      };
    }""")
    page.locator("#record").click()
    page.locator("#record").click()
    assert page.evaluate("asked") == 1
    page.evaluate("allow()")
    expect(page.locator("#record")).to_have_text("Stop and transcribe")


def test_the_last_of_two_quick_clicks_wins(serve: Serve, open_page: OpenPage, files: list[Path]) -> None:
    """A transcript that arrives late does not replace one that was opened after it."""
    site = serve()
    site.graph.may_end.set()
    page = open_page(site)
    page.set_input_files("#files", files[2:4])
    expect(page.locator("#jobs .state")).to_have_text(["done"] * 2)
    page.reload()
    slow = page.get_by_role("button", name="Open: f2.mp3")
    held: list[Route] = []
    page.route(f"**/{slow.get_attribute('data-job')}/result*", lambda route: held.append(route))  # noqa: PLW0108 -- Playwright sets attributes on it, which `held.append` has no room for
    with page.expect_request("**/result*"):
        slow.click()
    page.get_by_role("button", name="Open: f3.mp3").click()
    expect(page.locator("#transcript-title")).to_have_text("f3.mp3")
    with page.expect_response("**/result*"):
        held[0].continue_()
    settle(page)
    expect(page.locator("#transcript-title")).to_have_text("f3.mp3")


def test_a_job_that_ends_does_not_interrupt_editing(
    serve: Serve, open_page: OpenPage, files: list[Path]
) -> None:
    """While one transcript is edited, another one is only announced, with a button."""
    site = serve()
    site.graph.may_end.set()
    page = open_page(site)
    page.set_input_files("#files", files[2])
    expect(page.locator("#segments > li")).to_have_count(5)
    site.graph.may_end.clear()
    page.set_input_files("#files", files[3])
    expect(page.locator("#running-title")).to_have_text("f3.mp3")
    page.locator("#segments .edit").first.click()
    page.keyboard.type(" And")
    site.graph.may_end.set()
    show = page.get_by_role("button", name="Show: f3.mp3")
    expect(page.locator("#ready")).to_contain_text("f3.mp3 is transcribed.")
    expect(show).to_be_in_viewport()
    page.keyboard.type(" more.")
    page.keyboard.press("Enter")
    expect(page.locator("#segments .text").first).to_have_text(
        "Hello, this is Diane in New Jersey. And more."
    )
    expect(page.locator("#transcript-title")).to_have_text("f2.mp3")
    show.click()
    expect(page.locator("#transcript-title")).to_have_text("f3.mp3")
    expect(show).to_have_count(0)


def test_more_jobs_stay(serve: Serve, open_page: OpenPage) -> None:
    """The list keeps its length when it is fetched again while a job runs."""
    site = serve()
    for number in range(25):
        httpx.post(f"{site.url}v1/jobs", files={"file": b"audio %d" % number}).raise_for_status()
    page = open_page(site)
    jobs = page.locator("#jobs > li")
    expect(jobs).to_have_count(20)
    page.get_by_role("button", name="More").click()
    expect(jobs).to_have_count(25)
    with page.expect_response("**/v1/jobs?*"):
        pass  # some seconds later
    settle(page)
    expect(jobs).to_have_count(25)


def test_a_deleted_job_is_silent(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """Deleting a job stops its audio, because the player disappears."""
    site = serve()
    site.graph.may_end.set()
    page = open_page(site)
    page.set_input_files("#files", recording)
    page.locator("#segments .word").first.click()
    expect(page.locator("#play .word")).to_have_text("Pause")
    page.get_by_role("button", name="Delete: sample.wav").click()
    page.get_by_role("button", name="Really delete?: sample.wav").click()
    expect(page.locator("#transcript")).to_be_hidden()
    assert page.evaluate("document.getElementById('audio').paused")
