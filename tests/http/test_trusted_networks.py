"""Clients that need no key: by the address of their connection, and by nothing that they can write."""

import asyncio
import hashlib
import ipaddress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.audio import Source
from serve_app.cli import CommandFailed
from serve_app.cli.config_file import check
from serve_app.http.app import create_app
from serve_app.options import Options
from serve_app.settings.access import AccessSettings
from serve_app.transcript import Transcript

KEY = "wx_of-acme"
KEYS = ({"name": "acme", "sha256": hashlib.sha256(KEY.encode()).hexdigest()},)
LAN = "192.168.1.0/24"
INSIDE, OUTSIDE = "192.168.1.20", "192.168.2.20"


def answer(
    client: str, headers: dict[str, str] | None = None, host: str = "192.168.1.5:8000", **access: Any
) -> httpx.Response:
    """What a server with these settings answers a client at this address."""

    async def transcribe(source: Source, options: Options, report: object = None) -> Transcript:
        return Transcript((), "en", 0.0, "fake")

    async def readiness() -> dict[str, bool]:
        return {}

    app = create_app(
        transcribe, readiness, model="none", max_bytes=1 << 20, access=AccessSettings.model_validate(access)
    )

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport) as http:
            return await http.post(
                "http://127.0.0.1/predict", files={"file": b"x"}, headers={"Host": host, **(headers or {})}
            )

    return asyncio.run(send())


def status(client: str, *arguments: Any, **access: Any) -> int:
    return answer(client, *arguments, **access).status_code


@pytest.mark.parametrize("client", [INSIDE, f"::ffff:{INSIDE}", "fd00::7", "127.0.0.1"])
def test_without_keys_trusted_networks_are_answered(client: str) -> None:
    """Next to the own machine, which asks for itself as before."""
    host = "127.0.0.1" if client == "127.0.0.1" else "192.168.1.5"
    assert status(client, None, host, trusted_networks=(LAN, "fd00::/64")) == 200


