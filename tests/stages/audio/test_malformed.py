"""Files that mean harm end as audio or as a typed 4xx, touch nothing, and leave nothing behind."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hostile_files import FOLDER, Trap, generated, mutated, playlists, whole_files
from benchmarks.malformed import leftovers, outcomes, unexpected, watched
from serve_app.stages.audio import ffmpeg_sandbox as sandbox

MOST_KIB = 200 << 10  # that a decoder may hold; 60 MiB were the most, mapped libraries and all
LIMITS = {"max_audio_s": 600.0, "timeout_s": 30.0}


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    """A neighbour's file in the working directory, and a port, both watched."""
    monkeypatch.chdir(tmp_path)
    trap = Trap(tmp_path)
    yield trap
    trap.close()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Open files and children are as before, after the test."""
    asyncio.run(outcomes([("first", b"\0")], **LIMITS))  # what is made once, such as the search for ffmpeg
    before = leftovers()
    yield
    assert leftovers() == before


def test_the_trap_springs(trap: Trap, tmp_path: Path) -> None:
    """It notices a read neighbour, a new file and a called URL, and nothing else."""
    assert trap.sprung() == []
    trap.neighbour.read_bytes()
    assert trap.sprung() == ["file"]
    (tmp_path / "new").touch()
    assert trap.sprung() == ["file"]
    address = urlsplit(trap.url)
    socket.create_connection((address.hostname, address.port)).close()
    assert trap.sprung() == ["url"]
    assert trap.sprung() == []


def test_generated_files_end_as_they_must(nothing_left: None, trap: Trap) -> None:
    """Bombs, forged headers, playlists: each kind has its own end, takes little memory, touches no trap."""
    with watched() as peak_kib:
        found = asyncio.run(outcomes(generated(trap).items(), **LIMITS))
    assert 0 < peak_kib[0] < MOST_KIB
    assert [one.line() for one in found if one.failed] == []
    assert unexpected(found) == []
    assert trap.sprung() == []


@pytest.mark.parametrize("also", ["", ",hls,dash,concat,sdp"], ids=["both lists", "protocols alone"])
def test_playlists_lead_nowhere_even_with_the_network(
    also: str, nothing_left: None, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a namespace ffmpeg's whitelists keep it from files and URLs; that of protocols alone does."""
    monkeypatch.setattr(sandbox, "network_namespace_command", lambda: ())
    monkeypatch.setattr(sandbox, "FORMATS", sandbox.FORMATS + also)
    found = asyncio.run(outcomes(playlists(trap).items(), **LIMITS))
    assert len(found) > 20
    assert unexpected(found) == []
    assert trap.sprung() == []


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the odd files of ../shared/data/malformed")
def test_odd_files_of_others_end_typed(nothing_left: None, trap: Trap) -> None:
    """Hundreds of broken files from other projects: audio or a typed 4xx, never anything else."""
    paths = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    found = asyncio.run(outcomes([(str(path), path) for path in paths], **LIMITS))
    assert [one.line() for one in found if one.failed] == []
    assert len(found) == len(paths)
    assert Counter(one.end for one in found)["audio"] > 100
    assert trap.sprung() == []


def test_accidents_end_typed(nothing_left: None, trap: Trap) -> None:
    """Intact files after any accident (bits flipped, cut, spliced) are audio or a typed 4xx."""
    sources = list(whole_files().values())

    @settings(max_examples=60, database=None)
    @given(st.randoms(use_true_random=False))
    def accident(random: Random) -> None:
        (found,) = asyncio.run(outcomes([("accident", mutated(sources, random))], **LIMITS))
        assert not found.failed, found.line()

    accident()
    assert trap.sprung() == []
