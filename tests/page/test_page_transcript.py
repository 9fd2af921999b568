"""The page in a real browser: a dropped recording becomes a transcript to hear, change and save."""

import re
from collections.abc import Callable
from pathlib import Path

from page_service import TALK, Site
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
