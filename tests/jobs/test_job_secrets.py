"""The URL and headers that fetch a job's audio are stored encrypted."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.jobs.secrets import FetchSecrets, SecretsUnreadable

URL = "https://media.example/talk.mp3?signature=pa55word"
HEADERS = {"Authorization": "Bearer s3cret", "X-Größe": "1"}


def test_headers_come_back_and_cannot_be_read_without_the_key(tmp_path: Path) -> None:
    """Another process with the same key file can decrypt them, too."""
    sealed = FetchSecrets(tmp_path / "state" / "key").encrypt(URL, HEADERS)
    assert b"s3cret" not in sealed
    assert b"pa55word" not in sealed
    assert FetchSecrets(tmp_path / "state" / "key").decrypt(sealed) == (URL, HEADERS)
    with pytest.raises(SecretsUnreadable, match="submit the job again"):
        FetchSecrets(tmp_path / "other" / "key").decrypt(sealed)


def test_only_the_owner_can_read_the_key(tmp_path: Path) -> None:
    """The file is never there with other permissions, and nothing else stays in the directory."""
    FetchSecrets(tmp_path / "state" / "key")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["key"]
    assert (tmp_path / "state" / "key").stat().st_mode & 0o777 == 0o600


def test_processes_that_start_together_have_one_key(tmp_path: Path) -> None:
    """What one of them encrypts, all others can decrypt."""
    with ThreadPoolExecutor(8) as pool:
        all_of_them = list(pool.map(FetchSecrets, [tmp_path / "key"] * 8))
    sealed = [one.encrypt(URL, HEADERS) for one in all_of_them]
    assert [all_of_them[0].decrypt(token) for token in sealed] == [(URL, HEADERS)] * 8


def test_a_broken_key_is_told(tmp_path: Path) -> None:
    """Making a new one in its place would lose what was encrypted with the old one."""
    (tmp_path / "key").write_text("no key")
    with pytest.raises(ValueError, match="restore it or delete it"):
        FetchSecrets(tmp_path / "key")
