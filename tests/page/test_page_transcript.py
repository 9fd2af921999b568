"""The page in a real browser: a dropped recording becomes a transcript to hear, change and save."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import srt
from page_service import TALK, Site
from playwright.sync_api import Locator, Page, expect

OpenPage = Callable[..., Page]
Serve = Callable[..., Site]


def drop(page: Page, path: Path) -> None:
    """Drops a file on the page, as from a file manager."""
    file = page.evaluate_handle(
        """([name, base64]) => {
          const dropped = new DataTransfer();
          const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
          dropped.items.add(new File([bytes], name, { type: "audio/wav" }));
          return dropped;
        }""",
        [path.name, b64encode(path.read_bytes()).decode()],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": file})


def transcribed(page: Page, site: Site, path: Path) -> None:
    """Has a file transcribed, and waits until all of its text is there."""
    site.graph.may_end.set()
    drop(page, path)
    expect(page.locator("#segments > li")).to_have_count(len(site.graph.transcript.segments))


@pytest.fixture
def site(serve: Serve) -> Site:
    """The service."""
    return serve()


@pytest.fixture
def page(open_page: OpenPage, site: Site, recording: Path) -> Page:
    """The page with the transcript of the recording."""
    page = open_page(site)
    transcribed(page, site, recording)
    return page


def reopen(page: Page) -> None:
    """Loads the page again, and opens the transcript from the list of jobs."""
    page.reload()
    page.get_by_role("button", name="Open: sample.wav").click()


def rewrite(page: Page, segment: Locator, text: str) -> None:
    """Replaces the text of a segment by keyboard."""
    segment.get_by_role("button", name="Edit").click()
    page.keyboard.press("Control+A")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def begin_s(segment: int, place: int) -> float:
    """When a word of the talk begins."""
    start_s = TALK.segments[segment].words[place].start_s
    assert start_s is not None
    return start_s


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
    expect(page.locator("#live p")).to_have_text(
        ["0:01 Hello, this is Diane in New Jersey.", re.compile("^0:05 And I'm Sheila")]
    )
    site.graph.may_end.set()
    expect(page.locator("#transcript-title")).to_have_text("sample.wav")
    expect(page.locator("#running")).to_be_hidden()
    expect(page.locator("#segments .text")).to_have_text([segment.text for segment in TALK.segments])
    speakers = page.locator("#segments .speaker")
    labels = speakers.locator("option:checked")
    expect(labels).to_have_text(["SPEAKER_00", "SPEAKER_01", "SPEAKER_00", "SPEAKER_01"])
    colours = {speakers.nth(n).evaluate("e => getComputedStyle(e).color") for n in range(4)}
    assert len(colours) == 2
    assert site.graph.heard[0][0] == recording.read_bytes()


def test_a_click_on_a_word_plays_from_there(page: Page) -> None:
    """The audio is at the word at once, and the word that is heard is marked."""
    page.locator("#speed").select_option("0.5")
    word(page, "Texas,").click()
    assert abs(audio_s(page) - begin_s(1, 4)) < 0.1
    expect(word(page, "Texas,")).to_have_class(re.compile("playing"))
    expect(page.locator("#segments .word.playing")).to_have_text("originally")
    assert not page.evaluate("document.getElementById('audio').paused")


def test_a_speaker_is_renamed_once(page: Page, site: Site) -> None:
    """The name changes in all of the text, in downloads, and is still there when the page is opened again."""
    page.get_by_label("Name of SPEAKER_00").fill("Diane <D>")
    names = ["Diane <D>", "SPEAKER_01", "Diane <D>", "SPEAKER_01"]
    expect(page.locator("#segments .speaker option:checked")).to_have_text(names)
    for name in ("srt", "vtt", "text", "json", "words", "tsv", "rttm"):
        spoken = "Diane_<D>" if name == "rttm" else "Diane &lt;D&gt;" if name == "vtt" else "Diane <D>"
        expected = in_format(site, name).replace("SPEAKER_00", spoken)
        assert same(downloaded(page, name), expected), name
    reopen(page)
    expect(page.locator("#segments .speaker option:checked")).to_have_text(names)


def test_a_segment_is_given_to_another_speaker(page: Page) -> None:
    """The speaker may be new, and the keyboard works too; all downloads follow, and the page remembers it."""
    # The third segment has the same speaker, so the fourth shows its list of speakers after a click on Edit.
    fourth = page.locator("#segments > li").nth(3)
    fourth.get_by_role("button", name="Edit").click()
    page.keyboard.press("Escape")
    fourth.get_by_role("combobox", name="Speaker from 0:14").focus()
    fourth.get_by_role("combobox").select_option("New speaker")
    expect(fourth.get_by_role("combobox")).to_be_focused()
    labels = page.locator("#segments .speaker option:checked")
    expect(labels).to_have_text(["SPEAKER_00", "SPEAKER_01", "SPEAKER_00", "SPEAKER_02", "SPEAKER_01"])
    page.get_by_role("combobox", name="Speaker from 0:05").focus()
    page.keyboard.press("ArrowUp")
    expect(labels).to_have_text(["SPEAKER_00", "SPEAKER_00", "SPEAKER_02", "SPEAKER_01"])
    page.get_by_label("Name of SPEAKER_02").fill("Sheila")
    ids = {"A": "SPEAKER_00", "B": "SPEAKER_01", "C": "Sheila"}
    spoken = [ids[name] for name in "AAACB"]
    assert re.findall(r"\[(.*?)\]: ", downloaded(page, "srt")) == spoken
    assert re.findall(r"<v (.*?)>", downloaded(page, "vtt")) == spoken
    assert re.findall(r"^\[(.*?)\]: ", downloaded(page, "text"), re.MULTILINE) == spoken
    segments = json.loads(downloaded(page, "json"))["model_output"]
    assert [segment["speaker"] for segment in segments] == spoken
    assert {word["speaker"] for word in segments[3]["words"]} == {"Sheila"}
    words = json.loads(downloaded(page, "words"))["words"]
    assert [word["speaker"] for word in words if word["word"] in ("Diane", "Sheila", "mostly.")] == [
        "SPEAKER_00",
        "SPEAKER_00",
        "Sheila",
    ]
    rttm = [line.split() for line in downloaded(page, "rttm").splitlines()]
    assert [(fields[3], fields[4], fields[7]) for fields in rttm] == [
        ("1.000", "3.000", "SPEAKER_00"),
        ("5.500", "3.160", "SPEAKER_00"),
        ("8.660", "0.340", "SPEAKER_01"),  # what the turn has besides the segment
        ("10.000", "4.200", "SPEAKER_00"),
        ("14.200", "4.360", "Sheila"),
        ("20.000", "3.000", "SPEAKER_01"),
    ]
    reopen(page)
    expect(labels).to_have_text(["SPEAKER_00", "Sheila", "SPEAKER_01"])


def test_text_is_edited_in_place(page: Page, site: Site) -> None:
    """Downloads have the new text, unchanged words keep their times, and Escape discards an edit."""
    second = page.locator("#segments > li").nth(1)
    rewrite(page, second, "I am Sheila in Dallas, Texas, originally from Chicago.")
    expect(second.locator(".text")).to_have_text("I am Sheila in Dallas, Texas, originally from Chicago.")
    expected = in_format(site, "srt").replace("And I'm Sheila in Texas,", "I am Sheila in Dallas, Texas,")
    assert downloaded(page, "srt") == expected
    word(page, "originally").click()
    assert abs(audio_s(page) - begin_s(1, 5)) < 0.1
    second.get_by_role("button", name="Edit").click()
    page.keyboard.type("no, not this")
    page.keyboard.press("Escape")
    expect(second.locator(".text")).to_have_text("I am Sheila in Dallas, Texas, originally from Chicago.")


def test_subtitles_are_laid_out(page: Page, site: Site) -> None:
    """The server lays out the lines, with the user's names; edited text has the same limits."""
    page.get_by_text("Layout of subtitles").click()
    page.get_by_label("Characters in a line").fill("20")
    page.get_by_label("Lines at a time").fill("2")
    chosen = {"max_line_width": "20", "max_line_count": "2"}
    for name in ("srt", "vtt"):
        assert downloaded(page, name) == in_format(site, name, **chosen)
    page.get_by_label("Underline the word").check()
    highlighted = in_format(site, "srt", **chosen, highlight_words="true")
    assert "<u>Diane</u>" in highlighted
    assert downloaded(page, "srt") == highlighted
    page.get_by_label("Name of SPEAKER_00").fill("Diane")
    assert downloaded(page, "srt") == highlighted.replace("SPEAKER_00", "Diane")
    page.get_by_label("Underline the word").uncheck()
    last = page.locator("#segments > li").last
    rewrite(page, last, "Well, there is really not so much of a difference.")
    edited = [cue.content.split("\n") for cue in srt.parse(downloaded(page, "srt"))]
    assert edited[-2:] == [
        ["[SPEAKER_01]: Well, there is", "really not so much"],
        ["[SPEAKER_01]: of a difference."],
    ]
    assert all(len(line.partition("]: ")[2] or line) <= 20 for cue in edited for line in cue)


