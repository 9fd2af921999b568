"""How audio comes in by the page, and what it says when that does not work."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from page_service import KEY, Site
from playwright.sync_api import Page, Route, expect

from serve_app.errors import AudioTooLong, UnusableAudio

OpenPage = Callable[..., Page]
Serve = Callable[..., Site]

AWKWARD = '@it\'s "Diane"; <b, c'  # each sign means something to curl, a shell or Python


def test_the_microphone_is_transcribed(serve: Serve, open_page: OpenPage) -> None:
    """A recording of at least two seconds is sent as WEBM, and can be played from a word on."""
    site = serve()
    site.graph.may_end.set()
    page = open_page(site, bypass_csp=True)  # `wait_for_function` brings a script
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#record-time")).to_have_text(re.compile(r"Recording 0:0[2-9]"))
    page.get_by_role("button", name="Stop and transcribe").click()
    expect(page.locator("#transcript-title")).to_have_text(re.compile(r"Recording \d\d\.\d\d\.webm"))
    heard, _ = site.graph.heard[0]
    assert heard[:4] == bytes.fromhex("1a45dfa3")
    assert len(heard) > 1000
    page.locator("#segments .word").first.click()
    # What was played, and not what plays: a short recording may be over before it is looked at.
    page.wait_for_function(
        "(({ played }) => played.length && played.end(0) > 1.1)(document.getElementById('audio'))"
    )
    assert page.evaluate("document.getElementById('audio').played.start(0)") > 0.9


def test_a_refused_microphone_is_explained(serve: Serve, open_page: OpenPage) -> None:
    """Not with the browser's name for it."""
    page = open_page(serve())
    refuse = "async () => { throw new DOMException('', 'NotAllowedError') }"
    page.evaluate(f"void (navigator.mediaDevices.getUserMedia = {refuse})")
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert")).to_contain_text("Allow it beside the address")


def test_an_address_is_sent_with_options(serve: Serve, open_page: OpenPage) -> None:
    """The chosen ones and no others; where it cannot be fetched, the reason is the server's."""
    site = serve()
    page = open_page(site)
    page.get_by_label("or paste the address of a file").fill("https://example.com/talks/one.mp3?x=1")
    page.get_by_text("Options").click()
    page.get_by_label("Language spoken").fill("de")
    page.get_by_label("At most … speakers").fill("3")
    with page.expect_request("**/v1/jobs") as sent:
        page.get_by_role("button", name="Transcribe").click()
    assert json.loads(sent.value.post_data or "") == {
        "audio_file": "https://example.com/talks/one.mp3?x=1",
        "language": "de",
        "max_speakers": "3",
    }
    expect(page.locator("#running-title")).to_have_text("one.mp3")
    site.graph.may_end.set()
    expect(page.locator("#no-audio-why")).to_contain_text("is not in this browser")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UnusableAudio("The file is no audio."), "Is it an audio or video file?"),
        (
            AudioTooLong("The audio is longer than 3600 s."),
            "longer than this server takes. The audio is longer",
        ),
    ],
)
def test_a_bad_file_is_explained(
    error: Exception, said: str, serve: Serve, open_page: OpenPage, tmp_path: Path
) -> None:
    """In plain words, with the server's numbers, and in the list of jobs too."""
    site = serve()
    site.graph.error = error
    site.graph.may_end.set()
    page = open_page(site)
    bad = tmp_path / "notes.txt"
    bad.write_text("no audio")
    page.set_input_files("#files", bad)
    expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.locator("#jobs .why")).to_contain_text(said)
    expect(page.locator("#running")).to_be_hidden()