@pytest.mark.parametrize("client", [OUTSIDE, "203.0.113.9", "fd00:0:0:1::7", "::ffff:203.0.113.9"])
def test_without_keys_others_are_refused(client: str) -> None:
    """A port that is open to all answers the networks that it is meant for."""
    refused = answer(client, trusted_networks=(LAN, "fd00::/64"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_api_keys")
    assert "trusted_networks" in refused.json()["error"]["message"]


def test_the_refusal_says_how_the_request_came() -> None:
    """So a client of a trusted network sees which condition it does not meet: the name, or the proxy."""
    messages = [
        answer(INSIDE, headers, host, trusted_networks=(LAN,)).json()["error"]["message"]
        for headers, host in ((None, "whisper.example.com:80"), ({"X-Forwarded-For": INSIDE}, "192.168.1.5"))
    ]
    assert f"came from {INSIDE}, to whisper.example.com." in messages[0]
    assert f"came from {INSIDE}, to 192.168.1.5, through a proxy." in messages[1]


def test_with_keys_trusted_networks_need_none() -> None:
    """Others do. A key that is sent all the same counts: a wrong one is an error, not a guest."""
    access = {"keys": KEYS, "trusted_networks": (LAN,)}
    right, wrong = ({"Authorization": f"Bearer {key}"} for key in (KEY, "wx_other"))
    assert [status(INSIDE, headers, **access) for headers in ({}, right, wrong)] == [200, 200, 401]
    assert [status(OUTSIDE, headers, **access) for headers in ({}, right, wrong)] == [401, 200, 401]


@pytest.mark.parametrize(
    "header",
    [
        *("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Proto", "X-Forwarded-Host"),
        *("CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "X-Envoy-External-Address", "CDN-Loop"),
    ],
)
@pytest.mark.parametrize("client", [INSIDE, OUTSIDE, "127.0.0.1"])
def test_what_came_through_a_proxy_is_not_trusted(header: str, client: str) -> None:
    """A proxy's address is not its client's, and what it says of the client, the client may have written."""
    headers = {header: f"for={INSIDE}" if header == "Forwarded" else INSIDE}
    access = {"keys": KEYS, "trusted_networks": (LAN, "127.0.0.0/8")}
    assert status(client, headers, **access) == 401
    assert status(client, {**headers, "Api-Key": KEY}, **access) == 200


def test_behind_haproxy_nobody_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's HAProxy makes every client look like this machine."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert status("127.0.0.1", keys=KEYS, trusted_networks=("127.0.0.0/8",)) == 401


@pytest.mark.parametrize(
    "host", ["192.168.1.5:8000", "[fd00::5]:8000", "whisperx:8000", "NAS.local", "gpu.home.arpa", "a.b.lan"]
)
def test_a_trusted_client_asks_by_an_address_or_a_local_name(host: str) -> None:
    """By what a network itself calls the server: compose's names, mDNS, a router's."""
    assert status(INSIDE, None, host, trusted_networks=(LAN,)) == 200


@pytest.mark.parametrize("host", ["rebind.example", "192.168.1.5.rebind.example", "local.example:8000", ""])
def test_a_web_page_cannot_use_its_readers_network(host: str) -> None:
    """A page makes its name lead to the server (DNS rebinding), and its reader's browser is inside."""
    assert status(INSIDE, None, host, trusted_networks=(LAN,)) == 403
    assert status(INSIDE, {"Api-Key": KEY}, host, trusted_networks=(LAN,), keys=KEYS) == 200


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
networks = st.builds(
    lambda address, bits: ipaddress.ip_network((address, bits if address.version == 6 else bits // 4), False),
    addresses,
    st.integers(32, 128),
).filter(lambda network: not network.is_multicast and not str(network).startswith("::ffff:"))


@given(addresses, st.lists(networks, min_size=1, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_the_address_decides_alone(address: Any, trusted: list[Any], has_keys: bool, is_near: bool) -> None:
    """Any address is let in where it is in one of the networks, and nowhere else."""
    if is_near:  # the last address of a network
        address = trusted[0].broadcast_address
    access: dict[str, Any] = {"trusted_networks": [str(network) for network in trusted]}
    access |= {"keys": KEYS} if has_keys else {}
    plain = getattr(address, "ipv4_mapped", None) or address
    is_inside = any(plain in network for network in trusted)
    assert status(str(address), **access) == (200 if is_inside else 401 if has_keys else 403)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("0.0.0.0/0", "public_without_keys"),
        ("::/0", "public_without_keys"),
        ("128.0.0.0/1", "public_without_keys"),
        ("2000::/3", "public_without_keys"),
        ("192.168.1.5/24", "192.168.1.0/24"),
        ("192.168.1.0-192.168.1.9", "192.168.1.0/24"),
        ("lan", "192.168.1.0/24"),
        ("*", "192.168.1.0/24"),
        ("224.0.0.0/8", "no client"),
        ("::ffff:192.168.1.0/120", "no client"),
    ],
)
def test_nonsense_is_refused_at_the_start(network: str, says: str) -> None:
    """What would let everybody in, or nobody, is no network to trust; the sentence says what is."""
    with pytest.raises(ValidationError, match=says):
        AccessSettings(trusted_networks=(network,))


def test_a_network_changes_nothing_where_everybody_is_let_in() -> None:
    """One of the two is a mistake, and nobody can tell which."""
    with pytest.raises(ValidationError, match="leave one out"):
        AccessSettings(trusted_networks=(LAN,), public_without_keys=True)
    AccessSettings(trusted_networks=("10.0.0.0/8", "fc00::/7", "192.168.1.7"))


def config(host: str, *networks: str) -> dict[str, Any]:
    access = {"trusted_networks": [*networks]}
    application = {"name": "whisperx", "import_path": "serve_app.app:build", "args": {"access": access}}
    return {"http_options": {"host": host}, "applications": [application]}


def test_the_config_file_is_checked_with_its_host() -> None:
    """A container may listen for its networks without keys; on 127.0.0.1 none of them would arrive."""
    path = Path("config.yaml")
    check(config("0.0.0.0", LAN), path)
    check(config("127.0.0.1", "127.0.0.0/8"), path)
    with pytest.raises(CommandFailed, match="trusted_networks"):
        check(config("0.0.0.0"), path)
    with pytest.raises(CommandFailed, match="no machine of 192"):
        check(config("127.0.0.1", LAN), path)
