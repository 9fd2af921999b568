"""The whole graph on the bundled models, over HTTP and through the handle, against plain whisperx."""

import asyncio
import base64
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import imageio_ffmpeg
import numpy as np
import pytest
import ray
import srt
import webvtt
from conftest import HTTP_PORT, SHARED
from fakes import data_url
from loopback import Files
from openai import OpenAI
from openai_contract import check, check_event
from ray import serve
from sounds import VIDEO, encode, silence, wav
from test_known_speakers_models import RMS, SLT, clip_of

from benchmarks import truth
from benchmarks.accuracy import speaker_errors
from benchmarks.decoding import decode_whole
from benchmarks.plain_whisperx import PlainWhisperx
from serve_app import bundled
from serve_app.app import build
from serve_app.deployments.calls.audio_ref import AudioSlice
from serve_app.models import names as models
from serve_app.request.calls import DiarizeCall
from serve_app.settings import AsrSettings, IntakeSettings, Settings
from serve_app.transcript import SAMPLE_RATE_HZ, Samples

URL = f"http://127.0.0.1:{HTTP_PORT}/bundled"
SEEN = Path(truth.__file__).parent / "recordings" / "seen"
SAME_TIME_S = 0.020
CLIP_S = 16.3
# whisperx gives a sentence of two speakers to the one who speaks longer.
AS_WHISPERX = {"word_timestamps": True, "split_at_speaker_change": False}
FORM_AS_WHISPERX = {"word_timestamps": "true", "split_at_speaker_change": "false"}


@pytest.fixture(scope="module")
def graph(cluster: None, files: Files) -> Iterator[str]:
    """The graph that `make serve` starts, beside the one on fake models."""
    settings = Settings(
        model="bundled",
        device="cpu",
        # int8 rounds differently for features that differ by 2e-5, as numpy's and torch's do
        asr=AsrSettings(compute_type="float32"),
        intake=IntakeSettings(allowed_hosts=(files.host,)),
    )
    serve.run(build(settings), name="bundled", route_prefix="/bundled")
    yield URL
    serve.delete("bundled")


@pytest.fixture(scope="module")
def clip(sample: Samples) -> bytes:
    """The conversation's first five turns, in three windows."""
    return wav(sample[: int(CLIP_S * SAMPLE_RATE_HZ)])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainWhisperx]:
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())  # whisperx.load_audio looks for it
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield PlainWhisperx.load(models.resolve(Settings(model="bundled")), compute_type="float32")


def by_whisperx(plain: PlainWhisperx, path: Path) -> list[dict[str, Any]]:
    import whisperx

    return plain.transcribe(whisperx.load_audio(str(path)))


def post(content: bytes, **data: Any) -> dict[str, Any]:
    response = httpx.post(f"{URL}/predict", files={"file": content}, data=data, timeout=3600)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Same segments, text and speakers; times within 20 ms."""
    assert [s["text"].strip() for s in ours] == [s["text"].strip() for s in theirs]
    assert [s["speaker"] for s in ours] == [s.get("speaker") for s in theirs]
    for segment, other in zip(ours, theirs, strict=True):
        pairs = [(segment, other), *zip(segment["words"], other["words"], strict=True)]
        for mine, its in pairs:
            assert mine.get("word") == its.get("word")
            for key in ("start", "end"):
                assert mine[key] == pytest.approx(its[key], abs=SAME_TIME_S)
        labelled = [
            (mine["speaker"], its["speaker"])
            for mine, its in zip(segment["words"], other["words"], strict=True)
            if "speaker" in its  # whisperx leaves a word between two turns without one; we do not
        ]
        assert all(mine == its for mine, its in labelled)


def test_the_sample_by_url_equals_plain_whisperx(graph: str, files: Files, plain: PlainWhisperx) -> None:
    """The demo's conversation: same windows, text, word times and speakers as whisperx, two speakers."""
    url = files.url("/sample.mp3", bundled.SAMPLE.read_bytes())
    response = httpx.post(f"{graph}/predict", json={"audio_file": url, **AS_WHISPERX}, timeout=300)
    body = response.json()
    assert_same(body["model_output"], by_whisperx(plain, bundled.SAMPLE))
    assert {segment["speaker"] for segment in body["model_output"]} == {"SPEAKER_00", "SPEAKER_01"}
    assert (body["language"], body["model"], body["warnings"]) == ("en", "bundled", [])