def test_a_large_file_is_explained(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """The server's limit stands in the message."""
    page = open_page(serve(max_bytes=10_000))
    page.set_input_files("#files", recording)
    expect(page.get_by_role("alert")).to_contain_text("The file is larger than this server takes.")


def test_a_key_is_asked_for(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """A wrong one is explained, the right one is kept in this browser, and no command shows it."""
    site = serve(with_key=True)
    site.graph.may_end.set()
    page = open_page(site)
    field = page.get_by_label("This server asks for an API key")
    expect(field).to_be_focused()
    field.fill("wx_wrong")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("does not know this API key")
    field.fill(KEY)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.locator("#key")).to_be_hidden()
    page.reload()
    page.set_input_files("#files", recording)
    expect(page.locator("#segments > li")).to_have_count(5)
    page.get_by_text("The same as a command or program").click()
    expect(page.locator("#command")).to_contain_text("Bearer $WHISPERX_KEY")
    assert KEY not in page.content()


def test_a_full_server_says_when(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """By the clock, and the user can try again with one click."""
    page = open_page(serve(queue=0))
    page.set_input_files("#files", recording)
    expect(page.get_by_role("alert")).to_contain_text(
        re.compile(r"busy.*Try again in \d+ s, at \d+:\d\d:\d\d")
    )
    with page.expect_request("**/v1/jobs"):
        page.get_by_role("button", name="Try again").click()


def test_a_server_that_is_gone_is_explained(serve: Serve, open_page: OpenPage) -> None:
    """Not with the browser's own words."""
    page = open_page(serve())
    page.route("**/v1/jobs*", lambda route: route.abort())
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")


def test_text_grows_while_the_job_runs(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """The events named `segments` bring it. Another connection begins again, and repeats nothing."""
    page = open_page(serve())
    said = [{"start": 1.0, "end": 2.0, "text": "Hello."}, {"start": 62.0, "end": 63.0, "text": "And more."}]
    connections = 0

    def events(route: Route) -> None:
        nonlocal connections
        connections += 1
        if connections > 2:
            return  # nothing new comes
        piece = {"attempt": 1, "first": 0, "segments": said[:connections]}
        body = f"event: segments\ndata: {json.dumps(piece)}\n\n: still there\n\n"
        route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/events", events)
    page.set_input_files("#files", recording)
    expect(page.locator("#live p")).to_have_text(["0:01 Hello.", "1:02 And more."])


def test_jobs_are_listed(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """They can be canceled while they run, opened, and deleted after one more click."""
    site = serve()
    page = open_page(site)
    page.set_input_files("#files", recording)
    assert site.graph.begun.wait(30)
    page.get_by_role("button", name="Cancel: sample.wav").click()
    expect(page.get_by_role("alert")).to_contain_text("The job was canceled.")
    expect(page.locator("#jobs .state")).to_have_text("canceled")
    site.graph.may_end.set()
    page.set_input_files("#files", recording)
    expect(page.locator("#transcript")).to_be_visible()
    expect(page.locator("#jobs .state")).to_have_text(["done", "canceled"])
    page.get_by_role("button", name="Delete: sample.wav").first.click()
    page.get_by_role("button", name="Really delete?: sample.wav").click()
    expect(page.locator("#jobs .state")).to_have_text(["canceled"])
    expect(page.locator("#transcript")).to_be_hidden()
    assert len(httpx.get(f"{site.url}v1/jobs").json()["jobs"]) == 1


def test_several_files_become_several_jobs(
    serve: Serve, open_page: OpenPage, recording: Path, tmp_path: Path
) -> None:
    """The first is shown, the others are in the list."""
    site = serve()
    site.graph.may_end.set()
    page = open_page(site)
    names = ["a.wav", "b.wav", "c.wav"]
    for name in names:
        (tmp_path / name).write_bytes(recording.read_bytes())
    page.set_input_files("#files", [tmp_path / name for name in names])
    expect(page.locator("#transcript-title")).to_have_text("a.wav")
    expect(page.locator("#jobs .state")).to_have_text(["done"] * 3)
    assert sorted(page.locator("#jobs .name").all_inner_texts()) == names


def test_files_are_dropped(serve: Serve, open_page: OpenPage) -> None:
    """Anywhere on the page."""
    site = serve()
    page = open_page(site)
    dropped = page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(["talk"], "talk.mp3"));
          return data;
        }"""
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.locator("#running-title")).to_have_text("talk.mp3")
    assert site.graph.begun.wait(30)
    assert site.graph.heard[0][0] == b"talk"


def test_an_upload_can_be_canceled(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """The page then waits for nothing, and says nothing either."""
    page = open_page(serve())
    page.route("**/v1/jobs", lambda route: None)  # the upload does not end
    page.set_input_files("#files", recording)
    page.locator("#running-cancel").click()
    expect(page.locator("#running")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize("kind", ["curl", "python", "openai"])
def test_the_commands_work(
    kind: str, serve: Serve, open_page: OpenPage, recording: Path, tmp_path: Path
) -> None:
    """What the page shows as a command or a program does what the page did, with the same options."""
    site = serve(with_key=True)
    site.graph.may_end.set()
    page = open_page(site)
    page.get_by_label("This server asks for an API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_text("Options").click()
    page.get_by_label("Words to expect").fill(AWKWARD)
    page.get_by_label("Text whose style").fill("Hello; world")
    file = tmp_path / 'it\'s, "one";two.wav'
    file.write_bytes(recording.read_bytes())
    page.set_input_files("#files", file)
    expect(page.locator("#segments > li")).to_have_count(5)
    page.get_by_text("The same as a command or program").click()
    page.get_by_label("For", exact=True).select_option(kind)
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#copied")).to_have_text("Copied")
    text = page.locator("#command").inner_text()
    command = ["sh", "-c", text] if kind == "curl" else [sys.executable, "-c", text]
    environment = {**os.environ, "WHISPERX_KEY": KEY}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "originally from Chicago" in done.stdout, done.stderr
    (_, shown), (heard, asked) = site.graph.heard
    assert heard == recording.read_bytes()
    assert asked.hotwords == shown.hotwords == AWKWARD
    assert asked.initial_prompt == shown.initial_prompt == "Hello; world"
