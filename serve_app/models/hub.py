"""Hugging Face's hub: whether it can be asked at all, and whether it gives a model.

The hub's own client waits for up to half a minute for a hub that does not answer, so a short connection
attempt comes first.
"""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub import errors as hub

from serve_app.errors import ModelUnavailable

PROBE_S = 3.0
PROBE_AGAIN_AFTER_S = 60.0

OFFLINE = "HF_HUB_OFFLINE"  # read by the hub's client when it is imported, by `answers` at each call

_probed: dict[tuple[str, int], tuple[bool, float]] = {}  # host and port -> whether it answered, and when

COMMUNITY = "pyannote/speaker-diarization-community-1"
GATED = {COMMUNITY, "pyannote/speaker-diarization-3.1", "pyannote/segmentation-3.0"}


def endpoint() -> str:
    """The hub's address, a mirror's where HF_ENDPOINT names one."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def answers(url: str) -> bool:
    """The host of this address, or the proxy in front of it, takes a connection; asked once a process."""
    if constants.HF_HUB_OFFLINE or os.environ.get(OFFLINE) == "1":
        return False
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return _connects(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


def _connects(host: str, port: int) -> bool:
    """Whether a connection is taken; a failure is remembered for a minute, a success for good."""
    was_there, at_s = _probed.get((host, port), (False, -PROBE_AGAIN_AFTER_S))
    if not was_there and time.monotonic() - at_s >= PROBE_AGAIN_AFTER_S:
        was_there = _takes_connection(host, port)
        _probed[host, port] = was_there, time.monotonic()
    return was_there


def _takes_connection(host: str, port: int) -> bool:
    connected = threading.Event()

    def connect() -> None:
        with suppress(OSError):
            create_connection((host, port), timeout=PROBE_S).close()
            connected.set()

    # In a thread, because no timeout bounds the name's look-up, and each of its addresses has a timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_S)
    return connected.is_set()


def cached(repository: str, main_file: str) -> Path | None:
    """The repository in the hub client's own cache on this machine, if this file of it is there."""
    with suppress(OSError, ValueError):
        folder = Path(snapshot_download(repository, local_files_only=True))
        return folder if (folder / main_file).is_file() else None
    return None


def is_cached(repository: str) -> bool:
    """Whether a snapshot of the repository is in the hub client's own cache."""
    with suppress(hub.LocalEntryNotFoundError, ValueError):
        snapshot_download(repository, local_files_only=True)
        return True
    return False


def how_to_get(repository: str) -> str:
    """The sentence for a gated repository."""
    why = "your token's account has not accepted its conditions" if get_token() else "HF_TOKEN is not set"
    return (
        f"{repository} is gated and {why}. Accept the conditions on huggingface.co/{repository}, "
        "then set HF_TOKEN to a token of that account."
    )


def _ask(repository: str, *, token: str | None) -> None:
    """Raises the hub's error for a model that this token may not have. `auth_check` has no timeout."""
    HfApi(endpoint(), token=token).model_info(repository, timeout=PROBE_S)


def check(repository: str, setting: str) -> None:
    """Raises ModelUnavailable unless the repository is in the local cache or may be downloaded."""
    if is_cached(repository):
        return
    token = get_token()
    if repository in GATED and not token:  # the hub need not be asked
        raise ModelUnavailable(f"{setting}: {how_to_get(repository)}")
    unreachable = (
        f"the hub cannot be reached to fetch {repository}. Check the network or give a local directory; "
        "docs/models.md says how to copy models to a machine without network."
    )
    if not answers(endpoint()):
        raise ModelUnavailable(f"{setting}: {unreachable}")
    try:
        _ask(repository, token=token)
    except hub.GatedRepoError:
        problem = how_to_get(repository)
    except hub.RepositoryNotFoundError:
        problem = f"there is no {repository} on the hub, or HF_TOKEN does not reach it."
    except (hub.HfHubHTTPError, OSError):
        problem = unreachable
    else:
        return
    raise ModelUnavailable(f"{setting}: {problem}")
