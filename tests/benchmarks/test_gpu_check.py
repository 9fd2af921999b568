"""gpu-check: no step runs over its time, what hangs is killed, and all of it runs on a CPU."""

import ast
import io
import json
import subprocess
import sys
import textwrap
import time
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console

from benchmarks.gpu.__main__ import STEPS, all_well, table
from benchmarks.gpu.budget import KILL_S, NOT_POSSIBLE, Outcome, Step, chosen, run_child, run_within
from benchmarks.gpu.child import RUN
from benchmarks.gpu.compare import compare_words, speakers_differ_percent, window_edges_apart_s
from benchmarks.gpu.constants import FILE, corrected, diff
from benchmarks.gpu.figures import SIMULATED, Figure, Report, read
from benchmarks.gpu.machine import cublas_13_as_12, environment, install_missing, machine_name
from benchmarks.gpu.meter import MIB, Nvml, usage
from benchmarks.gpu.pack import LOCK, PACKAGES, pins
from benchmarks.gpu.sequential import BATCH_AUDIO_S
from benchmarks.gpu.stages import BATCH, Check
from serve_app.app import ALIGN_BATCH, MAX_BATCH_SIZE
from serve_app.transcript import Diarization, Turn, Window, Word

PROJECT = Path(__file__).parents[2]
MACHINE = "test machine"

planned = st.builds(
    Step,
    name=st.sampled_from(["correctness.aligner", "cost.aligner", "graph"]),
    what=st.just(""),
    needs_s=st.floats(0, 200),
    limit_s=st.floats(1, 300),
)


class Clock:
    """Time that only steps spend."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(seconds=st.floats(0, 600), steps=st.lists(st.tuples(planned, st.floats(0, 1000)), max_size=12))
def test_the_time_is_never_exceeded(seconds: float, steps: list[tuple[Step, float]]) -> None:
    """Whatever steps take, also when each must be killed and takes its time to die."""
    clock = Clock()
    spent = {id(step): takes_s for step, takes_s in steps}

    def run(step: Step, limit_s: float) -> Outcome:
        assert limit_s <= step.limit_s
        takes_s = spent[id(step)]
        clock.now_s += min(takes_s, limit_s + KILL_S)
        return Outcome(step.name, "done" if takes_s <= limit_s else "killed")

    outcomes = list(run_within(seconds, [step for step, _ in steps], run, clock))
    assert [outcome.step for outcome in outcomes] == [step.name for step, _ in steps]
    assert clock.now_s <= max(seconds, 0)


@given(steps=st.lists(planned, max_size=12))
def test_a_step_runs_only_where_it_fits(steps: list[Step]) -> None:
    """A skipped one says how much time it needs; a smaller one behind it still runs."""
    clock, begun_with_s = Clock(), []

    def run(step: Step, limit_s: float) -> Outcome:
        begun_with_s.append((step.needs_s, 540 - KILL_S - clock.now_s))
        clock.now_s += min(step.needs_s, limit_s)
        return Outcome(step.name, "done")

    for outcome in run_within(540, steps, run, clock):
        assert (outcome.state == "skipped") == ("it needs" in outcome.reason)
    assert all(needs_s <= left_s for needs_s, left_s in begun_with_s)


def test_steps_are_chosen_by_name_and_by_group() -> None:
    """In their order, and a name that no step has is an error that lists those there are."""
    names = [step.name for step in chosen(STEPS, "correctness,machine", "correctness.aligner")]
    assert names == ["machine", "correctness.recognizer", "correctness.detector", "correctness.diarizer"]
    assert chosen(STEPS, "", "") == list(STEPS)
    with pytest.raises(ValueError, match=r"no step cos; .*cost\.aligner"):
        chosen(STEPS, "cos", "")


def test_every_step_can_be_run() -> None:
    """The plan and the program of a child agree; so do the batches and the service's."""
    assert [step.name for step in STEPS] == list(RUN)
    assert BATCH == MAX_BATCH_SIZE
    assert ALIGN_BATCH["cuda"]["max_batch_audio_s"] == BATCH_AUDIO_S


