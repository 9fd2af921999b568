"""Large uploads through Serve's proxy and a replica: most of one stays with the client until it is taken."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from clients import Upload, until
from inside import (
    INGRESS,
    LOADER,
    PROXY,
    fill_object_store,
    hang_disk,
    unread_in_proxy,
    unread_in_replica,
    within,
)
from sounds import silence, wav

URL = "http://127.0.0.1:18000/predict"
FILE_S = 2000.0
LONG = wav(silence(FILE_S))  # 64 MB
MOST_BYTES = 3 << 20  # that each of the two processes may hold

pytestmark = pytest.mark.usefixtures("app")


@contextmanager
def stuck_upload(folder: Path) -> Iterator[tuple[Upload, Path]]:
    """A file that a disk does not take while the gate is there, as far on its way as it comes."""
    gate = folder / "gate"
    gate.touch()
    within(INGRESS, hang_disk, gate)
    with ThreadPoolExecutor(1) as pool, Upload(URL, LONG) as upload:
        sending = pool.submit(upload.send)
        try:
            upload.until_stuck()
            yield upload, gate
        finally:
            gate.unlink(missing_ok=True)
            sending.exception(timeout=60)


def stored(spool: Path) -> int:
    """How many uploads the Ingress has on its disk, where none has a name."""
    opened = Path(f"/proc/{within(INGRESS, lambda _: os.getpid())}/fd")
    return sum(os.readlink(descriptor).startswith(str(spool)) for descriptor in opened.iterdir())


def test_an_upload_waits_at_the_client_for_a_disk(tmp_path: Path, spool: Path) -> None:
    """While nothing is stored, proxy and replica hold a few pieces; then all of it arrives."""
    with stuck_upload(tmp_path) as (upload, gate):
        assert 0 < sum(within(PROXY, unread_in_proxy)) < MOST_BYTES
        assert 0 < within(INGRESS, unread_in_replica) < MOST_BYTES
        assert upload.sent_bytes < len(LONG) / 2  # and that is in the kernel's buffers
        assert stored(spool) == 1
        gate.unlink()
        assert json.loads(upload.answer()[1])["duration"] == FILE_S
    assert upload.sent_bytes == len(upload.body)


def test_a_client_that_leaves_in_the_middle_is_noticed(tmp_path: Path, spool: Path) -> None:
    """Behind what waits comes its end: nothing of the upload is left, and nothing is made of it."""
    with stuck_upload(tmp_path) as (upload, gate):
        upload.leave()
        gate.unlink()
        until(lambda: within(PROXY, unread_in_proxy) == [])
        until(lambda: stored(spool) == 0)
        until(lambda: within(INGRESS, unread_in_replica) == 0)


def test_a_refused_upload_is_answered_although_nobody_takes_it() -> None:
    """Its client sends to the end, and reads the answer then."""
    with Upload(URL.replace("/predict", "/nowhere"), LONG) as upload:
        upload.send()
        assert upload.answer()[0] == 404


def test_audio_that_has_no_room_is_a_503(tmp_path: Path) -> None:
    """Where neither memory nor disk takes what a loader has decoded, its caller is told to come back."""
    gate = tmp_path / "gate"
    gate.touch()
    within(LOADER, fill_object_store, gate)
    full = httpx.post(URL, files={"file": wav(silence(1.0))}, timeout=60)
    gate.unlink()
    assert (full.status_code, full.json()["error"]["code"]) == (503, "overloaded")
    assert "retry-after" in full.headers
    assert httpx.post(URL, files={"file": wav(silence(1.0))}, timeout=60).status_code == 200
