"""The network: Hugging Face's hub, access to its gated models, and the clock."""

import ctypes
import os
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub import errors as hub_errors

from serve_app.cli.doctor.checks import Check, Finding, Subject, fine, skipped, warning, wrong
from serve_app.models import hub
from serve_app.models.catalogue import MAIN_FILES
from serve_app.models.names import PARTS
from serve_app.models.store import open_store
from serve_app.settings import Settings

ASK_S = 4.0
# The clock is compared with the second of an answer. Signed addresses and signatures of webhooks are refused
# where it is wrong by minutes.
NOTED_S, REFUSED_S = 5.0, 120.0
UNSYNCHRONISED = 5  # what adjtimex gives then
TIMEX_BYTES = 512  # more than the kernel's struct timex has


def checks(subject: Subject) -> list[Check]:
    return [
        Check("Hub", hub_answers),
        Check("Hub token", lambda: gate(subject.settings)),
        Check("Clock", lambda: clock(subject.clock_url)),
    ]


def hub_answers() -> Finding:
    """The hub takes connections, so models that are not on this machine can be fetched."""
    name = _host(hub.endpoint())
    if hub.answers(hub.endpoint()):
        return fine(f"{name} answers.")
    if constants.HF_HUB_OFFLINE or os.environ.get(hub.OFFLINE) == "1":
        return skipped(f"{hub.OFFLINE} is set, so the hub is not asked.")
    return warning(
        f"{name} does not answer, so nothing of it can be fetched; prefetch elsewhere what is missing "
        "(docs/models.md), or open the way to it."
    )


def gate(settings: Settings) -> Finding:
    """The token opens pyannote's gated models, if the settings want one."""
    model, token = settings.diarization.model, get_token()
    community = open_store(settings.models_dir).catalogue.get("community-1")
    if community and model in (community.name, *community.aliases):
        model = hub.COMMUNITY
    if model == "auto":
        if not token:
            return fine("There is no HF_TOKEN, so speakers are told apart by campplus, which needs none.")
        model = hub.COMMUNITY
    if model not in hub.GATED:
        return skipped(f"diarization.model: {model} needs no token.")
    for repository in (*PARTS.get(model, ()), model):
        if not _is_here(repository, settings) and (refused := _refusal(repository, token)):
            return refused
    return fine(f"{model} may be used: it is on this machine, or the token opens it.")


def _is_here(repository: str, settings: Settings) -> bool:
    is_in_store = repository == hub.COMMUNITY and open_store(settings.models_dir).find("community-1")
    return bool(is_in_store or hub.cached(repository, MAIN_FILES["speakers"]))


def _refusal(repository: str, token: str | None) -> Finding | None:
    """Why the hub does not give the repository; its answers are not shown, only their status."""
    if not token:
        return wrong(hub.how_to_get(repository))
    if not hub.answers(hub.endpoint()):
        return skipped(f"Whether the token opens {repository} is not known: the hub does not answer.")
    try:
        HfApi(hub.endpoint(), token=token).auth_check(repository)
    except hub_errors.GatedRepoError:
        return wrong(hub.how_to_get(repository))
    except hub_errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status not in (401, 403, 404):
            return warning(f"The hub answers {status} for {repository}; try again later.")
        return wrong(
            f"The hub refuses this HF_TOKEN for {repository} ({status}); make a new one with the right to "
            "read gated repositories on huggingface.co/settings/tokens."
        )
    return None


def clock(url: str | None) -> Finding:
    """The clock is right, by the Date of a server that answers, else by the kernel's own account."""
    is_asked = url is not None or hub.answers(hub.endpoint())
    address = url or hub.endpoint()
    difference_s = _difference_s(address) if is_asked else None
    if difference_s is None:
        return _by_kernel(f"{_host(address)} gives no time" if is_asked else "the hub does not answer")
    amount = f"{abs(difference_s):.0f} s {'ahead of' if difference_s > 0 else 'behind'} {_host(address)}"
    remedy = "set it, and keep it right with chrony or systemd-timesyncd"
    if abs(difference_s) > REFUSED_S:
        return wrong(
            f"The clock is {amount}, so signed addresses and webhooks will be refused; on the host {remedy}."
        )
    if abs(difference_s) > NOTED_S:
        return warning(f"The clock is {amount}; on the host {remedy}.")
    return fine(f"The clock agrees with {_host(address)}.")


def _difference_s(url: str) -> float | None:
    """By how much the clock is ahead of a server's; None where that does not say."""
    begun_s = time.time()
    try:
        answer = httpx.head(url, timeout=ASK_S)
        there_s = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError):
        return None
    ended_s = time.time()
    # Its Date is a whole second, at some time between the request and the answer.
    return 0.0 if begun_s - 1 <= there_s <= ended_s else (begun_s + ended_s) / 2 - there_s - 0.5


def _by_kernel(why: str) -> Finding:
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    if state < 0:
        return skipped(f"Whether the clock is right is not known: {why}, and the kernel does not say.")
    if state == UNSYNCHRONISED:
        return warning(
            f"The kernel says that its clock is not synchronised ({why}, so it is not compared); on the host "
            "run chrony or systemd-timesyncd."
        )
    return fine("The kernel says that its clock is synchronised.")


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the server"