def test_the_command_itself_needs_next_to_nothing() -> None:
    """It installs the wheels that the steps need, so it must run before them."""
    code = "import sys, benchmarks.gpu.__main__; print({name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    loaded = ast.literal_eval(done.stdout)
    assert {"rich", "typer", "psutil"} <= loaded
    assert not loaded & {"numpy", "pydantic", "torch", "ctranslate2", "serve_app", "ray", "yaml"}


HANGS = """
    import json, signal, subprocess, sys, time
    from pathlib import Path
    from benchmarks.gpu.figures import Report
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Report(Path({figures!r}), "test machine")("before it hung", 1.0)
    sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
    others = [subprocess.Popen(sleep, start_new_session=alone).pid for alone in (False, True)]
    Path({pids!r}).write_text(json.dumps(others))
    time.sleep(300)
"""


def test_a_hanging_step_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    """Also what ignores SIGTERM or leads a session; what it had measured is kept."""
    figures, pids = tmp_path / "hangs.jsonl", tmp_path / "pids"
    code = textwrap.dedent(HANGS).format(figures=str(figures), pids=str(pids))
    step = Step("hangs", "", 0, 10)
    outcome = run_child(step, 10, [sys.executable, "-c", code], tmp_path, tmp_path / "log", PROJECT)
    assert (outcome.state, outcome.reason) == ("killed", "it took over 10 s")
    assert outcome.seconds < 10 + KILL_S
    assert [figure.name for figure in outcome.figures] == ["before it hung"]
    alive = [psutil.Process(pid) for pid in json.loads(pids.read_text()) if psutil.pid_exists(pid)]
    assert psutil.wait_procs(alive, timeout=10)[1] == []


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        ("raise RuntimeError('CUDA error: out of memory')", "failed", "CUDA error: out of memory"),
        (f"print('there is no GPU'); raise SystemExit({NOT_POSSIBLE})", "skipped", "there is no GPU"),
        ("import os; print('last'); os.abort()", "failed", "SIGABRT"),
    ],
)
def test_the_end_of_a_step_is_explained(tmp_path: Path, code: str, state: str, reason: str) -> None:
    """By the last line that it wrote, and by the signal that ended it."""
    command = [sys.executable, "-u", "-c", code]
    outcome = run_child(Step("ends", "", 0, 60), 60, command, tmp_path, tmp_path / "log")
    assert outcome.state == state
    assert reason in outcome.reason


FAILS = """
    import sys, typer
    from benchmarks.gpu import child
    def fail(check):
        raise RuntimeError("CUDA error: unspecified launch failure\\nCompile with TORCH_USE_CUDA_DSA.")
    child.RUN["machine"] = fail
    sys.argv[1:] = ["machine", "--device", "cpu", "--folder", ".", "--machine-name", "", "--limit-s", "60"]
    typer.run(child.main)
"""


def test_an_error_of_several_lines_is_explained_by_its_first(tmp_path: Path) -> None:
    """CUDA's errors end with the same advice, whatever has happened."""
    command = [sys.executable, "-c", textwrap.dedent(FAILS)]
    outcome = run_child(Step("machine", "", 0, 60), 60, command, tmp_path, tmp_path / "log", PROJECT)
    assert outcome.state == "failed"
    assert outcome.reason == "RuntimeError: CUDA error: unspecified launch failure"


def test_a_figure_is_labelled_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    """Each figure says that it is measured, and on which machine."""
    path = tmp_path / "figures.jsonl"
    Report(path, MACHINE)("edges", 0.01, "s", at_most=0.02)
    with path.open("a") as file:
        file.write('{"name": "cut o')
    assert read(path) == [Figure("edges", 0.01, "s", at_most=0.02, kind="measured", machine=MACHINE)]


@pytest.mark.parametrize(
    ("figure", "is_well"),
    [
        (Figure("a", 1.0, at_most=1), True),
        (Figure("a", 1.1, at_most=1), False),
        (Figure("a", float("nan"), at_most=1), False),
        (Figure("a", 0.0, at_least=1), False),
        (Figure("a", "2.8.0"), True),
    ],
)
def test_a_figure_outside_of_its_limit_is_an_error(figure: Figure, is_well: bool) -> None:
    """A model that gives nan is one, too."""
    assert all_well([Outcome("cost.aligner", "done", figures=(figure,))]) is is_well


