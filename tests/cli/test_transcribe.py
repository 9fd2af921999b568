"""`whisperx-serve transcribe` on the whole HTTP API: what it writes, skips, resumes, says and returns."""

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from clients import until
from played_service import KEY, Played, played
from transcripts import FIXED
from typer.main import get_command
from typer.testing import CliRunner
from whisperx.utils import get_writer

from serve_app.__main__ import cli
from serve_app.cli import CommandFailed, launcher
from serve_app.cli.transcribe.flags import REFUSED
from serve_app.cli.transcribe.writers import ALL, whisperx_result
from serve_app.errors import NoRoom, UnusableAudio
from serve_app.http.responses import answer
from serve_app.jobs.service import Jobs
from serve_app.options import Options
from serve_app.transcript import Voices

PROJECT = Path(__file__).parents[2]
FILES = 20


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Played]:
    with played(tmp_path / "state", concurrency=16) as service:
        yield service


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty recordings, some in a subfolder."""
    for number in range(FILES):
        path = tmp_path / "in" / ("more" if number % 5 == 0 else ".") / f"{number:02d}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"audio {number}".encode())
    return tmp_path / "in"


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.mp3"
    path.write_bytes(b"audio")
    return path


@pytest.fixture
def stop() -> threading.Event:
    """The event that the launcher sets on SIGTERM and SIGINT."""
    return threading.Event()


@pytest.fixture
def started(service: Played, stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The configs of the services that the command has started; `service` stands in for each of them."""
    configs: list[dict[str, Any]] = []

    @contextmanager
    def fake_running(raw: dict[str, Any], *, show_logs: bool) -> Iterator[threading.Event]:
        configs.append(raw)
        assert Path(raw["applications"][0]["args"]["jobs"]["state_dir"]).is_dir()
        yield stop

    monkeypatch.setattr(launcher, "running", fake_running)
    monkeypatch.setattr(launcher, "free_port", lambda: int(service.url.rpartition(":")[2]))
    return configs


def run(service: Played, *arguments: object) -> Any:
    """Runs the command in this process; the result has its exit code and its output."""
    done = CliRunner().invoke(cli, ["transcribe", *map(str, arguments), "--server", service.url])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@contextmanager
