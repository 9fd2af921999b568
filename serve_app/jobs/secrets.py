"""Encrypts the URL and headers that fetch a job's audio; the key is in a file, not in the database."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from serve_app.errors import TranscriptionError


class SecretsUnreadable(TranscriptionError, status=500, code="secrets_unreadable"):
    """The address was encrypted with another key than this machine has."""


class FetchSecrets:
    """Encrypts the URL and the headers that fetch a job's audio: signed URLs and headers are passwords.

    The key's file is made, mode 600, where there is none. Nodes that share a job store must share it.
    """

    def __init__(self, key_file: Path) -> None:
        if not key_file.exists():
            _write_once(key_file, Fernet.generate_key())
        try:
            self._fernet = Fernet(key_file.read_bytes().strip())
        except ValueError:
            raise ValueError(f"{key_file.name} is no key of jobs; restore it or delete it.") from None

    def encrypt(self, url: str, headers: Mapping[str, str]) -> bytes:
        return self._fernet.encrypt(json.dumps({"url": url, "headers": dict(headers)}).encode())

    def decrypt(self, token: bytes) -> tuple[str, dict[str, str]]:
        """The URL and the headers. Raises SecretsUnreadable."""
        try:
            kept = json.loads(self._fernet.decrypt(token))
        except InvalidToken:
            raise SecretsUnreadable(
                "The job's address was encrypted with another key (jobs.key_file); submit the job again, and "
                "give all nodes the same file."
            ) from None
        return kept["url"], kept["headers"]


def _write_once(path: Path, content: bytes) -> None:
    """Writes a file whole, for its owner only; where another process was faster, its file stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # mode 600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
