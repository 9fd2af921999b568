"""The project as a whole: documents agree with the code, and the code stays within its budgets."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app import deployments
from serve_app.cli.config_file import settings_table
from serve_app.http.responses import progress_response
from serve_app.options import Options
from serve_app.transcript import Progress, Segment

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "serve_app"
READMES = [PROJECT / "README.md", PROJECT / "benchmarks" / "README.md", PROJECT / "deploy" / "README.md"]
DOCUMENTS = [*READMES, *(PROJECT / "docs").glob("*.md")]

# Budgets. Raise one only together with the reason, in a commit of its own.
# 8,620; 1,600 for real models (prefetch, attention, CAM++); 1,280 for files, URLs and clients as they are:
# times, channels and tracks, signed URLs, numbers in word times, scripts, HTTP, a Ray that does not start;
# 4,200 for durable jobs: leases, fair queue, outbox, migrations, webhooks, three APIs; 1,950 for the client,
# the command transcribe and segments of running jobs; 300 for the page: its files, and the sound of jobs;
# 150 for what the reference, /docs and --help say: groups, fields of answers, examples;
# 1,350 for doctor: checks of a machine, each with what to do; 600 for metrics, traces,
# autoscaling and placement; 420 for OpenAI's names of models, other dialects of its routes, allowed
# languages and log-probabilities; 630 for whisper-asr-webservice: its routes, trusted networks, samples
# without a header, the language alone; 270 for a request's own search: beam, numbers as words, confidence of
# words, languages of windows; 350 for speech and segments as a request wants them: VAD, length, without
# words, characters; 550 for vectors of voices on every route, and for speakers and speech without a text: two
# requests, their routes, handles and calls of the client; 350 for several models: their settings, gates, GPU
# shares, the command line; 480 for channels as speakers, stretches, tracks and samples without a header; 430
# for what two reviews found in all of these: bounds of cost and memory, order of overlapping speech, errors
# in the client's words, options of a language alone, jobs of other versions; 20
# for what a third found in jobs.
MAX_LINES = 23_700
# Without the packages' own __init__.py: 68, 9 for real models, 12 for files, URLs, clients, 33 for jobs,
# 12 for client and command line, 2 for the page, 11 for doctor: a subject each,
# 2 for traces and autoscaling, 3 for OpenAI's names of models and whisper.cpp's route, 6 for
# whisper-asr-webservice: requests, routes, settings of access, audio as it comes, and the language of a file
# and of a window; 1 for errors as answers; 2 for decoding per request: the search, the confidence of words;
# 4 for windows, speaker turns, state and checks of fields, which pipeline.py and options.py had no room for;
# 4 for options, stages' requests, shapes of answers and the command line's checks, which had none either;
# 1 for the length of segments; 3 for speakers alone, speech alone, their routes; 1 for recognisers' settings;
# 2 for channels as speakers and times of a stretch.
MAX_MODULES = 176
MAX_LINES_OF_A_MODULE = 250
MIN_LINES_OF_A_MODULE = 40
MAX_FILES_IN_ROOT = 13
MAX_README_BYTES = 10_000
SMALL_MODULES = {
    "jobs/store/migrations/env.py": "alembic wants a file of this name",
    "jobs/store/migrations/versions/v0002_segments.py": "one migration is one file",
    "proxy.py": "Serve's proxy and the Ingress import it, neither may import anything else with it",
}


def line_counts() -> dict[str, int]:
    """The lines of each file of the package."""
    files = PACKAGE.rglob("*.py")
    return {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in files}


def test_the_package_stays_within_its_budgets() -> None:
    """One person can know all of it."""
    counts = line_counts()
    assert sum(counts.values()) <= MAX_LINES
    assert len([name for name in counts if not name.endswith("__init__.py")]) <= MAX_MODULES
    assert len([name for name in counts if "/" not in name]) <= MAX_FILES_IN_ROOT


def test_no_module_is_too_large_or_too_small() -> None:
    """A large module hides its parts, a small one costs a hop for nothing."""
    counts = {name: lines for name, lines in line_counts().items() if not name.endswith("__init__.py")}
    assert {name: lines for name, lines in counts.items() if lines > MAX_LINES_OF_A_MODULE} == {}
    small = {name: lines for name, lines in counts.items() if lines < MIN_LINES_OF_A_MODULE}
    assert {name: lines for name, lines in small.items() if name not in SMALL_MODULES} == {}


def test_the_settings_are_documented() -> None:
    """docs/configuration.md ends with the table that `python -m serve_app settings` prints."""
    table = (PROJECT / "docs" / "configuration.md").read_text().partition("<!-- make docs")[2]
    assert table.partition("-->\n")[2] == settings_table() + "\n", "`make docs` writes the table"


def test_the_options_are_documented() -> None:
    """docs/api.md has a row for each request option and for nothing else; README.md has some of them."""
    section = (PROJECT / "docs" / "api.md").read_text().partition("## Options\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*Options.model_fields]
    in_readme = re.findall(r"^\| `(\w+)` \|", (PROJECT / "README.md").read_text(), re.MULTILINE)
    assert in_readme
    assert set(in_readme) <= set(Options.model_fields)


def test_the_readme_is_short() -> None:
    """What does not fit is in docs/."""
    assert len((PROJECT / "README.md").read_bytes()) <= MAX_README_BYTES


class Streaming:
    """A handle whose stream has a report without segments, one with a segment, and the answer."""

    stream: "Streaming"

    def options(self, *, stream: bool) -> "Streaming":
        self.stream = self
        return self

    def remote(self, url: str) -> list[dict[str, Any]]:
        segment = Segment(0.0, 1.0, "Hello.")
        reports = [Progress(1, 2, False, ()), Progress(2, 2, True, (segment,))]
        responses = [progress_response(report, Options()) for report in reports]
        return [*responses, {"model_output": ["all of it"]}]


@pytest.mark.parametrize("name", ["README.md", "docs/api.md"])
def test_a_stream_can_be_printed_as_documented(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also while a report has no segments yet, since an earlier window is missing."""
    loop = re.search(r"^for item in .*\n(?: .*\n)+", (PROJECT / name).read_text(), re.MULTILINE)
    assert loop
    exec(loop[0], {"handle": Streaming(), "audio": b""})
    nothing, one, answer = capsys.readouterr().out.splitlines()
    assert (nothing, answer) == ("[]", "['all of it']")
    assert "Hello." in one


