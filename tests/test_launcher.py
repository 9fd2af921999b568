"""What the launcher keeps on disk."""

import shutil
import tempfile
from pathlib import Path

import pytest

from serve_app.launcher import SPILL_PREFIX, spill_folder


def test_what_does_not_fit_in_memory_is_for_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is closed to other users, goes with the server, and what killed servers left goes before.

    That of a server that lives beside this one stays.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{SPILL_PREFIX}of-the-dead"
    left.mkdir()
    (left / "recording").write_bytes(b"private")
    with spill_folder() as first:
        assert list(tmp_path.iterdir()) == [Path(first)]
        assert Path(first).stat().st_mode & 0o777 == 0o700
        (Path(first) / "recording").write_bytes(b"private")
        with spill_folder() as second:
            assert {str(folder) for folder in tmp_path.iterdir()} == {first, second}
        assert (Path(first) / "recording").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_its_place_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody may write to the temporary directory: a name there proves nothing."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "tmp" / f"{SPILL_PREFIX}link").symlink_to(precious)
    with spill_folder():
        assert precious.exists()
    shutil.rmtree(tmp_path)
