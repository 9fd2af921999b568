"""The page /docs in a real browser: "Try it out" works without changes, and uses the defaults."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from page_service import Site
from playwright.sync_api import Locator, Page, Response, expect

from serve_app.options import Options

OpenPage = Callable[..., Page]
Serve = Callable[..., Site]

FORM, JSON = "multipart/form-data", "application/json"


@pytest.fixture
def site(serve: Serve) -> Site:
    """The service, whose transcriptions end at once."""
    site = serve()
    site.graph.may_end.set()
    return site


def tried(open_page: OpenPage, site: Site, path: str) -> Locator:
    """The part of /docs about POST to this path, ready to be filled in."""
    page = open_page(site)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{site.url}docs")
    about = page.locator(".opblock-post").filter(has=page.locator(f"[data-path='{path}']"))
    about.locator(".opblock-summary").click()
    about.get_by_role("button", name="Try it out").click()
    assert [url for url in asked if not url.startswith((site.url, "data:"))] == []
    return about


def executed(about: Locator, path: str) -> Response:
    """The service's answer."""
    with about.page.expect_response(f"**{path}") as answer:
        about.get_by_role("button", name="Execute").click()
    return answer.value


def send_file(about: Locator, path: str, file: Path) -> Response:
    """Chooses a file and nothing else."""
    about.locator(".opblock-section-request-body input[type=file]").set_input_files(file)
    return executed(about, path)


def filled_in(about: Locator) -> list[str]:
    """The values of the fields that the user can write in."""
    fields = about.locator(".opblock-section-request-body input[type=text]")
    expect(fields.first).to_be_visible()
    return [value for value in (field.input_value() for field in fields.all()) if value]


def choose(about: Locator, media_type: str) -> None:
    """Chooses what kind of body to send."""
    about.locator(".opblock-section-request-body .content-type").select_option(media_type)


def test_predict_takes_a_file_and_nothing_else(site: Site, open_page: OpenPage, recording: Path) -> None:
    """No field is filled in, and the options are the defaults."""
    about = tried(open_page, site, "/predict")
    choose(about, FORM)
    assert filled_in(about) == []
    assert send_file(about, "/predict", recording).status == 200
    assert site.graph.heard == [(recording.read_bytes(), Options())]


def test_predict_takes_an_address_and_nothing_else(site: Site, open_page: OpenPage) -> None:
    """The example in JSON has no options, and works."""
    about = tried(open_page, site, "/predict")
    example = about.locator(".opblock-section-request-body textarea")
    expect(example).to_have_value('{\n  "audio_file": "https://example.com/talk.mp3"\n}')
    assert executed(about, "/predict").status == 200
    assert site.graph.heard == [(b"", Options())]


@pytest.mark.parametrize("media_type", [FORM, JSON])
def test_a_job_is_submitted(media_type: str, site: Site, open_page: OpenPage, recording: Path) -> None:
    """The job has the defaults of options and of jobs."""
    about = tried(open_page, site, "/v1/jobs")
    if media_type == FORM:
        choose(about, FORM)
        assert filled_in(about) == []
        answer = send_file(about, "/v1/jobs", recording)
    else:
        answer = executed(about, "/v1/jobs")
    assert answer.status == 201
    job = answer.json()
    assert (job["priority"], job["webhook"], job["expires_at"]) == (0, None, None)
    assert site.graph.begun.wait(30)
    assert [options for _, options in site.graph.heard] == [Options()]
    assert "idempotency-key" not in answer.request.headers


def test_openai_transcriptions_take_a_file_and_nothing_else(
    site: Site, open_page: OpenPage, recording: Path
) -> None:
    """Only `model` and `chunking_strategy` are filled in, and the options are as with `model` alone."""
    about = tried(open_page, site, "/v1/audio/transcriptions")
    assert filled_in(about) == ["whisper-1", "auto"]
    assert send_file(about, "/v1/audio/transcriptions", recording).status == 200
    url = f"{site.url}v1/audio/transcriptions"
    httpx.post(url, files={"file": b"audio"}, data={"model": "whisper-1"}).raise_for_status()
    (_, tried_out), (_, plain) = site.graph.heard
    assert tried_out == plain
