"""Secrets of webhooks, and the headers by which receivers verify a body: Standard Webhooks' and Baseten's."""

import base64
import binascii
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "WEBHOOK_SECRETS"

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)  # of the specification


class UnusableSecrets(Exception):
    """The operator's secrets cannot be read or are not valid; the message is one sentence without them."""


def new_secret() -> str:
    """A new secret, of 32 random bytes."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def read_secrets(file: str | None) -> tuple[str, ...]:
    """The secrets in `file`, or without it in the environment; without any, webhooks are not signed.

    Raises UnusableSecrets.
    """
    place = file or f"${VARIABLE}"
    try:
        found = tuple((Path(file).read_text() if file else os.environ.get(VARIABLE, "")).split())
    except (OSError, UnicodeError):
        raise UnusableSecrets(f"{place} (jobs.webhooks.secrets_file) cannot be read as text.") from None
    for number, secret in enumerate(found, 1):
        try:
            is_usable = secret.startswith(_PREFIX) and len(_key(secret)) in _KEY_BYTES
        except (binascii.Error, ValueError):
            is_usable = False
        if not is_usable:
            raise UnusableSecrets(
                f"Secret {number} of {place} is not whsec_ and the base64 of 24 to 64 bytes; "
                "whisperx-serve webhook-secret makes one."
            )
    if file and not found:
        raise UnusableSecrets(f"{place} (jobs.webhooks.secrets_file) holds no secret.")
    return found


def standard_headers(
    message_id: str, sent_at_s: float, body: bytes, signers: Sequence[str]
) -> dict[str, str]:
    """Headers of Standard Webhooks, with a signature by each secret."""
    sent_at = str(int(sent_at_s))
    headers = {"webhook-id": message_id, "webhook-timestamp": sent_at}
    if signers:
        content = f"{message_id}.{sent_at}.".encode() + body
        digests = (base64.b64encode(hmac.digest(_key(secret), content, "sha256")) for secret in signers)
        headers["webhook-signature"] = " ".join(f"v1,{digest.decode()}" for digest in digests)
    return headers


def baseten_headers(request_id: str, body: bytes, signers: Sequence[str]) -> dict[str, str]:
    """Headers of Baseten's asynchronous inference, which takes the whole secret as the key."""
    headers = {"X-BASETEN-REQUEST-ID": request_id}
    if signers:
        digests = (hmac.digest(secret.encode(), body, "sha256").hex() for secret in signers)
        headers["X-BASETEN-SIGNATURE"] = ",".join(f"v1={digest}" for digest in digests)
    return headers


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