def running(
    service: Played, *arguments: object, program: tuple[str, ...] = ("-m", "serve_app")
) -> Iterator[subprocess.Popen[str]]:
    """Runs the command in a separate process."""
    command = [sys.executable, *program, "transcribe", *map(str, arguments)]
    environment = {**os.environ, "WHISPERX_URL": service.url, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def outputs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_comes_out_as_of_whisperx(service: Played, folder: Path, tmp_path: Path) -> None:
    """All default formats are written, a few files at a time; hidden files and other files are skipped."""
    (folder / ".trash").mkdir()
    for name in ("notes.txt", "program.ts", ".hidden.mp3", ".trash/old.mp3"):
        (folder / name).write_text("no audio")
    done = run(service, folder, "-o", tmp_path / "out", "--diarize", "--jobs", 3)
    assert done.exit_code == 0, done.output
    assert f"{FILES} transcribed, 0 failed." in done.output
    assert sorted(service.heard) == sorted(f"audio {number}".encode() for number in range(FILES))
    assert 1 <= service.most_running <= 3
    expected = answer(FIXED, Options(word_timestamps=True))
    assert isinstance(expected, dict)
    layout = {"max_line_width": None, "max_line_count": None, "highlight_words": False}
    (tmp_path / "whisperx").mkdir()
    get_writer("all", str(tmp_path / "whisperx"))(whisperx_result(expected), "talk.mp3", layout)
    for number in range(FILES):
        base = ("more/" if number % 5 == 0 else "") + f"{number:02d}"
        for form in ALL:
            written = (tmp_path / "out" / f"{base}.{form}").read_bytes()
            assert written == (tmp_path / "whisperx" / f"talk.{form}").read_bytes()
    assert len(outputs(tmp_path / "out")) == FILES * len(ALL) + 1  # and the record of outputs


def test_a_killed_run_goes_on(service: Played, folder: Path, tmp_path: Path) -> None:
    """Nothing is transcribed twice: finished files are skipped, and running jobs are found again."""
    out = tmp_path / "out"
    service.free = 5
    service.opened.clear()
    with running(service, folder, "-o", out, "-f", "srt,json", "--jobs", 4) as process:
        until(lambda: out.exists() and len(outputs(out)) == 5 * 2 + 1 and service.running == 4)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.srt")}
    service.opened.set()
    with running(service, folder, "-o", out, "-f", "srt,json", "--jobs", 4) as process:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert f"{FILES - 5} transcribed, 5 done before, 0 failed." in said
    assert len(service.heard) == len(set(service.heard)) == FILES
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(outputs(out)) == FILES * 2 + 1


def test_what_an_earlier_version_has_done_is_skipped(service: Played, talk: Path, tmp_path: Path) -> None:
    """Flags that are new and not given change nothing of the request, as f1d296c recorded it."""
    status = talk.stat()
    version = [str(talk), status.st_size, status.st_mtime_ns]
    asked = [version, {"task": "transcribe", "diarize": False}, [None, None, False], True, {}]
    mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    (tmp_path / "talk.srt").write_text("1")
    (tmp_path / ".whisperx-serve").write_text(f"{json.dumps(['talk.srt', mark])}\n")
    assert "1 done before" in run(service, talk, "-o", tmp_path, "-f", "srt").output
    assert service.heard == []


def test_done_is_what_was_asked_for_of_this_audio(service: Played, tmp_path: Path) -> None:
    """Other formats need no new transcription; other options and other audio do."""
    talk, out = tmp_path / "talk.mp3", tmp_path / "out"
    talk.write_bytes(b"first")
    for _ in range(2):
        run(service, talk, "-o", out, "-f", "srt")
    assert service.heard == [b"first"]
    run(service, talk, "-o", out, "-f", "srt,vtt,words,rttm,aud", "--diarize")
    assert service.heard == [b"first"] * 2
    run(service, talk, "-o", out, "-f", "txt", "--diarize", "--max_line_width", 20)
    assert service.heard == [b"first"] * 2
    (out / "talk.srt").unlink()
    assert "1 transcribed" in run(service, talk, "-o", out, "-f", "srt").output
    assert service.heard == [b"first"] * 2
    talk.write_bytes(b"second, and longer")
    run(service, talk, "-o", out, "-f", "srt")
    assert service.heard == [b"first", b"first", b"second, and longer"]
    assert outputs(out) == [
        ".whisperx-serve",
        *(f"talk.{form}" for form in ("aud", "rttm", "srt", "txt", "vtt", "words.json")),
    ]
    assert (out / "talk.rttm").read_text().startswith("SPEAKER talk 1 0.300 ")
    assert json.loads((out / "talk.words.json").read_text())["words"][0]["word"] == "four"


def test_what_another_run_has_overwritten_is_not_done(service: Played, tmp_path: Path) -> None:
    """Two runs write files of the same name into one folder."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "talk.mp3").write_bytes(name.encode())
    said = [
        run(service, tmp_path / name, "-o", tmp_path / "out", "-f", form).output
        for name, form in (("a", "srt,txt"), ("b", "txt"), ("a", "txt"), ("a", "srt"), ("b", "srt"))
    ]
    assert [each.startswith("0 transcribed, 1 done before") for each in said] == [False] * 3 + [True, False]


def test_options_reach_the_service(service: Played, tmp_path: Path) -> None:
    """Whisperx's flags work in either spelling; speakers are only labelled with --diarize."""
    talk = tmp_path / "talk.mp3"
    talk.write_bytes(b"audio")
    flags = [
        "--language",
        "German",
        "--diarize",
        "--min_speakers",
        2,
        "--max-speakers=3",
        "--hotwords",
        "Ray",
    ]
    flags += ["--highlight_words", "True", "--initial_prompt", "So.", "--temperature", 0.5]
    done = run(service, talk, "-o", tmp_path, "--output-format", "srt", *flags)
    assert done.exit_code == 0, done.output
    asked = Options(
        language="de",
        diarize=True,
        min_speakers=2,
        max_speakers=3,
        hotwords="Ray",
        initial_prompt="So.",
        temperature=0.5,
    )
    assert service.asked == [asked]
    assert "<u>four</u>" in (tmp_path / "talk.srt").read_text()
    run(service, talk, "-o", tmp_path, "-f", "srt", "--highlight_words", "False", "--task", "translate")
    assert service.asked[1:] == [Options(diarize=False, task="translate")]
    assert "<u>" not in (tmp_path / "talk.srt").read_text()
    run(service, talk, "-o", tmp_path, "-f", "srt", "--languages", "German,en", "--temperature-inc", 0.4)
    assert service.asked[2:] == [Options(diarize=False, languages=("de", "en"), temperature_inc=0.4)]


def test_the_search_is_the_requests(service: Played, tmp_path: Path) -> None:
    """A running service takes its beam, words for numbers, languages and confidence, which json shows."""
    talk = tmp_path / "talk.mp3"
    talk.write_bytes(b"audio")
    [segment, *_] = FIXED.segments
    words = tuple(replace(word, confidence=0.5) for word in segment.words)
    service.transcript = replace(FIXED, segments=(replace(segment, words=words),))
    flags = ["--language", "multiple", "--beam_size", 2, "--suppress-numerals", "True", "--confidence"]
    done = run(service, talk, "-o", tmp_path, "-f", "json", *flags)
    assert done.exit_code == 0, done.output
    more: dict[str, Any] = {"beam_size": 2, "suppress_numerals": True, "confidence": True}
    asked = Options(language="multiple", diarize=False, word_timestamps=True, **more)
    assert service.asked == [asked]
    [shown] = json.loads((tmp_path / "talk.json").read_text())["segments"]
    assert [word["confidence"] for word in shown["words"]] == [0.5] * len(words)
    assert "language" in shown


def test_several_languages_may_be_named(service: Played, talk: Path, tmp_path: Path) -> None:
    """They limit what is detected, for the file or for each window."""
    for language in ("auto", "multiple"):
        flags = ["--language", language, "--languages", "de,en", "-f", "txt"]
        assert run(service, talk, "-o", tmp_path, *flags).exit_code == 0
    assert [(each.language, each.languages) for each in service.asked] == [
        (None, ("de", "en")),
        ("multiple", ("de", "en")),
    ]


def test_audio_as_it_is(service: Played, tmp_path: Path) -> None:
    """Channels, a stretch, a track and samples without a header; turns of channels need no --diarize."""
    talk = tmp_path / "talk.raw"
    talk.write_bytes(b"audio")
    flags = ["--channels", "speakers", "--start_s", 1.5, "--end_s", 9, "--track", 1, "--encoding", "mulaw"]
    flags += ["--sample_rate", 8000, "--channel_count", 2]
    done = run(service, talk, "-o", tmp_path, "-f", "json,rttm", *flags)
    assert done.exit_code == 0, done.output
    audio = {"encoding": "mulaw", "sample_rate": 8000, "channel_count": 2}
    stretch = {"start_s": 1.5, "end_s": 9, "track": 1}
    assert service.asked == [
        Options.model_validate({"diarize": False, "channels": "speakers", **audio, **stretch})
    ]


def test_urls_and_files_of_one_name(service: Played, tmp_path: Path) -> None:
    """Each file and URL has its own outputs; the service fetches the URLs."""
    names = [f"{folder}/talk.{suffix}" for folder in "abc" for suffix in ("mp3", "wav")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    urls = ["https://example.com/a/the%20show.m4a?token=secret", "http://example.com/a%00b.mp3"]
    files = [tmp_path / name for name in names]
    done = run(service, *files, *urls, "-o", tmp_path / "out", "-f", "txt")
    assert sorted(service.heard) == sorted(each.encode() for each in [*names, *urls])
    talks = ["talk.mp3.2.txt", "talk.mp3.txt", "talk.txt", "talk.wav.2.txt", "talk.wav.3.txt", "talk.wav.txt"]
    assert outputs(tmp_path / "out")[1:] == ["a_b.txt", *talks, "the show.txt"]
    assert "secret" not in done.output


def test_embeddings_are_written_into_json(service: Played, tmp_path: Path) -> None:
    """The job asks for them, and so does its result."""
    service.transcript = replace(FIXED, voices=Voices("net", 2, {"SPEAKER_00": (0.5, 1.0)}))
    (tmp_path / "talk.mp3").write_bytes(b"audio")
    asked = ("--diarize", "--speaker_embeddings", "-f", "json")
    done = run(service, tmp_path / "talk.mp3", "-o", tmp_path / "out", *asked)
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "talk.json").read_text())
    assert written["speaker_embeddings"]["SPEAKER_00"] == [0.5, 1.0]
    assert service.asked[-1].embeddings


