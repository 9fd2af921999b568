"""The page in a real browser: a dropped recording becomes a transcript to hear, change and save."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
from page_service import KEY, TALK, Site
from playwright.sync_api import Locator, Page, expect

OpenPage = Callable[..., Page]
Serve = Callable[..., Site]


def drop(page: Page, path: Path) -> None:
    """Drops a file on the page, as from a file manager."""
    page.set_input_files("#files", path)


def transcribed(page: Page, site: Site, path: Path) -> None:
    """Has a file transcribed, and waits until all of its text is there."""
    site.graph.may_end.set()
    drop(page, path)
    expect(page.locator("#segments > li")).to_have_count(len(site.graph.transcript.segments))


def word(page: Page, text: str) -> Locator:
    return page.locator("#segments .word", has_text=re.compile(f"^{re.escape(text)}$")).first


def audio_s(page: Page) -> float:
    return float(page.evaluate("document.getElementById('audio').currentTime"))


def test_a_recording_becomes_a_transcript(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """The stages show while it runs, then the text in two colours, with who said it."""
    site = serve()
    page = open_page(site)
    drop(page, recording)
    expect(page.locator("#running-title")).to_have_text("sample.wav")
    expect(page.locator("#stages li", has_text="Writing text").locator(".detail")).to_have_text("1 of 4")
    expect(page.locator("#stages li", has_text="Upload")).to_have_class("done")
    site.graph.may_end.set()
    expect(page.locator("#transcript-title")).to_have_text("sample.wav")
    expect(page.locator("#running")).to_be_hidden()
    expect(page.locator("#segments .text")).to_have_text([segment.text for segment in TALK.segments])
    speakers = page.locator("#segments .speaker")
    expect(speakers).to_have_text(["SPEAKER_00", "SPEAKER_01", "SPEAKER_00", "SPEAKER_01"])
    colours = {speakers.nth(n).evaluate("e => getComputedStyle(e).color") for n in range(4)}
    assert len(colours) == 2
    assert site.graph.heard[0][0] == recording.read_bytes()


def test_a_click_on_a_word_plays_from_there(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """The audio is at the word at once, and the word that is heard is marked."""
    site = serve()
    page = open_page(site)
    transcribed(page, site, recording)
    page.locator("#speed").select_option("0.5")
    word(page, "Texas,").click()
    begun_s = TALK.segments[1].words[4].start_s
    assert begun_s is not None
    assert abs(audio_s(page) - begun_s) < 0.1
    expect(word(page, "Texas,")).to_have_class(re.compile("playing"))
    expect(page.locator("#segments .word.playing")).to_have_text("originally")
    assert not page.evaluate("document.getElementById('audio').paused")


def test_a_speaker_is_renamed_once(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """The name changes in all of the text, in downloads, and is still there when the page is opened again."""
    site = serve()
    page = open_page(site)
    transcribed(page, site, recording)
    page.get_by_label("Name of SPEAKER_00").fill("Diane <D>")
    names = ["Diane <D>", "SPEAKER_01", "Diane <D>", "SPEAKER_01"]
    expect(page.locator("#segments .speaker")).to_have_text(names)
    for name in ("srt", "vtt", "text", "json", "words", "tsv", "rttm"):
        spoken = "Diane_<D>" if name == "rttm" else "Diane &lt;D&gt;" if name == "vtt" else "Diane <D>"
        expected = in_format(site, name).replace("SPEAKER_00", spoken)
        assert same(downloaded(page, name), expected), name
    page.reload()
    page.get_by_role("button", name="Open: sample.wav").click()
    expect(page.locator("#segments .speaker")).to_have_text(names)


def test_text_is_edited_in_place(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """What was edited is in downloads; words that stayed play from where they are; Escape changes nothing."""
    site = serve()
    page = open_page(site)
    transcribed(page, site, recording)
    second = page.locator("#segments > li").nth(1)
    second.get_by_role("button", name="Edit").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("I am Sheila in Dallas, Texas, originally from Chicago.")
    page.keyboard.press("Enter")
    expect(second.locator(".text")).to_have_text("I am Sheila in Dallas, Texas, originally from Chicago.")
    expected = in_format(site, "srt").replace("And I'm Sheila in Texas,", "I am Sheila in Dallas, Texas,")
    assert downloaded(page, "srt") == expected
    word(page, "originally").click()
    begun_s = TALK.segments[1].words[5].start_s
    assert begun_s is not None
    assert abs(audio_s(page) - begun_s) < 0.1
    second.get_by_role("button", name="Edit").click()
    page.keyboard.type("no, not this")
    page.keyboard.press("Escape")
    expect(second.locator(".text")).to_have_text("I am Sheila in Dallas, Texas, originally from Chicago.")


def test_downloads_are_the_servers(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """Where nothing was changed, each format is byte for byte what the API gives."""
    site = serve()
    page = open_page(site)
    transcribed(page, site, recording)
    for name in ("srt", "vtt", "text", "json", "words", "tsv", "rttm"):
        assert downloaded(page, name) == in_format(site, name)


def test_text_is_found(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """Matches are counted whatever their case, and visited in a circle."""
    site = serve()
    page = open_page(site)
    transcribed(page, site, recording)
    page.keyboard.press("/")
    page.keyboard.type("chicago")
    expect(page.locator("#found")).to_have_text("1 of 2")
    assert page.evaluate("CSS.highlights.get('found').size") == 2
    page.get_by_role("button", name="Next match").click()
    expect(page.locator("#found")).to_have_text("2 of 2")
    page.get_by_role("button", name="Next match").click()
    expect(page.locator("#found")).to_have_text("1 of 2")
    page.locator("#find").fill("nowhere")
    expect(page.locator("#found")).to_have_text("not found")


def test_the_keyboard_plays(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """Space plays and pauses, arrows skip five seconds; typing into a field does neither."""
    site = serve()
    page = open_page(site)
    transcribed(page, site, recording)
    page.locator("#transcript-title").focus()
    page.keyboard.press("ArrowRight")
    assert abs(audio_s(page) - 5) < 0.1
    page.keyboard.press("Space")
    expect(page.locator("#play .word")).to_have_text("Pause")
    page.keyboard.press("Space")
    expect(page.locator("#play .word")).to_have_text("Play")
    page.locator("#find").focus()
    page.keyboard.press("Space")
    expect(page.locator("#play .word")).to_have_text("Play")


def test_uncertain_words_are_shaded(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """Words of a low score, unless the reader does not want it."""
    site = serve()
    page = open_page(site)
    transcribed(page, site, recording)
    shaded = page.locator("#segments .low")
    expect(shaded).to_have_text(["is", "Sheila", "originally", "New", "is"])
    colour = "e => getComputedStyle(e).backgroundColor"
    assert shaded.first.evaluate(colour) != "rgba(0, 0, 0, 0)"
    page.get_by_label("Shade uncertain words").uncheck()
    assert shaded.first.evaluate(colour) == "rgba(0, 0, 0, 0)"


def test_a_job_of_another_day_is_heard(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """The server still has the upload, also for a browser that has never seen it."""
    site = serve(with_key=True)
    page = open_page(site)
    page.get_by_label("This server asks for an API key").fill(KEY)
    page.keyboard.press("Enter")
    transcribed(page, site, recording)
    page.reload()
    page.get_by_role("button", name="Open: sample.wav").click()
    expect(page.locator("#play")).to_be_enabled()
    expect(page.locator("#no-audio")).to_be_hidden()
    page.locator("#segments .word").nth(9).click()
    expect(page.locator("#play .word")).to_have_text("Pause")


def test_the_peaks_of_a_long_file_are_the_servers(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """A file of more than ten minutes is not decoded in the browser."""
    site = serve()
    peaks = bytes(100 if number % 200 == 0 else 10 for number in range(20 * 1200))
    site.graph.transcript = replace(TALK, duration_s=1200.0, peaks=b64encode(peaks).decode())
    page = open_page(site)
    with page.expect_response("**/peaks") as answer:
        transcribed(page, site, recording)
    assert answer.value.json()["per_second"] == 20
    expect(page.locator("#wave")).to_have_js_property("offsetHeight", 51)


def test_the_waveform_is_drawn(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """It has the loud and quiet parts of the recording, zooms, and has a lane for each speaker below it."""
    site = serve()
    page = open_page(site)
    transcribed(page, site, recording)
    expect(page.locator("#wave")).to_have_js_property("offsetHeight", 51)  # a flat line, before, is lower
    quiet, loud = page.locator("#wave canvas").first.evaluate(INK, [2 / 30, 8 / 30])
    assert quiet < loud / 5
    width = "document.querySelector('#wave > div').shadowRoot.querySelector('.wrapper').scrollWidth"
    whole = page.evaluate(width)
    page.locator("#zoom").fill("60")
    assert page.evaluate(width) > 2 * whole
    expect(page.locator("#lanes")).to_have_attribute(
        "aria-label", re.compile("SPEAKER_00 .* %, SPEAKER_01 .* %")
    )


# How many of the pixels at these places, from 0 to 1, are not transparent.
INK = """(canvas, places) => places.map((place) => {
  const column = canvas.getContext("2d").getImageData(canvas.width * place - 2, 0, 5, canvas.height).data;
  return column.filter((value, at) => at % 4 === 3 && value > 0).length;
})"""


def downloaded(page: Page, name: str) -> str:
    """What the button of a format saves."""
    with page.expect_download() as download:
        page.locator(f"[data-format={name}]").click()
    return download.value.path().read_text()


def in_format(site: Site, name: str) -> str:
    """What the API gives of the newest job."""
    job = httpx.get(f"{site.url}v1/jobs").json()["jobs"][0]["id"]
    words = {"word_timestamps": "true"} if name == "json" else {}
    result = httpx.get(f"{site.url}v1/jobs/{job}/result", params={"response_format": name, **words})
    assert result.status_code == 200
    return result.text


def same(one: str, other: str) -> bool:
    """Whether they are the same text, or the same JSON."""
    return json.loads(one) == json.loads(other) if one.startswith("{") else one == other
