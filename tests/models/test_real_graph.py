"""The whole graph on real models, over HTTP and through the handle, with a real telephone call."""

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import srt
import webvtt
from clients import until
from conftest import HTTP_PORT, SHARED
from fakes import data_url
from loopback import Files
from openai import BadRequestError, OpenAI
from openai_contract import check, check_event
from page_service import Graph, Site
from playwright.sync_api import Page, expect
from ray import serve
from sounds import VIDEO, encode, silence, wav
from telephone import said_on_the_telephone, word_error_rate, words_of

from benchmarks.decoding import decode_whole
from serve_app.app import build
from serve_app.cli.demo import sample as demo_sample
from serve_app.deployments.calls.audio_ref import AudioSlice
from serve_app.request.calls import DiarizeCall
from serve_app.settings import AlignmentSettings, DiarizationSettings, IntakeSettings, Settings
from serve_app.settings.jobs import JobsSettings
from serve_app.transcript import SAMPLE_RATE_HZ, Samples

URL = f"http://127.0.0.1:{HTTP_PORT}/real"
CLIP = slice(6 * SAMPLE_RATE_HZ, 18 * SAMPLE_RATE_HZ)
CLIP_S = 12.0


@pytest.fixture(scope="module")
def graph(
    cluster: None, files: Files, tiny_en: Path, campplus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """What `make serve` starts, with a smaller Whisper, beside the graph on fake models."""
    settings = Settings(
        model="tiny.en",
        device="cpu",
        alignment=AlignmentSettings(method="attention"),
        diarization=DiarizationSettings(model="campplus"),
        intake=IntakeSettings(allowed_hosts=(files.host,)),
        jobs=JobsSettings(state_dir=str(tmp_path_factory.mktemp("jobs"))),
    )
    serve.run(build(settings), name="real", route_prefix="/real")
    until(lambda: httpx.get(f"{URL}/healthz", timeout=60).status_code == 200)  # the proxy knows the route
    yield URL
    serve.delete("real")


@pytest.fixture(scope="module")
def clip(sample: Samples) -> bytes:
    """The call's first seven lines."""
    return wav(sample[CLIP])


def post(content: bytes, **data: Any) -> dict[str, Any]:
    response = httpx.post(f"{URL}/predict", files={"file": content}, data=data, timeout=3600)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def text_of(body: dict[str, Any]) -> str:
    return " ".join(segment["text"] for segment in body["model_output"])


def test_the_sample_by_url_is_what_was_said(graph: str, files: Files) -> None:
    """The demo's call: the right words, all with times and in order, of two speakers, up to the last one."""
    url = files.url("/sample.wav", demo_sample().read_bytes())
    body = httpx.post(
        f"{graph}/predict", json={"audio_file": url, "word_timestamps": True}, timeout=300
    ).json()
    lines, segments = said_on_the_telephone(), body["model_output"]
    assert word_error_rate(lines, text_of(body)) <= 0.25
    assert {segment["speaker"] for segment in segments} == {"SPEAKER_00", "SPEAKER_01"}
    assert (body["language"], body["model"], body["warnings"]) == ("en", "tiny.en", [])
    assert body["duration"] == 30.0
    words = [word for segment in segments for word in segment["words"]]
    assert " ".join(word["word"] for word in words) == text_of(body)
    assert all(0 <= word["start"] <= word["end"] <= 30.0 for word in words)
    assert [word["start"] for word in words] == sorted(word["start"] for word in words)
    assert words[-1]["end"] > 29.0


def test_equal_requests_have_equal_answers(graph: str, sample: Samples, clip: bytes) -> None:
    """Sent twice at once, beside another file, and alone: what shares a batch changes no answer."""
    other = wav(sample[20 * SAMPLE_RATE_HZ :])
    alone = post(clip, word_timestamps="true")
    with ThreadPoolExecutor(3) as clients:
        sent = [clients.submit(post, content, word_timestamps="true") for content in (clip, other, clip)]
    for body in (sent[0].result(), sent[2].result()):
        assert {**body, "timings": None} == {**alone, "timings": None}
    assert text_of(sent[1].result()) != text_of(alone)


def test_known_speakers_of_the_call_have_their_names(graph: str, sample: Samples) -> None:
    """By references over HTTP what Diane and Sheila say has their names; a third person is not heard."""
    lines = said_on_the_telephone()

    def reference(speaker: str) -> Samples:
        line = max(
            (line for line in lines if line.speaker == speaker), key=lambda line: line.end_s - line.start_s
        )
        return sample[int(line.start_s * SAMPLE_RATE_HZ) : int(line.end_s * SAMPLE_RATE_HZ)]

    diane, sheila = reference("Diane"), reference("Sheila")
    lower = np.interp(np.arange(0, len(diane), 0.65), np.arange(len(diane)), diane).astype(np.int16)
    clips = {"Diane": diane, "Sheila": sheila, "Eve": lower}  # who is Diane on a slow tape
    body = {
        "audio_b64": base64.b64encode(demo_sample().read_bytes()).decode(),
        "known_speaker_names": list(clips),
        "known_speaker_references": [data_url(encode(c, SAMPLE_RATE_HZ, ".m4a")) for c in clips.values()],
        "word_timestamps": True,
    }
    answer = httpx.post(f"{graph}/predict", json=body, timeout=300).json()
    assert {segment["speaker"] for segment in answer["model_output"]} == {"Diane", "Sheila"}
    assert [warning["code"] for warning in answer["warnings"]] == ["known_speaker_not_found"]
    assert "Eve" in answer["warnings"][0]["message"]
    named = [(w["speaker"], (w["start"] + w["end"]) / 2) for s in answer["model_output"] for w in s["words"]]
    right = sum(
        any(line.speaker == who and line.start_s <= at_s <= line.end_s for line in lines)
        for who, at_s in named
    )
    assert right >= 0.85 * len(named)


def test_a_window_of_two_speakers_is_split_where_they_change(graph: str, clip: bytes) -> None:
    """No pause lies between their lines, so Whisper hears them in one window; their words stay apart."""
    split = post(clip)
    whole = post(clip, split_at_speaker_change="false")
    assert len(split["model_output"]) >= len(whole["model_output"])
    assert text_of(split) == text_of(whole)


def test_the_python_handle_equals_http(graph: str, clip: bytes) -> None:
    """serve.get_app_handle(...).transcribe gives the answer that HTTP gives."""
    by_handle = serve.get_app_handle("real").transcribe.remote(clip).result(timeout_s=300)
    by_http = post(clip)
    assert {**by_handle, "timings": None} == {**by_http, "timings": None}
    json.dumps(by_handle)


def test_subtitles_and_turns_say_what_json_says(graph: str, clip: bytes, tmp_path: Path) -> None:
    """srt, vtt and rttm over HTTP, read by other parsers: the text and speakers of the JSON answer."""
    from pyannote.database.util import load_rttm

    body = post(clip)
    said = " ".join(f"{s['speaker']} {word}" for s in body["model_output"] for word in s["text"].split())
    answers = {}
    for name, kind in (("srt", "application/x-subrip"), ("vtt", "text/vtt"), ("rttm", "text/plain")):
        data = {"response_format": name}
        response = httpx.post(f"{graph}/predict", files={"file": clip}, data=data, timeout=300)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == f"{kind}; charset=utf-8"
        assert "x-warnings" not in response.headers
        answers[name] = response.text

    cues = list(srt.parse(answers["srt"]))
    pairs = [re.fullmatch(r"\[(\w+)\]: (.*)", cue.content, re.DOTALL) for cue in cues]
    assert " ".join(f"{pair[1]} {word}" for pair in pairs if pair for word in pair[2].split()) == said
    assert all(0 <= c.start.total_seconds() < c.end.total_seconds() <= CLIP_S for c in cues)
    spoken = [(cue.voice, word) for cue in webvtt.from_string(answers["vtt"]) for word in cue.text.split()]
    assert " ".join(f"{speaker} {word}" for speaker, word in spoken) == said
    path = tmp_path / "x.rttm"
    path.write_text(answers["rttm"])
    turns = load_rttm(str(path))["audio"]
    assert set(turns.labels()) == {"SPEAKER_00", "SPEAKER_01"}
    assert 0 <= turns.get_timeline().extent().start < turns.get_timeline().extent().end < CLIP_S + 0.1


def test_the_python_handle_gives_text_and_ends_streams_with_it(graph: str, clip: bytes) -> None:
    """A str for text formats, with the lines asked for; a dict for words, those of the segments."""
    handle = serve.get_app_handle("real")
    options: dict[str, Any] = {"response_format": "vtt", "max_line_width": 20, "max_line_count": 2}
    once = handle.transcribe.remote(clip, **options).result(timeout_s=300)
    stream: Any = handle.options(stream=True).stream.remote(clip, **options)
    *reports, last = stream
    assert reports
    assert once == last
    assert once.startswith("WEBVTT\n\n")
    cues = webvtt.from_string(once)
    assert max(len(line) for cue in cues for line in cue.text.split("\n")) <= 20
    words = handle.transcribe.remote(clip, response_format="words").result(timeout_s=300)["words"]
    segments = post(clip, word_timestamps="true")["model_output"]
    assert words == [word for segment in segments for word in segment["words"]]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("stereo.m4a", lambda s: encode(np.stack([s, s // 2], axis=1), SAMPLE_RATE_HZ, ".m4a")),
        ("8khz.wav", lambda s: wav(s[::2], SAMPLE_RATE_HZ // 2)),
        ("video.mp4", lambda s: encode(s, SAMPLE_RATE_HZ, ".mp4", *VIDEO, "-movflags", "+faststart")),
        ("index-at-the-end.mp4", lambda s: encode(s, SAMPLE_RATE_HZ, ".mp4")),
    ],
)
def test_containers_hold_what_was_said(graph: str, sample: Samples, name: str, make: Any) -> None:
    """Ten seconds of the call in other containers, rates and channels."""
    body = post(make(sample[20 * SAMPLE_RATE_HZ :]))
    assert body["duration"] == pytest.approx(10.0, abs=0.1)
    assert word_error_rate(said_on_the_telephone()[9:], text_of(body)) <= 0.3


@pytest.mark.parametrize(
    "content", [wav(silence(5.0)), wav(silence(0.1))], ids=["silence", "a tenth of silence"]
)
def test_silence_is_an_empty_list(graph: str, content: bytes) -> None:
    """Nothing was said, so nothing is written: no "Thank you."."""
    body = post(content)
    assert (body["model_output"], body["language"], body["warnings"]) == ([], None, [])


def test_a_tenth_of_a_second_of_speech_invents_nothing(graph: str, sample: Samples) -> None:
    """0.1 s is answered, with at most the word it could hold."""
    body = post(wav(sample[7 * SAMPLE_RATE_HZ : 7 * SAMPLE_RATE_HZ + SAMPLE_RATE_HZ // 10]))
    assert body["duration"] == 0.1
    assert len(" ".join(s["text"] for s in body["model_output"]).split()) <= 1


def test_the_openai_package_gets_what_predict_gives(graph: str, clip: bytes) -> None:
    """Sentences, words and speakers of the sample are the same."""
    ours = post(clip, word_timestamps="true")["model_output"]
    with OpenAI(base_url=f"{graph}/v1", api_key="none", timeout=300) as client:
        verbose = client.audio.transcriptions.create(
            file=("sample.wav", clip),
            model="tiny.en",
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )
        diarized = client.audio.transcriptions.create(
            file=("sample.wav", clip), model="whisper-1", response_format="diarized_json"
        )
    check("verbose_json", verbose.to_dict())
    check("diarized_json", diarized.to_dict())
    assert verbose.segments
    assert verbose.words
    assert verbose.text == diarized.text == " ".join(segment["text"] for segment in ours)
    assert [(s.start, s.end, s.text) for s in verbose.segments] == [
        (s["start"], s["end"], s["text"]) for s in ours
    ]
    words = [(w["word"], w["start"], w["end"]) for s in ours for w in s["words"]]
    assert [(w.word, w.start, w.end) for w in verbose.words] == words
    for segment in verbose.segments:
        assert -1.5 < segment.avg_logprob < 0
        assert segment.seek / 100 <= segment.start + 0.5
    speakers = list(dict.fromkeys(segment["speaker"] for segment in ours))  # in order of appearance
    assert [s.speaker for s in diarized.segments] == ["AB"[speakers.index(s["speaker"])] for s in ours]


def test_a_stream_of_real_models_is_the_same_text(graph: str, clip: bytes) -> None:
    """Deltas together are the text of an answer in one piece; subtitles go through, too."""
    with OpenAI(base_url=f"{graph}/v1", api_key="none", timeout=300) as client:
        create: Any = client.audio.transcriptions.create
        file = ("sample.wav", clip)
        whole = create(file=file, model="whisper-1").text
        events = list(create(file=file, model="whisper-1", response_format="diarized_json", stream=True))
        kinds = [check_event(event.to_dict()) for event in events]
        deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
        assert "".join(deltas) == events[-1].text == whole
        assert kinds.count("transcript.text.segment") == len(deltas) > 3
        assert create(file=file, model="whisper-1", response_format="text") == f"{whole}\n"
        assert create(file=file, model="whisper-1", response_format="srt").count(" --> ") >= len(deltas) / 2


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # so the package calls translations
def test_an_english_only_model_refuses_what_it_cannot(graph: str, clip: bytes) -> None:
    """Translation and other languages are errors that name the option, not invented words."""
    with OpenAI(base_url=f"{graph}/v1", api_key="none", timeout=300, max_retries=0) as client:
        file = ("sample.wav", clip)
        with pytest.raises(BadRequestError, match="English-only and cannot translate"):
            client.audio.translations.create(file=file, model="whisper-1")
        with pytest.raises(BadRequestError, match="does not know the language 'de'"):
            client.audio.transcriptions.create(file=file, model="whisper-1", language="de")


def test_the_readme_s_example_of_openai_s_package_works(
    graph: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands there, but for the port and the recording."""
    project = Path(__file__).parents[2]
    monkeypatch.chdir(project)
    _, _, section = (project / "README.md").read_text().partition("## OpenAI's API\n")
    example = section.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    example = re.sub(r'open\("[^"]+"', f'open("{demo_sample()}"', example)
    exec(example.replace("http://127.0.0.1:8000", graph), names)
    names["audio"].close()
    names["client"].close()
    said = capsys.readouterr().out
    assert " A: " in said
    assert " B: " in said
    assert said.endswith(names["answer"].text)


def error_rates(path: Path, rttm: Path, uri: str) -> str:
    """Sends a real recording through the graph and compares with its reference turns.

    Diarization error rate without collar, overlaps counted: of the answer's segments, which is what a
    caller gets, and of the diarizer's own turns.
    """
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.database.util import load_rttm
    from pyannote.metrics.diarization import DiarizationErrorRate

    body = post(path.read_bytes())
    assert body["model_output"]
    assert all(segment["speaker"] for segment in body["model_output"])
    with path.open("rb") as file:
        info, samples = asyncio.run(decode_whole(file, max_audio_s=600, timeout_s=60))
    diarizer = serve.get_deployment_handle("Diarizer", "real")
    call = DiarizeCall(audio=AudioSlice([[ray.put(samples)]], 0.0), request_id="test")
    turns = diarizer.diarize.remote(call).result(timeout_s=300).turns
    segments = [(s["start"], s["end"], s["speaker"]) for s in body["model_output"]]
    rates = []
    for spans in (segments, [(turn.start_s, turn.end_s, turn.speaker) for turn in turns]):
        hypothesis = Annotation(uri=uri)
        for index, (start_s, end_s, speaker) in enumerate(spans):
            hypothesis[Segment(start_s, end_s), index] = speaker
        whole = Timeline([Segment(0, info.end_s)], uri=uri)
        rates.append(float(DiarizationErrorRate()(load_rttm(str(rttm))[uri], hypothesis, uem=whole)))
    assert all(0 < rate < 1 for rate in rates)  # 1 is what an empty answer has
    return f"DER of {path.name}: segments {rates[0]:.3f}, diarizer's turns {rates[1]:.3f}"


def test_real_speech_goes_through_the_whole_graph(graph: str, figure: Callable[[str], None]) -> None:
    """pyannote's sample (real, two speakers): every segment has a speaker; its error rate is printed."""
    figure(error_rates(demo_sample(), demo_sample().with_suffix(".rttm"), "sample"))


@pytest.mark.skipif(not SHARED.exists(), reason="the folder ../shared/data with real meetings is not there")
def test_real_meetings_go_through_the_whole_graph(graph: str, figure: Callable[[str], None]) -> None:
    """Two minutes of real meetings: every segment has a speaker; their error rates are printed."""
    recordings = sorted((SHARED / "speech").glob("ami_*.wav"))
    assert len(recordings) == 4
    for path in recordings[::3]:  # an easy one and a hard one
        figure(error_rates(path, SHARED / "speech" / "ami.rttm", path.stem.removeprefix("ami_")))


# Notes how much text stands on the page while a job runs, each time that it changes.
WATCH_LIVE_TEXT = """() => {
  window.grown = [];
  const live = document.getElementById("live");
  new MutationObserver(() => window.grown.push(live.querySelectorAll("p").length))
    .observe(live, { childList: true, subtree: true });
}"""


def test_a_person_uses_the_page(
    graph: str, open_page: Callable[..., Page], sample: Samples, tmp_path: Path
) -> None:
    """A real browser, a real call, real models: text while it runs, two colours, words to hear, a file."""
    call = tmp_path / "call.wav"
    call.write_bytes(wav(np.tile(sample, 2)))  # long enough to be seen while it runs
    page = open_page(Site(f"{graph}/", Graph()))
    page.evaluate(WATCH_LIVE_TEXT)
    page.set_input_files("#files", call)
    expect(page.locator("#transcript-title")).to_have_text("call.wav", timeout=300_000)
    grown = page.evaluate("window.grown")
    assert max(grown, default=0) > 0  # in one piece or several: tests/page has it grow
    job = httpx.get(f"{graph}/v1/jobs").json()["jobs"][0]["id"]
    result = f"{graph}/v1/jobs/{job}/result"
    said = httpx.get(result, params={"word_timestamps": True}).json()["model_output"]
    assert word_error_rate(said_on_the_telephone() * 2, " ".join(each["text"] for each in said)) <= 0.25
    expect(page.locator("#segments .text")).to_have_text([each["text"] for each in said])
    speakers = page.locator("#segments .speaker")
    colours = {each.evaluate("e => getComputedStyle(e).color") for each in speakers.all()}
    assert len(colours) == 2
    words = [word for each in said for word in each["words"]]
    for number in (len(words) // 2, len(words) - 3):
        page.locator("#segments .word").nth(number).click()
        at_s = page.evaluate("document.getElementById('audio').currentTime")
        assert abs(at_s - words[number]["start"]) < 0.1
    page.get_by_label("Name of SPEAKER_00").fill("Sheila")
    with page.expect_download() as download:
        page.locator("[data-format=srt]").click()
    subtitles = httpx.get(result, params={"response_format": "srt"}).text
    assert "[SPEAKER_00]" in subtitles
    assert download.value.path().read_text() == subtitles.replace("SPEAKER_00", "Sheila")


PEOPLE = SHARED / "people"
of_people = pytest.mark.skipif(not PEOPLE.exists(), reason="the folder ../shared/data/people is not there")
LEFT, RIGHT = "librivox-0870.flac", "librispeech-1995-1837-0001.flac"  # two people who read
CLIP_START_S = 6.0
LINES_OF_CLIP = [
    line
    for line in said_on_the_telephone()
    if line.start_s >= CLIP_START_S and line.end_s <= CLIP_START_S + CLIP_S
]
COUNTED = "uberi-english.flac"  # one two three
CARDS = ("cards-002.wav", "cards-004.wav")


def recorded(name: str) -> Samples:
    # In a thread of its own: Playwright leaves a running loop in this one.
    with (PEOPLE / name).open("rb") as file, ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, decode_whole(file, max_audio_s=600, timeout_s=60)).result()[1]


def words_alone(content: bytes, **data: str) -> dict[str, Any]:
    return post(content, diarize="false", **data)


def said_in(name: str) -> set[str]:
    rows = [json.loads(line) for line in (PEOPLE / "manifest.jsonl").read_text().splitlines()]
    return {word for row in rows if row["file"] == name for word in words_of(row["text"])}


def length_ms(speech: list[dict[str, int]]) -> int:
    return sum(each["end"] - each["start"] for each in speech)


def timed_words(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [word for segment in body["model_output"] for word in segment["words"]]


def voices(path: str, content: bytes, **data: Any) -> httpx.Response:
    response = httpx.post(f"{URL}/v1/audio/{path}", files={"file": content}, data=data, timeout=300)
    assert response.status_code == 200, response.text
    return response


@of_people
def test_words_of_two_channels_are_those_of_their_speakers(graph: str) -> None:
    """Both speak at once; each word that only one of them says is on that one's channel, also in a job."""
    left, right = recorded(LEFT), recorded(RIGHT)
    both = np.zeros((max(len(left), len(right)), 2), np.int16)
    both[: len(left), 0], both[: len(right), 1] = left, right
    body = post(wav(both), channels="speakers")
    heard: dict[str, set[str]] = {}
    for segment in body["model_output"]:
        heard.setdefault(segment["speaker"], set()).update(words_of(segment["text"]))
    assert heard.keys() == {"SPEAKER_00", "SPEAKER_01"}
    said = {"SPEAKER_00": said_in(LEFT), "SPEAKER_01": said_in(RIGHT)}
    for speaker, other in (("SPEAKER_00", "SPEAKER_01"), ("SPEAKER_01", "SPEAKER_00")):
        assert len(heard[speaker] & said[speaker]) > 0.8 * len(said[speaker])
        assert not heard[speaker] & (said[other] - said[speaker])

    form = {"channels": "speakers"}
    job = httpx.post(f"{graph}/v1/jobs", files={"file": wav(both)}, data=form, timeout=60)
    assert job.status_code == 201, job.text
    result = f"{graph}/v1/jobs/{job.json()['id']}/result"
    until(lambda: httpx.get(result, timeout=60).status_code == 200)
    assert httpx.get(result, timeout=60).json()["model_output"] == body["model_output"]


@of_people
def test_a_stretch_says_what_the_file_says_there(graph: str) -> None:
    """One reads, then another: what each says alone is what the file says there, at the file's times."""
    left, right = recorded(LEFT), recorded(RIGHT)
    content = wav(np.concatenate([left, silence(2.0), right]))
    cut_s = len(left) / SAMPLE_RATE_HZ + 1.0
    whole, before, behind = (
        timed_words(words_alone(content, word_timestamps="true", **stretch))
        for stretch in ({}, {"end_s": f"{cut_s}"}, {"start_s": f"{cut_s}"})
    )
    assert [words_of(word["word"]) for word in before + behind] == [words_of(word["word"]) for word in whole]
    assert before[-1]["end"] <= cut_s <= behind[0]["start"]
    moved_s = [abs(a["start"] - b["start"]) for a, b in zip(before + behind, whole, strict=True)]
    assert float(np.median(moved_s)) < 0.1
    assert max(moved_s) < 1.0


@of_people
def test_the_search_for_text_is_as_asked_for(graph: str) -> None:
    """A beam of one finds another text somewhere; numbers are written as words."""
    cards = [(PEOPLE / name).read_bytes() for name in CARDS]
    greedy = [text_of(words_alone(card, beam_size="1")) for card in cards]
    assert greedy != [text_of(words_alone(card)) for card in cards]
    counted = (PEOPLE / COUNTED).read_bytes()
    assert re.findall(r"\w+", text_of(words_alone(counted))) == ["1", "2", "3"]
    as_words = text_of(words_alone(counted, suppress_numerals="true"))
    assert words_of(as_words) == ["one", "two", "three"]


@of_people
def test_segments_are_made_of_the_speech_that_was_asked_for(graph: str) -> None:
    """Speech that is hardly certain is left out at a high onset; segments are short, and lose no word."""
    content = (PEOPLE / "ami-dev00.flac").read_bytes()
    stretch = {"end_s": "30"}
    plain = words_alone(content, **stretch)
    strict = {"vad_onset": "0.99", "vad_offset": "0.98", **stretch}
    certain = words_alone(content, **strict)
    assert len(text_of(certain).split()) < len(text_of(plain).split())
    short = words_alone(content, max_segment_s="1.5", word_timestamps="true", **strict)
    assert text_of(short) == text_of(certain)
    assert max(s["end"] - s["start"] for s in certain["model_output"]) > 1.5
    for segment in short["model_output"]:
        assert segment["end"] - segment["start"] <= 1.5 or len(segment["words"]) == 1


def test_without_alignment_segments_are_windows(graph: str, clip: bytes) -> None:
    """The same text, in one segment for the window that the recogniser heard."""
    windows = words_alone(clip, align="false")
    aligned = words_alone(clip)
    assert text_of(windows) == text_of(aligned)
    assert len(windows["model_output"]) == 1 < len(aligned["model_output"])


def test_each_word_has_a_score_and_a_confidence(graph: str, clip: bytes) -> None:
    """Both are probabilities; those of the recogniser only where they were asked for."""
    words = timed_words(words_alone(clip, word_timestamps="true", confidence="true"))
    assert len(words) > 20
    assert all(0 < word["confidence"] <= 1 and 0 <= word["score"] <= 1 for word in words)
    assert len({word["confidence"] for word in words}) > 10
    plain = timed_words(words_alone(clip, word_timestamps="true"))
    assert not any("confidence" in word for word in plain)


def test_samples_without_a_header_are_the_same_audio(graph: str, sample: Samples, clip: bytes) -> None:
    """16-bit samples are the WAV file; those of a telephone say nearly the same."""
    pcm = words_alone(sample[CLIP].astype("<i2").tobytes(), encoding="s16le", sample_rate="16000")
    assert pcm | {"timings": None} == words_alone(clip) | {"timings": None}
    mulaw = encode(sample[CLIP], SAMPLE_RATE_HZ, ".raw", "-f", "mulaw", "-ar", "8000")
    body = words_alone(mulaw, encoding="mulaw", sample_rate="8000")
    assert body["duration"] == pytest.approx(CLIP_S, abs=0.01)
    assert word_error_rate(LINES_OF_CLIP, text_of(body)) <= 0.4


def test_speakers_without_text_are_those_of_the_text(graph: str, clip: bytes) -> None:
    """Turns and vectors of the call; a vector is nearer to that of the same voice in the transcript."""
    alone = voices("diarization", clip, embeddings="true").json()
    body = post(clip, embeddings="true")
    assert alone["embedding_model"] == body["embedding_model"]
    assert body["embedding_model"]["dimension"] == 192
    found = [each["speaker_embeddings"] for each in (alone, body)]
    ours, theirs = (np.array([each[f"SPEAKER_0{n}"] for n in (0, 1)]) for each in found)
    near = ours @ theirs.T / np.outer(np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1))
    assert near[0, 0] > near[0, 1]
    assert near[1, 1] > near[1, 0]

    assert all(a["end"] <= b["start"] for a, b in pairwise(alone["exclusive_segments"]))
    inside = [
        any(
            turn["start"] <= (line.start_s + line.end_s) / 2 - CLIP_START_S <= turn["end"]
            for turn in alone["segments"]
        )
        for line in LINES_OF_CLIP
    ]
    assert sum(inside) >= 0.9 * len(LINES_OF_CLIP)


def test_speech_without_text_is_where_the_lines_are(graph: str) -> None:
    """In milliseconds, with a pause between any two; less of it at a high onset."""
    call = demo_sample().read_bytes()
    speech = voices("speech/timestamps", call).json()
    lines = said_on_the_telephone()
    assert all(a["end"] < b["start"] for a, b in pairwise(speech))
    middles_ms = [500 * (line.start_s + line.end_s) for line in lines]
    assert all(any(each["start"] <= at_ms <= each["end"] for each in speech) for at_ms in middles_ms)
    strict = voices("speech/timestamps", call, vad_onset="0.99", vad_offset="0.98").json()
    assert 0 < length_ms(strict) < length_ms(speech)


def test_a_model_of_one_language_refuses_several(graph: str, clip: bytes) -> None:
    """`language=multiple` would be English in every window."""
    form = {"language": "multiple"}
    response = httpx.post(f"{graph}/predict", files={"file": clip}, data=form, timeout=300)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "language"


@pytest.mark.slow
def test_sixty_one_minutes_lose_nothing(graph: str, sample: Samples, figure: Callable[[str], None]) -> None:
    """An hour and a minute: every repetition of the conversation is there, in order, with two speakers."""
    repeats = 61 * 60 * SAMPLE_RATE_HZ // len(sample) + 1
    long = np.tile(sample, repeats)[: 61 * 60 * SAMPLE_RATE_HZ]
    body = post(encode(long, SAMPLE_RATE_HZ, ".mp3", "-b:a", "64k"), num_speakers="2")
    segments = body["model_output"]
    once_s = len(sample) / SAMPLE_RATE_HZ
    heard = {int(segment["start"] // once_s) for segment in segments}
    assert body["duration"] == pytest.approx(61 * 60, abs=0.2)
    assert heard == set(range(repeats))
    assert [s["start"] for s in segments] == sorted(s["start"] for s in segments)
    assert {segment["speaker"] for segment in segments} == {"SPEAKER_00", "SPEAKER_01"}
    assert body["warnings"] == []
    figure(f"61 minutes: {body['timings']}")