def test_downloads_are_the_servers(page: Page, site: Site) -> None:
    """Without changes, each format is byte for byte what the API gives."""
    for name in ("srt", "vtt", "text", "json", "words", "tsv", "rttm"):
        assert downloaded(page, name) == in_format(site, name)


def test_text_is_found(page: Page) -> None:
    """Matches are counted in upper and lower case, and the one after the last is the first."""
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


def test_the_keyboard_plays(page: Page) -> None:
    """Space plays and pauses, arrows skip five seconds; typing into a field does neither."""
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


def test_uncertain_words_are_shaded(page: Page) -> None:
    """Words with a low score are shaded, until the reader turns that off."""
    shaded = page.locator("#segments .low")
    expect(shaded).to_have_text(["is", "Sheila", "originally", "New", "is"])
    colour = "e => getComputedStyle(e).backgroundColor"
    assert shaded.first.evaluate(colour) != "rgba(0, 0, 0, 0)"
    page.get_by_label("Shade uncertain words").uncheck()
    assert shaded.first.evaluate(colour) == "rgba(0, 0, 0, 0)"


def test_a_job_of_another_day_is_heard(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """The browser has kept the job's audio, which the server has erased."""
    site = serve()
    page = open_page(site, bypass_csp=True)
    transcribed(page, site, recording)
    wait_for_kept(page, 1)
    reopen(page)
    expect(page.locator("#play")).to_be_enabled()
    expect(page.locator("#no-audio")).to_be_hidden()
    word(page, "Texas,").click()
    expect(page.locator("#play .word")).to_have_text("Pause")
    assert abs(audio_s(page) - begin_s(1, 4)) < 0.5


@pytest.mark.parametrize("why", ["other browser", "no storage", "full"])
def test_audio_that_is_not_here_can_be_chosen(
    why: str, serve: Serve, open_page: OpenPage, recording: Path
) -> None:
    """The page says that the audio is missing, and draws the waveform before and after a file is chosen."""
    site = serve()
    page = open_page(site, bypass_csp=True)
    if why != "other browser":
        broken = {
            "no storage": "delete globalThis.caches; delete Window.prototype.caches",
            "full": "Cache.prototype.put = async () => { throw new DOMException('', 'QuotaExceededError') }",
        }
        page.add_init_script(broken[why])
        page.reload()
    transcribed(page, site, recording)
    if why == "other browser":
        page = open_page(site, bypass_csp=True)
    else:
        page.reload()
    page.get_by_role("button", name=re.compile("^Open: ")).click()
    expect(page.locator("#no-audio-why")).to_contain_text("is not in this browser")
    expect(page.locator("#play")).to_be_disabled()
    assert_drawn(page)
    page.locator("#wave").click()  # in the middle
    expect(page.locator("#clock")).to_have_text("0:15 / 0:30")
    expect(page.locator("#segments > li.playing")).to_contain_text("New Jersey now")
    page.set_input_files("#attach", recording)
    expect(page.locator("#no-audio")).to_be_hidden()
    assert_drawn(page)
    word(page, "Texas,").click()
    expect(page.locator("#play .word")).to_have_text("Pause")


def test_audio_is_kept_as_long_as_its_job(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """Deleting a job deletes its audio here; a job erased elsewhere loses its audio at the next visit."""
    site = serve()
    page = open_page(site)
    for count in (1, 2):
        transcribed(page, site, recording)
        wait_for_kept(page, count)
    page.get_by_role("button", name="Delete: sample.wav").first.click()
    page.get_by_role("button", name="Really delete?: sample.wav").click()
    wait_for_kept(page, 1)
    (job,) = httpx.get(f"{site.url}v1/jobs").json()["jobs"]
    assert page.evaluate(KEPT) == [site.url + job["id"]]
    reopen(page)
    page.get_by_label("Name of SPEAKER_00").fill("Diane")
    changes = "Object.keys(localStorage).filter((name) => name.startsWith('whisperx.changes.')).length"
    assert page.evaluate(changes) == 1
    page.reload()
    expect(page.locator("#jobs .state")).to_have_count(1)
    assert len(page.evaluate(KEPT)) == page.evaluate(changes) == 1
    httpx.delete(f"{site.url}v1/jobs/{job['id']}").raise_for_status()
    page.reload()
    wait_for_kept(page, 0)
    assert page.evaluate(changes) == 0


def test_a_warning_says_that_changes_cannot_be_kept(page: Page) -> None:
    """Where the browser's storage is full, the user can still download what was changed."""
    set_item = "Storage.prototype.setItem"
    full = "() => { throw new DOMException('', 'QuotaExceededError') }"
    page.evaluate(f"() => {{ window.original = {set_item}; {set_item} = {full}; }}")
    page.get_by_label("Name of SPEAKER_00").fill("Diane")
    expect(page.get_by_role("alert")).to_contain_text("no room to keep your changes")
    assert "Diane" in downloaded(page, "text")
    page.evaluate(f"() => {{ {set_item} = original }}")
    page.get_by_label("Name of SPEAKER_00").fill("Diana")
    expect(page.get_by_role("alert")).to_be_empty()


# The addresses of all audio that the browser keeps.
KEPT = "async () => (await (await caches.open('audio')).keys()).map((key) => key.url)"


def wait_for_kept(page: Page, count: int) -> None:
    """Waits until the browser keeps the audio of this many jobs."""
    # `wait_for_function` cannot be used: it would count the unresolved promise as true.
    page.evaluate(
        f"""async (count) => {{
          for (const end = Date.now() + 15000; (await ({KEPT})()).length !== count; ) {{
            if (Date.now() > end) throw new Error("The browser does not keep the audio of " + count);
            await new Promise((resume) => setTimeout(resume, 50));
          }}
        }}""",
        count,
    )


def test_the_waveform_is_drawn(serve: Serve, open_page: OpenPage, recording: Path) -> None:
    """It has the loud and quiet parts of the recording, zooms, and has a lane for each speaker below it."""
    site = serve()
    page = open_page(site, bypass_csp=True)
    transcribed(page, site, recording)
    assert_drawn(page)
    width = "document.querySelector('#wave > div').shadowRoot.querySelector('.wrapper').scrollWidth"
    whole = page.evaluate(width)
    page.locator("#zoom").fill("60")
    assert page.evaluate(width) > 2 * whole
    expect(page.locator("#lanes")).to_have_attribute(
        "aria-label", re.compile("SPEAKER_00 .* %, SPEAKER_01 .* %")
    )


def assert_drawn(page: Page) -> None:
    """The waveform is quiet and loud where PEAKS is. The page must be opened with `bypass_csp`."""
    expect(page.locator("#wave canvas").first).to_be_visible()
    page.wait_for_function(IS_DRAWN, arg=page.locator("#wave canvas").first.element_handle())


# How many pixels are not transparent in two columns of the waveform of PEAKS, at 2.5 and at 11.5 of 30 s.
IS_DRAWN = """(canvas) => {
  const ink = (seconds) => {
    const x = (canvas.width * seconds) / 30;
    const { data } = canvas.getContext("2d").getImageData(x - 2, 0, 5, canvas.height);
    return data.filter((value, at) => at % 4 === 3 && value > 0).length;
  };
  return ink(2.5) < ink(11.5) / 5;
}"""


def downloaded(page: Page, name: str) -> str:
    """What the button of a format saves."""
    with page.expect_download() as download:
        page.locator(f"[data-format={name}]").click()
    return download.value.path().read_text()


def in_format(site: Site, name: str, **layout: str) -> str:
    """What the API gives of the newest job."""
    job = httpx.get(f"{site.url}v1/jobs").json()["jobs"][0]["id"]
    words = {"word_timestamps": "true"} if name == "json" else {}
    result = httpx.get(f"{site.url}v1/jobs/{job}/result", params={"response_format": name, **words, **layout})
    assert result.status_code == 200
    return result.text


def same(one: str, other: str) -> bool:
    """Whether they are the same text, or the same JSON."""
    return json.loads(one) == json.loads(other) if one.startswith("{") else one == other