def test_a_file_that_fails(service: Played, folder: Path, tmp_path: Path) -> None:
    """The other files are transcribed, the exit code is 1, and the next run tries the failed file again."""
    service.failures[b"audio 7"] = UnusableAudio("This is no audio.")
    done = run(service, folder, "-o", tmp_path / "out", "-f", "txt")
    assert done.exit_code == 1
    assert "07: This is no audio." in done.output
    assert f"{FILES - 1} transcribed, 1 failed." in done.output
    service.failures.clear()
    done = run(service, folder, "-o", tmp_path / "out", "-f", "txt")
    assert done.exit_code == 0
    assert f"1 transcribed, {FILES - 1} done before" in done.output
    assert len(service.heard) == FILES + 1


def test_files_of_the_same_audio_that_fail(service: Played, tmp_path: Path) -> None:
    """Each file has its own error in every run; none reports a deleted job."""
    (tmp_path / "in").mkdir()
    for name in ("1", "2", "3", ":smile:"):
        (tmp_path / "in" / f"{name}.mp3").write_bytes(b"bad")
    service.failures[b"bad"] = UnusableAudio("This is no audio.")
    for _ in range(2):
        done = run(service, tmp_path / "in", "-o", tmp_path / "out", "-f", "txt")
        assert done.exit_code == 1
        assert done.output.count(": This is no audio.\n") == 4
        assert ":smile:: This is no audio." in done.output


