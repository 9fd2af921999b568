"""Fetch headers at rest: encrypted with a key that lies in the state directory, not in the database."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from serve_app.errors import TranscriptionError

KEY_FILE = "secrets.key"


class SecretsUnreadable(TranscriptionError, status=500, code="secrets_unreadable"):
    """The headers were encrypted with another key than this machine has."""


class HeaderSecrets:
    """Encrypts fetch headers with the key of a state directory; makes the key, mode 600, where there is none.

    Nodes that share a job store must share the key.
    """

    def __init__(self, state_directory: Path) -> None:
        self._path = state_directory / KEY_FILE
        if not self._path.exists():
            _write_once(self._path, Fernet.generate_key())
        try:
            self._fernet = Fernet(self._path.read_bytes().strip())
        except ValueError as error:
            raise ValueError(
                f"{KEY_FILE} in the state directory is no key; restore it or delete it."
            ) from error

    def encrypt(self, headers: Mapping[str, str]) -> bytes:
        return self._fernet.encrypt(json.dumps(dict(headers)).encode())

    def decrypt(self, token: bytes) -> dict[str, str]:
        """Raises SecretsUnreadable."""
        try:
            headers: dict[str, str] = json.loads(self._fernet.decrypt(token))
        except InvalidToken:
            raise SecretsUnreadable(
                f"The job's fetch headers were encrypted with another {KEY_FILE}; submit the job again, and "
                "give all nodes the same file."
            ) from None
        return headers


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