def test_what_is_unknown_is_within_its_limits_and_says_so(tmp_path: Path) -> None:
    """0 MiB would be within them, too, and 0 % busy outside."""
    report = Report(tmp_path / "figures.jsonl", MACHINE)
    report("memory", None, "MiB", at_most=100)
    report("busy", None, "%", at_least=90)
    figures = read(tmp_path / "figures.jsonl")
    assert [(figure.shown, figure.has_limit) for figure in figures] == [("unknown", False)] * 2
    assert all_well([Outcome("cost.aligner", "done", figures=tuple(figures))])


@pytest.mark.parametrize(
    ("device", "is_tiny", "goal"), [("cuda", False, 3), ("cuda", True, None), ("cpu", False, None)]
)
def test_only_full_models_on_a_gpu_have_goals_of_speed(
    tmp_path: Path, device: str, is_tiny: bool, goal: float | None
) -> None:
    """On a GPU, with models of true dimensions; elsewhere it is measured to try the command."""
    report = Report(tmp_path / "figures.jsonl", MACHINE)
    report("whisperx's time over ours", 2.9, at_least=Check(device, is_tiny, tmp_path, report).goal(3))
    [figure] = read(tmp_path / "figures.jsonl")
    assert (figure.at_least, figure.is_within) == (goal, goal is None)


def driver(mib_in_use: dict[int, int]) -> Any:
    """NVML of two GPUs, of which the second has a slice; `_obj` is what ctypes.byref points to."""
    uuids = {b"GPU-one": 1, b"GPU-two": 2, b"MIG-of-two": 3}

    def by_number(number: Any, gpu: Any) -> int:
        gpu._obj.value = number.value + 1
        return 0 if number.value < 2 else 2

    def by_uuid(uuid: bytes, gpu: Any) -> int:
        gpu._obj.value = uuids.get(uuid)
        return 0 if uuid in uuids else 6

    def memory(gpu: Any, found: Any) -> int:
        found._obj.used = mib_in_use[gpu.value] * MIB
        return 0

    def load(gpu: Any, found: Any) -> int:
        found._obj.gpu = 10 * gpu.value
        return 0 if gpu.value < 3 else 3  # not supported

    return SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByIndex_v2=by_number,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetUtilizationRates=load,
    )


@pytest.mark.parametrize(
    ("visible", "memory_mib", "busy_percent"),
    [
        (None, 100, 10),
        ("1", 200, 20),
        ("1,0", 200, 20),
        ("GPU-two", 200, 20),
        ("MIG-of-two", 300, None),
        ("7", None, None),
        ("", None, None),
        ("-1", None, None),
    ],
)
def test_the_gpu_that_is_watched_is_the_one_in_use(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    visible: str | None,
    memory_mib: float | None,
    busy_percent: float | None,
) -> None:
    """By number or by name, in this process and in the steps; what the driver does not say is unknown."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for _ in range(2):
        gpu = Nvml(driver({1: 100, 2: 200, 3: 300}))
        assert (gpu.memory_mib(), gpu.busy_percent()) == (memory_mib, busy_percent)
        of_steps = environment(tmp_path / "site", tmp_path / "libraries")
        assert of_steps["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", of_steps["CUDA_VISIBLE_DEVICES"])


@pytest.mark.parametrize(
    ("visible", "grown_mib", "busy_percent"), [("1", 50, 20), ("MIG-of-two", 50, None), ("7", None, None)]
)
def test_memory_is_watched_to_the_end(
    monkeypatch: pytest.MonkeyPatch, visible: str, grown_mib: float | None, busy_percent: float | None
) -> None:
    """Memory that is taken and given back is found, also on a GPU whose load is unknown."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    in_use = {1: 100, 2: 200, 3: 300}
    with usage("cuda", driver(in_use)) as seen:
        await_samples(seen.busy_percent, 2)
        for gpu in in_use:
            in_use[gpu] += 50
        await_samples(seen.memory_mib, len(seen.memory_mib) + 2)
        for gpu in in_use:
            in_use[gpu] -= 50
    assert (seen.grown_mib, seen.mean_busy_percent) == (grown_mib, busy_percent)