def test_known_speakers_of_the_demo_have_their_names(graph: str) -> None:
    """By references over HTTP every segment and word has the right name of the two; a third is not heard."""
    demo, other = truth.load(bundled.SAMPLE), truth.load(SEEN / "slt-rms.opus")
    third = truth.load(SEEN / "awb-en-us-f1.opus")
    # No other recording has the demo's first voice, so its reference is the demo's own first sentences.
    clips = {"Ada": clip_of(SLT, demo), "Bob": clip_of(RMS, other), "Eve": clip_of("flite/awb", third)}
    body = {
        "audio_b64": base64.b64encode(bundled.SAMPLE.read_bytes()).decode(),
        "known_speaker_names": list(clips),
        "known_speaker_references": [data_url(encode(c, SAMPLE_RATE_HZ, ".m4a")) for c in clips.values()],
        "word_timestamps": True,
    }
    answer = httpx.post(f"{graph}/predict", json=body, timeout=300).json()
    names = {SLT: "Ada", RMS: "Bob"}
    for segment in answer["model_output"]:
        for piece in (segment, *segment["words"]):
            middle_s = (piece["start"] + piece["end"]) / 2
            turn = min(demo.turns, key=lambda turn: max(turn.start_s - middle_s, middle_s - turn.end_s))
            assert piece["speaker"] == names[turn.speaker]
    assert {segment["speaker"] for segment in answer["model_output"]} == {"Ada", "Bob"}
    assert [warning["code"] for warning in answer["warnings"]] == ["known_speaker_not_found"]
    assert "Eve" in answer["warnings"][0]["message"]


def test_sentences_that_run_into_each_other_are_split_where_the_speaker_changes(graph: str) -> None:
    """Without pauses between turns the recogniser joins sentences of two people; their words stay apart."""
    hasty = truth.without_pauses(truth.load(bundled.SAMPLE), 0.1)
    split = post(wav(hasty.samples), word_timestamps="true")["model_output"]
    whole = post(wav(hasty.samples), **FORM_AS_WHISPERX)["model_output"]
    assert len(split) > len(whole)
    assert " ".join(s["text"] for s in split) == " ".join(s["text"] for s in whole)
    wrong, words = speaker_errors(hasty, split)
    assert wrong / words < 0.05
    assert speaker_errors(hasty, whole)[0] > 3 * wrong


def test_the_python_handle_equals_http(graph: str, clip: bytes) -> None:
    """serve.get_app_handle(...).transcribe gives the answer that HTTP gives."""
    by_handle = serve.get_app_handle("bundled").transcribe.remote(clip).result(timeout_s=300)
    by_http = post(clip)
    assert {**by_handle, "timings": None} == {**by_http, "timings": None}
    json.dumps(by_handle)


def test_subtitles_and_turns_say_what_json_says(graph: str, clip: bytes, tmp_path: Path) -> None:
    """srt, vtt and rttm over HTTP, read by other parsers: the segments and speakers of the JSON answer."""
    from pyannote.database.util import load_rttm

    said = [(s["start"], s["end"], s["speaker"], s["text"]) for s in post(clip)["model_output"]]
    answers = {}
    for name, kind in (("srt", "application/x-subrip"), ("vtt", "text/vtt"), ("rttm", "text/plain")):
        data = {"response_format": name}
        response = httpx.post(f"{graph}/predict", files={"file": clip}, data=data, timeout=300)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == f"{kind}; charset=utf-8"
        assert "x-warnings" not in response.headers
        answers[name] = response.text
    cues = list(srt.parse(answers["srt"]))
    assert [c.content for c in cues] == [f"[{speaker}]: {text}" for _, _, speaker, text in said]
    assert [(c.start.total_seconds(), c.end.total_seconds()) for c in cues] == [s[:2] for s in said]
    spoken = [(cue.voice, cue.text) for cue in webvtt.from_string(answers["vtt"])]
    assert spoken == [(speaker, text) for _, _, speaker, text in said]
    path = tmp_path / "x.rttm"
    path.write_text(answers["rttm"])
    turns = load_rttm(str(path))["audio"]
    assert set(turns.labels()) == {"SPEAKER_00", "SPEAKER_01"}
    assert 0 <= turns.get_timeline().extent().start < turns.get_timeline().extent().end < CLIP_S + 0.1


