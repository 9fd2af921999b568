"""Fetch headers at rest."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.jobs.secrets import KEY_FILE, HeaderSecrets, SecretsUnreadable

HEADERS = {"Authorization": "Bearer s3cret", "X-Größe": "1"}


def test_headers_come_back_and_cannot_be_read_without_the_key(tmp_path: Path) -> None:
    """Also by another process with the same state directory."""
    sealed = HeaderSecrets(tmp_path / "state").encrypt(HEADERS)
    assert b"s3cret" not in sealed
    assert HeaderSecrets(tmp_path / "state").decrypt(sealed) == HEADERS
    with pytest.raises(SecretsUnreadable, match="submit the job again"):
        HeaderSecrets(tmp_path / "other").decrypt(sealed)


def test_only_the_owner_can_read_the_key(tmp_path: Path) -> None:
    """The file is never there with other permissions, and nothing else stays in the directory."""
    HeaderSecrets(tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == [KEY_FILE]
    assert (tmp_path / "state" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_processes_that_start_together_have_one_key(tmp_path: Path) -> None:
    """What one of them encrypts, all others can decrypt."""
    with ThreadPoolExecutor(8) as pool:
        all_of_them = list(pool.map(HeaderSecrets, [tmp_path] * 8))
    sealed = [one.encrypt(HEADERS) for one in all_of_them]
    assert [all_of_them[0].decrypt(token) for token in sealed] == [HEADERS] * 8


def test_a_broken_key_is_told(tmp_path: Path) -> None:
    """Making a new one in its place would lose what was encrypted with the old one."""
    (tmp_path / KEY_FILE).write_text("no key")
    with pytest.raises(ValueError, match="restore it or delete it"):
        HeaderSecrets(tmp_path)