def await_samples(samples: list[float | None], count: int) -> None:
    """Waits until the thread that watches has taken so many."""
    until_s = time.monotonic() + 10
    while len(samples) < count:
        assert time.monotonic() < until_s
        time.sleep(0.01)


SMI = """#!/bin/sh
case "$*" in
    *--id=0) echo 'Tesla T4' ;;
    *--id=1) echo 'NVIDIA L4' ;;
    *--id=*) echo 'No devices were found'; exit 6 ;;
    *) printf 'Tesla T4\nNVIDIA L4\n' ;;
esac
"""


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        ("0", "Tesla T4"),
        ("1", "NVIDIA L4"),
        ("MIG-x", "a slice of an unknown GPU"),
        ("7", "an unknown GPU"),
        ("", "an unknown GPU"),
    ],
)
def test_figures_name_the_gpu_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str, name: str
) -> None:
    """A T4's figures under an L4's name would be worse than none."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(SMI)
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine_name("cuda").partition(",")[0] == name


def test_the_table_shows_errors_as_they_are() -> None:
    """Their brackets are no markup, which could be broken."""
    reason = "ImportError: libcudnn.so.9 [/usr/lib] [red]missing"
    console = Console(file=io.StringIO(), width=200)
    console.print(table([Outcome("graph", "failed", reason, figures=(Figure("error", "[/x]"),))], "title"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert reason in shown
    assert "[/x]" in shown


def test_words_are_compared_by_text_and_time() -> None:
    """A frame is no difference, two are; a word more and a word less are one each."""
    expected = [Word("one", 0.0, 0.3), Word("two", 0.4, 0.6), Word("three", 0.7, 0.9), Word("4")]
    found = [Word("one", 0.02, 0.3), Word("too", 0.4, 0.6), Word("three", 0.74, 0.9), Word("4")]
    counts = compare_words(found, expected)
    assert (counts.expected, counts.changed, counts.moved) == (4, 1, 1)
    assert counts.furthest_s == pytest.approx(0.04)
    assert compare_words([], expected).changed == compare_words(expected, []).changed == 4
    assert compare_words([Word("4", 1.0, 2.0)], [Word("4")]).moved == 1


def test_windows_and_turns_are_compared() -> None:
    """A window that is missing is as bad as can be; speakers count by their voices, not by their labels."""
    windows = [Window(0.0, 1.0), Window(2.0, 3.0)]
    assert window_edges_apart_s([Window(0.0, 1.0), Window(2.0, 3.5)], windows) == pytest.approx(0.5)
    assert window_edges_apart_s(windows[:1], windows) == float("inf")
    turns = (Turn(0.0, 5.0, "SPEAKER_00"), Turn(5.0, 10.0, "SPEAKER_01"))
    swapped = (Turn(0.0, 5.0, "SPEAKER_01"), Turn(5.0, 10.0, "SPEAKER_00"))
    alone = (Turn(0.0, 10.0, "SPEAKER_00"),)
    assert speakers_differ_percent(Diarization(swapped, ()), Diarization(turns, ())) == pytest.approx(0)
    assert speakers_differ_percent(Diarization(alone, ()), Diarization(turns, ())) == pytest.approx(50)


def test_the_simulations_constants_are_corrected_in_place() -> None:
    """Values change, comments and everything else stay; the file is still a program."""
    terms = {"STEP_S": 0.00071, "HALF": 0.25, "DIARIZE": 0.002}
    before = FILE.read_text()
    after = corrected(before, terms)
    compile(after, "simulated.py", "exec")
    changed = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert changed == [
        "STEP_S = 0.00071  # each decoding step reads the weights once for the whole batch",
        "HALF = 0.25",
        "DIARIZE = 0.002  # and with one trunk for all its speakers",
    ]
    assert diff({}, MACHINE) == ""


def test_the_diff_can_be_applied(tmp_path: Path) -> None:
    """By `git apply`, as the documents say."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "simulated.py").write_text(FILE.read_text())
    changes = diff({"ENCODE_S": 0.0042}, "NVIDIA H200, 16 cores")
    subprocess.run(["git", "apply", "-"], input=changes, text=True, check=True, cwd=tmp_path)
    assert "ENCODE_S = 0.0042 " in (tmp_path / "benchmarks" / "simulated.py").read_text()