def test_the_python_handle_gives_text_and_ends_streams_with_it(graph: str, clip: bytes) -> None:
    """A str for text formats, with the lines asked for; a dict for words, those of the segments."""
    handle = serve.get_app_handle("bundled")
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
def test_containers_equal_plain_whisperx(
    graph: str, plain: PlainWhisperx, sample: Samples, tmp_path: Path, name: str, make: Any
) -> None:
    """Ten seconds of the sample in other containers, rates and channels."""
    path = tmp_path / name
    path.write_bytes(make(sample[: 10 * SAMPLE_RATE_HZ]))
    body = post(path.read_bytes(), **FORM_AS_WHISPERX)
    assert body["duration"] == pytest.approx(10.0, abs=0.1)
    assert body["model_output"]
    assert_same(body["model_output"], by_whisperx(plain, path))


def test_exactly_thirty_seconds_equal_plain_whisperx(
    graph: str, plain: PlainWhisperx, sample: Samples, tmp_path: Path
) -> None:
    """30.0 s, Whisper's own window length, loses nothing at its edge."""
    path = tmp_path / "thirty.wav"
    path.write_bytes(wav(sample[: 30 * SAMPLE_RATE_HZ]))
    body = post(path.read_bytes(), **FORM_AS_WHISPERX)
    assert body["duration"] == 30.0
    assert_same(body["model_output"], by_whisperx(plain, path))
    assert body["model_output"][-1]["end"] > 29.0


@pytest.mark.parametrize(
    "content", [wav(silence(5.0)), wav(silence(0.1))], ids=["silence", "a tenth of silence"]
)
def test_silence_is_an_empty_list(graph: str, content: bytes) -> None:
    """Nothing was said, so nothing is written: no "Thank you."."""
    body = post(content)
    assert (body["model_output"], body["language"], body["warnings"]) == ([], None, [])


def test_a_tenth_of_a_second_of_speech_invents_nothing(graph: str, sample: Samples) -> None:
    """0.1 s is answered, with at most the word it could hold."""
    body = post(wav(sample[SAMPLE_RATE_HZ : SAMPLE_RATE_HZ + SAMPLE_RATE_HZ // 10]))
    assert body["duration"] == 0.1
    assert len(" ".join(s["text"] for s in body["model_output"]).split()) <= 1


def test_the_openai_package_gets_what_predict_gives(graph: str, clip: bytes) -> None:
    """Sentences, words and speakers of the sample are the same."""
    ours = post(clip, word_timestamps="true")["model_output"]
    with OpenAI(base_url=f"{graph}/v1", api_key="none", timeout=300) as client:
        verbose = client.audio.transcriptions.create(
            file=("sample.wav", clip),
            model="bundled",
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


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # so the package calls translations
def test_a_stream_of_real_models_is_the_same_text(graph: str, clip: bytes) -> None:
    """Deltas together are the text of an answer in one piece; subtitles and translation go through, too."""
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
        assert create(file=file, model="whisper-1", response_format="srt").count(" --> ") == len(deltas)
        translated = client.audio.translations.create(
            file=file, model="whisper-1", response_format="verbose_json", prompt="A speech."
        )
    check("verbose_json", translated.to_dict())
    assert translated.language == "english"


def test_the_readme_s_example_of_openai_s_package_works(
    graph: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands there, but for the port."""
    project = Path(__file__).parents[2]
    monkeypatch.chdir(project)
    _, _, section = (project / "README.md").read_text().partition("## OpenAI's API\n")
    example = section.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
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
    diarizer = serve.get_deployment_handle("Diarizer", "bundled")
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
    import pyannote.audio

    folder = Path(pyannote.audio.__file__).parent / "sample"
    figure(error_rates(folder / "sample.wav", folder / "sample.rttm", "sample"))


@pytest.mark.skipif(not SHARED.exists(), reason="the folder ../shared/data with real meetings is not there")
def test_real_meetings_go_through_the_whole_graph(graph: str, figure: Callable[[str], None]) -> None:
    """Two minutes of real meetings: every segment has a speaker; their error rates are printed."""
    recordings = sorted((SHARED / "speech").glob("ami_*.wav"))
    assert len(recordings) == 4
    for path in recordings[::3]:  # an easy one and a hard one
        figure(error_rates(path, SHARED / "speech" / "ami.rttm", path.stem.removeprefix("ami_")))


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