def test_rays_token_is_made_for_its_owner_only(tmp_path: Path) -> None:
    """docs/deploy.md's commands for a cluster, up to Ray's start: Ray would let everybody read it."""
    block = (PROJECT / "docs" / "deploy.md").read_text().partition("```bash\nexport RAY_AUTH_MODE")[2]
    commands = "export RAY_AUTH_MODE" + block.partition("ray start")[0]
    environment = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    subprocess.run(["sh", "-ec", commands], env=environment, check=True, capture_output=True)
    assert (tmp_path / ".ray").stat().st_mode & 0o777 == 0o700
    token = tmp_path / ".ray" / "auth_token"
    assert token.read_text()
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Links to files and headings of this repository exist."""
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text()):
        path, _, heading = link.partition("#")
        target = document if not path else (document.parent / path)
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_files_named_in_documents_exist(document: Path) -> None:
    """So do modules, by their path in the project or the package, and test modules, by their name."""
    text = document.read_text()
    modules = set(re.findall(r"`([\w/]+\.py)`", text))
    assert {
        name for name in modules if not (PROJECT / name).exists() and not (PACKAGE / name).exists()
    } == set()
    tests = {path.stem for path in (PROJECT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"(?<!::)\btest_\w+", text)) <= tests


@pytest.mark.parametrize("name", ["serve_config.yaml", "serve_config.demo.yaml"])
def test_the_config_files_name_deployments_that_exist(name: str) -> None:
    """An unknown name would keep the service from starting."""
    for application in yaml.safe_load((PROJECT / name).read_text())["applications"]:
        names = {deployment["name"] for deployment in application.get("deployments", ())}
        assert names <= set(deployments.USER_CONFIGS)


def test_importing_does_not_load_model_packages() -> None:
    """The ingress, the loader and the launcher stay small: models are imported where they run."""
    light = ["serve_app.app", "serve_app.__main__", "serve_app.deployments"]
    stages = ["diarization.diarizer", "speech.detector"]
    modules = ", ".join([*light, *(f"serve_app.stages.{stage}" for stage in stages)])
    heavy = "torch, whisperx, pyannote, ctranslate2, transformers, nltk"
    code = f"import sys, {modules}\nprint([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert done.stdout.strip() == "[]"


def test_the_lock_names_no_registry() -> None:
    """Pins have hashes and no addresses."""
    lock = (PROJECT / "requirements.lock").read_text()
    assert "://" not in lock
    pins = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert pins
    assert lock.count("--hash=") >= len(pins)
    assert "://" not in (PROJECT / "tests" / "node_sdk" / "package-lock.json").read_text()