def wheel(folder: Path, name: str) -> Path:
    """A wheel with one module of that name."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "here = True\n")
        archive.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


def test_only_missing_wheels_are_installed_and_the_steps_find_them(tmp_path: Path) -> None:
    """A package that the machine has stays as it is: its version fits its GPU."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("nobodys_package", "numpy"):
        wheel(wheels, name)
    assert install_missing(wheels, tmp_path / "site") == ["nobodys_package-1.0-py3-none-any.whl"]
    code = "import nobodys_package, numpy; assert nobodys_package.here; numpy.zeros(1)"
    variables = environment(tmp_path / "site", tmp_path / "libraries")
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)


def test_cublas_13_is_found_by_the_name_of_12(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing else; else nothing is done."""
    new, old = tmp_path / "nvidia/cu13/lib", tmp_path / "nvidia/cublas/lib"
    new.mkdir(parents=True)
    for name in ("libcublas.so.13", "libcublasLt.so.13"):
        (new / name).write_text(name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    libraries = tmp_path / "libraries"
    assert cublas_13_as_12(libraries) == [libraries, new]
    assert (libraries / "libcublas.so.12").read_text() == "libcublas.so.13"
    old.mkdir(parents=True)
    (old / "libcublas.so.12").touch()
    assert cublas_13_as_12(tmp_path / "unused") == []


def test_the_pack_has_the_versions_of_the_lock() -> None:
    """Each package once; torch, CUDA and Ray are the other machine's."""
    found = pins(LOCK.read_text())
    assert len(found) == len(set(found)) == len(PACKAGES)
    assert not {"torch", "ray", "transformers"} & {pin.partition("==")[0] for pin in found}


# With torch, transformers and lightning these come, or the stages do not import them.
OF_THE_MACHINE = {
    "einops",
    "filelock",
    "fsspec",
    "grpcio",
    "huggingface-hub",
    "joblib",
    "lightning",
    "matplotlib",
    "networkx",
    "numpy",
    "onnxruntime",
    "packaging",
    "pandas",
    "protobuf",
    "pyyaml",
    "regex",
    "requests",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "setuptools",
    "sortedcontainers",
    "sympy",
    "tokenizers",
    "torch",
    "torchaudio",
    "torchmetrics",
    "torchvision",
    "tqdm",
    "transformers",
    "triton",
    "typing-extensions",
    "click",
}
NOT_IMPORTED = {"alembic", "av", "defusedxml", "sqlalchemy", "torchcodec"}


def test_the_pack_has_what_its_packages_need() -> None:
    """A package that is added to the lock later would be missed only on the GPU machine."""
    missing = set()
    for package in PACKAGES:
        for written in requires(package) or ():
            needed = Requirement(written)
            if needed.marker is None or needed.marker.evaluate({"extra": "", "python_version": "3.12"}):
                missing.add(canonicalize_name(needed.name))
    assert missing - set(PACKAGES) - OF_THE_MACHINE - NOT_IMPORTED == set()


@pytest.mark.slow
def test_all_steps_but_the_graph_run_on_a_cpu(tmp_path: Path) -> None:
    """With tiny models, so that the command is tried before it meets a GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--seconds", "1200"]
    done = subprocess.run(
        [*command, "--skip", "graph", "--out", str(tmp_path)],
        check=False,
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (tmp_path / "gpu.log").read_text() + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {step["step"]: step["state"] for step in found["steps"]} == {
        step.name: "done" for step in STEPS if step.name != "graph"
    }
    figures = [figure for step in found["steps"] for figure in step["figures"]]
    assert {(figure["kind"], figure["machine"]) for figure in figures} == {("measured", found["machine"])}
    assert sum(figure["name"].startswith(SIMULATED) for figure in figures) == 9
    assert found["simulated_diff"]
    assert found["seconds"] <= found["budget_s"]