def test_a_folder_that_cannot_be_read(
    service: Played, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is reported and counts as failed; the other files are transcribed."""
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    done = run(service, folder, "-o", tmp_path / "out", "-f", "txt")
    assert done.exit_code == 1
    assert f"Permission denied: {folder / 'more'}\n" in done.output
    assert "16 transcribed, 1 failed." in done.output


def test_what_cannot_be_written(service: Played, folder: Path, tmp_path: Path) -> None:
    """Each such file is reported, the others go on, and no partial file is left."""
    out = tmp_path / "out"
    (out / "01.txt").mkdir(parents=True)
    done = run(service, folder, "-o", out, "-f", "txt")
    assert done.exit_code == 1
    assert f"{FILES - 1} transcribed, 1 failed." in done.output
    assert "01: Is a directory" in done.output
    assert len(outputs(out)) == FILES - 1 + 1
    (out / ".whisperx-serve").unlink()
    service.opened.clear()

    def end() -> None:
        until(lambda: service.running)
        (out / ".whisperx-serve").mkdir()
        service.opened.set()

    ending = threading.Thread(target=end)
    ending.start()
    done = run(service, folder, "-o", out, "-f", "txt", "--language", "de")
    ending.join()
    assert done.exit_code == 1
    assert f"0 transcribed, {FILES} failed." in done.output
    with pytest.raises(CommandFailed, match="the record of earlier runs cannot be read: Is a directory"):
        run(service, folder, "-o", out, "-f", "txt")
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed, match="--output_dir: the folder cannot be made"):
        run(service, folder, "-o", tmp_path / "file")


def test_long_names(service: Played, tmp_path: Path) -> None:
    """The longest file name works; an output whose name is too long fails before anything is sent."""
    (tmp_path / f"{'x' * 251}.mp3").write_bytes(b"audio")
    done = run(service, tmp_path, "-o", tmp_path / "out", "-f", "txt,words")
    assert "File name too long" in done.output
    assert service.heard == []
    assert run(service, tmp_path, "-o", tmp_path / "out", "-f", "txt").exit_code == 0


def test_a_full_service(service: Played, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is reported once, and then the file is transcribed."""
    real, refused = Jobs.submit, 0

    async def submit(*arguments: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused <= 2:
            raise NoRoom("The server is full.", None, None, 1)
        return await real(*arguments)

    monkeypatch.setattr(Jobs, "submit", submit)
    done = run(service, talk, "-o", talk.parent, "-f", "txt")
    assert done.exit_code == 0
    assert done.output.count("The server is full. Trying again for up to 10 minutes.\n") == 1


def test_a_service_for_everybody(talk: Path, tmp_path: Path) -> None:
    """A public service without keys lists no jobs, but the command works with it."""
    with played(tmp_path / "state", is_public=True) as service:
        assert run(service, talk, "-o", tmp_path, "-f", "txt").exit_code == 0


def test_a_service_that_cannot_be_one(talk: Path) -> None:
    """The error names the flag, and shows no secret."""
    for server, key, says in (
        (
            "http://[::1",
            "wx_secret",
            r"--server: http://\[::1 is not a URL; write for example http://127.0.0.1:8000",
        ),
        ("ftp://ann:secret@h/x", "", "--server: ftp://h/x is not the URL of a service; write"),
        ("http://127.0.0.1:1/?x=1", "", "--server: http://127.0.0.1:1/ is not the URL of a service"),
        ("http://127.0.0.1:1", "wx_secret\nwx_secret", "--api-key: it has characters that no key has"),
    ):
        arguments = ["transcribe", str(talk), "--server", server, "--api-key", key, "-o", str(talk.parent)]
        done = CliRunner().invoke(cli, arguments)
        assert isinstance(done.exception, CommandFailed)
        assert re.match(says, str(done.exception))
        assert "secret" not in str(done.exception)


def test_a_folder_is_watched(service: Played, tmp_path: Path) -> None:
    """New files are transcribed until Ctrl-C, and changed files again."""
    watched, out = tmp_path / "in", tmp_path / "out"
    watched.mkdir()
    service.failures[b"hal"] = UnusableAudio("This is no audio.")
    imports = "from serve_app.__main__ import main; from serve_app.cli.transcribe import inputs"
    program = ("-c", f"{imports}; inputs.WATCH_S = 0.1; main()")
    with running(service, "--watch", watched, "-o", out, "-f", "txt", program=program) as process:
        for name in ("one", "two"):
            (watched / f"{name}.mp3").write_bytes(name.encode())
            until((out / f"{name}.txt").exists)
        (watched / "half.mp3").write_bytes(b"hal")
        until(lambda: service.heard[2:] == [b"hal"])
        (watched / "half.mp3").write_bytes(b"half")
        until((out / "half.txt").exists)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "Stopped. The same command goes on from here."
    assert service.heard == [b"one", b"two", b"hal", b"half"]
    assert outputs(out) == [".whisperx-serve", "half.txt", "one.txt", "two.txt"]


def test_how_segments_are_made_reaches_the_service(service: Played, talk: Path, tmp_path: Path) -> None:
    """Each flag is an option of the request, also of a service that runs already."""
    flags = "--vad_onset 0.6 --vad_offset 0.2 --vad_min_silence_s 0.5 --max_segment_s 9"
    assert run(service, talk, "-o", tmp_path, "-f", "json", *flags.split(), "--no_align").exit_code == 0
    assert run(service, talk, "-o", tmp_path, "-f", "json", "--return_char_alignments").exit_code == 0
    plain, with_chars = service.asked
    assert (plain.vad_onset, plain.vad_offset, plain.vad_min_silence_s) == (0.6, 0.2, 0.5)
    assert (plain.max_segment_s, plain.align, plain.char_timestamps) == (9, False, False)
    assert (with_chars.align, with_chars.char_timestamps) == (True, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--language", "de", "--languages", "de,en", "."], "--languages for several, not both"),
        (["--confidence", "-f", "srt", "."], "--confidence needs json or words among the formats"),
        (["--char_timestamps", "-f", "srt,txt", "."], "--char_timestamps needs json or words"),
        ([], "name files, URLs or folders"),
        (["nowhere.mp3"], "there is no such file"),
        (["-f", "srt,docx", "."], "unknown format 'docx'; choose from all, srt, vtt"),
        (["--highlight_words=maybe", "."], "'maybe' is neither True nor False"),
        (["http://ann:secret@[::1/talk.mp3"], "http://[::1/talk.mp3 is not a URL"),
        (["--config", "nowhere.yaml", "."], "does not exist"),
        (["-f", "rttm", "."], "rttm needs --diarize"),
        (["--channels", "left", "."], "'left' is not one of"),
        (["--start_s", "-1", "."], "Invalid value for '--start_s'"),
        (["--min_speakers", "2", "."], "--min_speakers needs --diarize"),
        (["--speaker_embeddings", "."], "--speaker_embeddings needs --diarize"),
        (["--speaker_embeddings", "--diarize", "-f", "srt", "."], "json among the formats"),
        (["--max_line_count", "2", "."], "--max_line_count needs --max_line_width"),
        (["--task", "translate", "-f", "words", "."], "needs word times"),
        (["--task", "translate", "--highlight_words", "True", "."], "needs word times"),
        (["--chunk_size", "10", "."], "leave out --server"),
        (["--no_align", "--char_timestamps", "."], "needs word times"),
        (
            ["--max_segment_s", "9", "--max_line_count", "2", "--max_line_width", "40", "."],
            "--max_segment_s cannot be combined with --max_line_count",
        ),
        (["--max_segment_s", "0.5", "."], "greater than or equal to 1"),
        (["--hf_token", "hf_x", "."], "HF_TOKEN"),
        (["--batch_size=8", "."], "--jobs"),
        (["--task", "translate", "--confidence", "."], "needs word times"),
        (["--beam_size", "99", "."], "beam_size"),
        (["--no-speech-threshold", "0.5", "."], "--config"),
        (["--unheard-of", "."], "No such option"),
        (["--watch", "nowhere"], "does not exist"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, service: Played) -> None:
    """The error is one sentence, before anything is sent."""
    done = run(service, *arguments)
    assert done.exit_code == 2
    assert says in " ".join(done.output.replace("│", " ").split())
    assert "secret" not in done.output
    assert service.paths == []


def test_each_flag_of_whisperx_is_known_or_refused_with_a_reason() -> None:
    """No flag of whisperx ends in "No such option"."""
    spec = find_spec("whisperx")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "__main__.py").read_text()
    flags = {each.replace("-", "_") for each in re.findall(r'add_argument\(.*?"--([\w-]+)"', source)}
    assert len(flags) > 40
    group: Any = get_command(cli)
    params = group.commands["transcribe"].params
    known = {name.removeprefix("--") for each in params for name in each.opts}
    assert flags - known - set(REFUSED) == set()


def test_switches_and_formats_as_people_write_them(service: Played, talk: Path) -> None:
    """True and False work in any case; formats work with commas, in several flags, and with `all`."""
    for off in (["--highlight_words=false"], ["--highlight_words", "FALSE"]):
        run(service, talk, "-o", talk.parent / "off", "-f", "srt", *off)
        assert "<u>" not in (talk.parent / "off" / "talk.srt").read_text()
    run(service, talk, "-o", talk.parent / "on", "-f", "srt", "-f", "vtt", "--highlight_words=true")
    assert outputs(talk.parent / "on") == [".whisperx-serve", "talk.srt", "talk.vtt"]
    assert "<u>" in (talk.parent / "on" / "talk.srt").read_text()
    run(service, talk, "-o", talk.parent / "all", "-f", "all,words")
    assert len(outputs(talk.parent / "all")) == 1 + len(ALL) + 1


def test_a_folder_without_audio(service: Played, tmp_path: Path) -> None:
    """The error says that there is nothing to transcribe."""
    with pytest.raises(CommandFailed, match="no audio or video file"):
        run(service, tmp_path, "-o", tmp_path / "out")


def test_a_wrong_option_ends_the_run(service: Played, folder: Path, tmp_path: Path) -> None:
    """All files would fail for the same reason, so the run ends with one error."""
    with pytest.raises(CommandFailed, match="language"):
        run(service, folder, "-o", tmp_path / "out", "--language", "Klingon")
    assert service.heard == []


def test_a_service_that_is_not_there_or_does_not_know_the_key(folder: Path, tmp_path: Path) -> None:
    """The command soon ends with exit code 1 and one sentence."""
    with played(tmp_path / "state", with_keys=True) as service:
        for url, key, says in (
            (service.url, "wx_bob", "error: The server does not know this API key.\n"),
            ("http://127.0.0.1:1", KEY, "error: http://127.0.0.1:1/v1/jobs/0 does not answer"),
        ):
            service.url = url
            with running(service, folder, "-o", tmp_path / "out", "--api-key", key) as process:
                said, _ = process.communicate(timeout=60)
            assert process.returncode == 1
            assert said.startswith(says)
            assert said.count("\n") == 1


def test_a_service_of_its_own(talk: Path, tmp_path: Path, started: list[dict[str, Any]]) -> None:
    """Without --server the command starts a service as the flags say, and removes its jobs at the end."""
    flags = (
        "--model tiny --model_dir models --vad_method silero --beam_size 3 --jobs 2 --compute_type default"
    )
    for more in ([], ["--diarize", "--no_align"]):
        arguments = [str(talk), "-o", str(tmp_path), "-f", "txt", *flags.split()]
        done = CliRunner().invoke(cli, ["transcribe", *arguments, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    first, second = (raw["applications"][0]["args"] for raw in started)
    assert first["model"] == "tiny"
    assert first["models_dir"] == str(Path("models").absolute())
    assert first["asr"] == {"compute_type": "auto"}
    assert first["speech"] == {"method": "silero"}
    assert first["diarization"] == {"model": "off"}
    assert first["jobs"].pop("concurrency") == 2
    assert not Path(first["jobs"]["state_dir"]).exists()
    assert second["diarization"] == {"model": "campplus"}
    assert second["alignment"] == {"method": "off"}
    assert started[0]["http_options"]["host"] == "127.0.0.1"


def test_other_settings_of_its_own_service(talk: Path, tmp_path: Path, started: list[dict[str, Any]]) -> None:
    """With another model or config file, or without alignment, a file is transcribed again."""
    config = tmp_path / "config.yaml"
    applications = [{"name": "w", "import_path": "serve_app.app:build", "args": {"model": "base"}}]
    raw = {"http_options": {"host": "127.0.0.1"}, "applications": applications}
    config.write_text(yaml.safe_dump(raw))
    whole = ["transcribe", str(talk), "-o", str(tmp_path), "-f", "txt"]
    for flags in (
        [],
        ["--model", "tiny"],
        ["--no_align"],
        ["--config", str(config)],
        ["--config", str(config)],
    ):
        assert CliRunner().invoke(cli, [*whole, *flags], catch_exceptions=False).exit_code == 0
    assert len(started) == 4
    applications[0]["args"] = {"model": "small"}
    config.write_text(yaml.safe_dump(raw))
    CliRunner().invoke(cli, [*whole, "--config", str(config)], catch_exceptions=False)
    assert len(started) == 5


def test_no_service_is_needed_where_nothing_is_left(
    service: Played, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No service is asked or started."""
    arguments = [str(folder), "-o", str(tmp_path / "out"), "-f", "txt"]
    run(service, *arguments)
    service.paths.clear()
    assert f"{FILES} done before" in run(service, *arguments).output
    assert service.paths == []
    monkeypatch.delattr(launcher, "running")
    done = CliRunner().invoke(cli, ["transcribe", *arguments])
    assert (done.exit_code, done.output) == (0, f"0 transcribed, {FILES} done before, 0 failed.\n")


def test_a_config_file_of_ones_own(tmp_path: Path) -> None:
    """The file is checked again after the flags have changed it."""
    (tmp_path / "talk.mp3").write_bytes(b"audio")
    applications = [{"name": "w", "import_path": "serve_app.app:build", "args": {"model": "base"}}]
    config = tmp_path / "config.yaml"
    raw = {"http_options": {"host": "127.0.0.1"}, "applications": applications}
    config.write_text(yaml.safe_dump(raw))
    arguments = ["transcribe", str(tmp_path / "talk.mp3"), "-o", str(tmp_path), "--config", str(config)]
    for more, says in ((["--device", "tpu"], "device"), (["--chunk_size", "99"], "window_s")):
        done = CliRunner().invoke(cli, [*arguments, *more])
        assert isinstance(done.exception, CommandFailed)
        assert says in str(done.exception)
    config.write_text(yaml.safe_dump({"applications": []}))
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, CommandFailed)
    assert "0 applications" in str(done.exception)


def test_ctrl_c_ends_a_service_of_its_own(
    service: Played, talk: Path, stop: threading.Event, started: list[dict[str, Any]]
) -> None:
    """The run ends with 130 when the launcher's event is set."""
    service.opened.clear()

    def end() -> None:
        until(lambda: service.running)
        stop.set()

    ending = threading.Thread(target=end)
    ending.start()
    done = CliRunner().invoke(cli, ["transcribe", str(talk), "-o", str(talk.parent)])
    ending.join()
    assert done.exit_code == 130
    assert len(started) == 1


def test_a_model_of_the_server_is_chosen(service: Played, talk: Path) -> None:
    """With --server the flag is the option of the requests."""
    service.models += ["large-v2", "small"]
    done = run(service, talk, "--model", "small", "-o", talk.parent, "-f", "txt")
    assert (done.exit_code, service.asked[0].model) == (0, "small"), done.output
    with pytest.raises(CommandFailed, match="use one of large-v2, small"):
        run(service, talk, "--model", "medium", "-o", talk.parent, "-f", "srt")


def test_a_model_of_the_config_file_is_chosen(
    started: list[dict[str, Any]], service: Played, talk: Path, tmp_path: Path
) -> None:
    """One of its `models` is an option of the requests; another name is the service's model."""
    service.models += ["base", "small"]
    config = yaml.safe_load((PROJECT / "serve_config.demo.yaml").read_text())
    config["applications"][0]["args"]["models"] = {"small": None}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    for name, model, option in (("small", "base", "small"), ("tiny", "tiny", None)):
        flags = ["--config", str(path), "--model", name, "-o", str(talk.parent), "-f", "txt"]
        done = CliRunner().invoke(cli, ["transcribe", str(talk), *flags])
        assert done.exit_code == 0, done.output
        assert started[-1]["applications"][0]["args"]["model"] == model
        assert service.asked[-1].model == option


def test_the_command_needs_no_package_of_the_server() -> None:
    """`transcribe --server`, the help and shell completion are quick, and work without the extra `server`."""
    code = "import sys, serve_app.__main__\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    loaded = set(done.stdout.split())
    assert (
        loaded & {"ray", "torch", "fastapi", "starlette", "pydantic", "numpy", "sqlalchemy", "aiohttp"}
        == set()
    )
