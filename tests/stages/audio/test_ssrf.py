"""Attacks through an audio URL on what only the server can reach: no connection, and a typed 4xx.

A canary listens on loopback and would answer. That it can be reached is part of the tests: a plain
client gets there by each notation, and so does a fetch from a host that the operator opened.
"""

import asyncio
import re
import socket

import httpx
import pytest
from aiohttp import web
from loopback import Canary, Served, failure, fetched, raw_serving, resolving, serving

from serve_app.errors import TranscriptionError
from serve_app.stages.audio import fetch as module
from serve_app.stages.audio import ssrf
from serve_app.stages.audio.ssrf import is_public

BLOCKED = {"blocked_address", "bad_address", "dns_failure"}  # the client refuses some notations by itself

LOOPBACK = """
127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.1 0x7f.0.0.0x1 0177.0.0.1 0177.1 017700000001
127.000.000.001 0 0.0.0.0 0x0 localhost LOCALHOST １２７.０.０.１ 127。0。0。1 ①②⑦.⓪.⓪.① ⓛocalhost
::1 0:0:0:0:0:0:0:1 0::0:1 :: ::ffff:127.0.0.1 ::ffff:7f00:1 0:0:0:0:0:ffff:7f00:0001
"""

# Names of all kinds, here pointed at loopback.
NAMES = """
localhost. x.localhost localhost.localdomain metadata.google.internal 127.0.0.1.nip.io rebind.example
xn--bcher-kva.example a_b.example
"""

# Where no canary can stand: the machine must not even try.
PRIVATE = """
127.8.8.8 10.0.0.1 172.16.0.1 192.168.0.1 169.254.169.254 169.254.170.2 100.64.0.1 100.100.100.200
168.63.129.16 192.0.0.192 192.0.2.1 198.18.0.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
::127.0.0.1 ::ffff:0:127.0.0.1 ::ffff:169.254.169.254 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe
64:ff9b:1::7f00:1 2002:7f00:1:: 2002:a9fe:a9fe::1 2001:0:4136:e378:8000:63bf:80ff:fffe
2606:4700::5efe:127.0.0.1 2606:4700::200:5efe:a00:1 fe80::5efe:127.0.0.1 fc00::1 fd00:ec2::254
fd20:ce::254 fe80::1 fe80::1%25lo fe80::1%251 2606:4700::1%25a%25b fec0::1 ff02::1 ff0e::1 100::1
2001:db8::1 5f00::1
"""

NOT_HTTP = """
file:///etc/passwd file://127.0.0.1/etc/passwd FILE:///etc/passwd ftp://127.0.0.1:{port}/x
sftp://127.0.0.1:{port}/x gopher://127.0.0.1:{port}/_GET%20/
dict://127.0.0.1:{port}/x ldap://127.0.0.1:{port}/ tftp://127.0.0.1:{port}/x
ws://127.0.0.1:{port}/ unix:///var/run/docker.sock http+unix://%2Fvar%2Frun%2Fdocker.sock/x
data:audio/wav;base64,AAAA jar:http://127.0.0.1:{port}!/x view-source:http://127.0.0.1:{port}/
javascript:alert(1) concat:http://127.0.0.1:{port}/ http:127.0.0.1:{port} http:/127.0.0.1:{port}/
http:///127.0.0.1:{port}/ //127.0.0.1:{port}/ 127.0.0.1:{port}/
"""

CONFUSING = [
    "http://user:secret@127.0.0.1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://example.com:80@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}%2f@127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://127.0.0.1:{port} @example.com/",
    "http://127.0.0.1:{port}/\r\nHost: internal",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1:{port}:80/",
    "http://[127.0.0.1]:{port}/",
    "http://[::1:{port}/",
    "http://127.0.0.1:{port}\ud800/",
    "http://127.0.0.1:{port}/\ud800",
    "http:\\\\127.0.0.1:{port}/",
    "http:/\\127.0.0.1:{port}/",
    "\\\\127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/a\\..\\b",
    "ht\ttp://127.0.0.1:{port}/",
    "http:\n//127.0.0.1:{port}/",
    "http://127.0.0.1:\n{port}/",
    "http://127.0.0.1:{port}/a\tb?c\nd",
    "http://example.com\0.127.0.0.1:{port}/",
    "http://example.com＠127.0.0.1:{port}/",
    "http://example.com／@127.0.0.1:{port}/",
    "http://127.0.0.1：{port}/",
    "http://127.0.0.1:{port}？@example.com/",
    "http://127.0.0.1:{port}\u2100@example.com/",
    "http://127.0.0.1\u200b:{port}/",
    "http://[::1]127.0.0.1:{port}/",
    "http://127.0.0.1[::1]:{port}/",
    "http://:{port}/",
    "http://example.com:secret@:{port}/",
]

# Some clients take another host from these than the first.
FIRST_HOST = [
    "http://first.example:80#@127.0.0.1:{port}/",
    "http://first.example?@127.0.0.1:{port}/",
    "http://first.example/@127.0.0.1:{port}/",
    "http://first.example#127.0.0.1:{port}/",
    "http://first.example//127.0.0.1:{port}/",
    "http://first.example/..//127.0.0.1:{port}/",
    "http://first.example/?http://127.0.0.1:{port}/",
    "http://@first.example/",
    " http://first.example/ ",
    "HTTP://FIRST.example:080/",
]

REDIRECTS = {
    "http://127.0.0.1:{port}/": BLOCKED,
    "//127.0.0.1:{port}/": BLOCKED,
    "http://localhost:{port}/": BLOCKED,
    "http://2130706433:{port}/": BLOCKED,
    "http://0.0.0.0:{port}/": BLOCKED,
    "http://[::ffff:127.0.0.1]:{port}/": BLOCKED,
    "http://[::1]:{port}/": BLOCKED,
    "http://１２７.０.０.１:{port}/": BLOCKED | {"bad_redirect"},
    "http://169.254.169.254/latest/meta-data/": {"blocked_address"},
    "http://[fd00:ec2::254]/": {"blocked_address"},
    "http://[2606:4700::1%25a%25b]/": {"blocked_address"},
    "http://user:secret@127.0.0.1:{port}/": {"bad_redirect"},
    "https://127.0.0.1:6379/": {"bad_redirect"},
    "file:///etc/passwd": {"bad_redirect"},
    "ftp://127.0.0.1:{port}/": {"bad_redirect"},
    "gopher://127.0.0.1:{port}/_x": {"bad_redirect"},
    "data:audio/wav;base64,AAAA": {"bad_redirect"},
    "http:\\\\127.0.0.1:{port}/": {"bad_redirect"},
    "\\\\127.0.0.1:{port}/": {"bad_redirect"},
    "/\\127.0.0.1:{port}/": {"bad_redirect"},
    "/\t/127.0.0.1:{port}/": {"bad_redirect"},
    "///127.0.0.1:{port}/": {"bad_redirect"},
    "http:127.0.0.1:{port}/": {"bad_redirect"},
    "http:/127.0.0.1:{port}/": {"bad_redirect"},
    "http:///127.0.0.1:{port}/": {"bad_redirect"},
    "http://first.example\\@127.0.0.1:{port}/": {"bad_redirect"},
    "http://first.example @127.0.0.1:{port}/": {"bad_redirect"},
    "//secret@127.0.0.1:{port}/": {"bad_redirect"},
}


def in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def plain_client_reaches(host: str, port: int) -> bool:
    """Whether an unguarded client gets there by this notation on this machine."""
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while connection.recv(1_024):
                pass
    except OSError:
        return False
    return True


async def reached(canary: Canary, host: str) -> bool:
    """The same, and counted by the canary, which then starts again from zero."""
    does = await asyncio.to_thread(plain_client_reaches, host, canary.port)
    assert canary.hits == does
    canary.hits = 0
    return does


async def attack(url: str, monkeypatch: pytest.MonkeyPatch, *, live_host: str = "") -> TranscriptionError:
    """The error of fetching `url`, whose `{port}` is the canary's and an ordinary port; it was not hit."""
    async with Canary() as canary:
        if live_host and not await reached(canary, live_host):
            pytest.skip(f"{live_host} does not lead to this machine")
        monkeypatch.setattr(module, "PORTS", frozenset({80, 443, canary.port}))
        error = await failure(url.format(port=canary.port), allowed_hosts=())
        assert canary.hits == 0
    assert error.param == "audio_file"
    assert "secret" not in error.message
    return error


@pytest.mark.parametrize("host", LOOPBACK.split())
def test_loopback_in_every_notation(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notation by which any other client reaches the canary is a 424 here, without a connection."""
    error = asyncio.run(attack(f"http://{in_url(host)}:{{port}}/", monkeypatch, live_host=host))
    assert (error.status, error.code in BLOCKED) == (424, True)


@pytest.mark.parametrize("host", NAMES.split())
def test_names_that_lead_inside(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name looks like does not matter, only where it leads."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving({host: [["127.0.0.1"]]}))
    error = asyncio.run(attack(f"http://{host}:{{port}}/", monkeypatch, live_host=host))
    assert (error.status, error.code) == (424, "blocked_address")


@pytest.mark.parametrize("host", PRIVATE.split())
def test_addresses_inside(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private, local, reserved, multicast and metadata addresses, wrapped in IPv6 too: not even tried."""
    error = asyncio.run(attack(f"http://{in_url(host)}/", monkeypatch))
    assert (error.status, error.code) == (424, "blocked_address")


@pytest.mark.parametrize("url", NOT_HTTP.split() + CONFUSING)
def test_urls_that_are_not_plain_http(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other schemes, and URLs that two parsers read differently, are the caller's mistake."""
    error = asyncio.run(attack(url, monkeypatch))
    assert (error.status, error.code) == (400, "invalid_request")


@pytest.mark.parametrize("url", FIRST_HOST)
def test_the_host_is_what_stands_before_the_path(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that is checked is the one that is looked up and connected to; what follows it names none."""
    looked_up: list[str] = []

    def getaddrinfo(host: str, port: int, *args: object, **kwargs: object) -> object:
        looked_up.append(f"{host}:{port}")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert asyncio.run(attack(url, monkeypatch)).code == "dns_failure"
    assert looked_up == ["first.example:80"]


def test_odd_ports() -> None:
    """Any other port than 80 and 443 is refused before the address is looked at; the canary's is one."""

    async def run() -> list[TranscriptionError]:
        async with Canary() as canary:
            assert await reached(canary, "127.0.0.1")
            ports = [0, 1, 22, 25, 53, 2375, 5432, 6379, 8000, 8265, 9200, 11211, 65535, canary.port]
            errors = [await failure(f"http://127.0.0.1:{port}/", allowed_hosts=()) for port in ports]
            assert canary.hits == 0
            return errors

    for error in asyncio.run(run()):
        assert (error.status, error.code) == (400, "invalid_request")
        assert "port" in error.message


@pytest.mark.parametrize(
    ("status", "location"),
    [
        *((302, location) for location in REDIRECTS),
        *((status, "//127.0.0.1:{port}/") for status in (301, 303, 307, 308)),
    ],
)
def test_redirects_inside(status: int, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that may be fetched cannot lead us to one that may not."""

    async def run() -> TranscriptionError:
        async with Canary() as canary:
            monkeypatch.setattr(module, "PORTS", frozenset({80, 443, canary.port}))
            to = location.format(port=canary.port).encode()
            head = b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, to)
            async with raw_serving(head) as first:
                error = await failure(f"http://127.0.0.1:{first}/", allowed_hosts=(f"127.0.0.1:{first}",))
            assert canary.hits == 0
            return error

    error = asyncio.run(run())
    assert error.status == 424
    assert error.code in REDIRECTS[location]
    assert "secret" not in error.message


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of this machine that counts as one of the public internet."""
    monkeypatch.setattr(ssrf, "is_public", lambda address: address == "127.0.0.2" or is_public(address))
    return "127.0.0.2"


def test_a_name_that_resolves_differently_for_a_redirect(
    outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer was public and redirects to its own name, which is loopback by then."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving({"rebind.example": [[outside], ["127.0.0.1"]]}))
    requests: list[web.Request] = []

    async def run() -> TranscriptionError:
        async with Canary() as canary:
            monkeypatch.setattr(module, "PORTS", frozenset({canary.port}))

            async def again(request: web.Request) -> web.StreamResponse:
                requests.append(request)
                raise web.HTTPFound("/again")

            async with serving(again, outside, canary.port):
                error = await failure(f"http://rebind.example:{canary.port}/", allowed_hosts=())
            assert canary.hits == 0
            return error

    assert asyncio.run(run()).code == "blocked_address"
    assert len(requests) == 1


def test_a_name_that_resolves_differently_for_a_retry(outside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed without an answer is tried again, and checked again."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving({"rebind.example": [[outside], ["127.0.0.1"]]}))
    connections = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async def run() -> TranscriptionError:
        async with Canary() as canary:
            monkeypatch.setattr(module, "PORTS", frozenset({canary.port}))
            server = await asyncio.start_server(hang_up, outside, canary.port)
            async with server:
                error = await failure(f"http://rebind.example:{canary.port}/", allowed_hosts=())
            assert canary.hits == 0
            return error

    assert asyncio.run(run()).code in ("blocked_address", "connection_failed")  # if it is tried again at all
    assert connections == 1


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1", "127.0.0.2"],
        ["127.0.0.2", "127.0.0.1"],
        ["127.0.0.2", "::1", "127.0.0.1"],
        ["::1", "127.0.0.2", "::ffff:127.0.0.1"],
        ["169.254.169.254", "10.0.0.1", "127.0.0.1"],
    ],
    ids=str,
)
@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
def test_private_addresses_among_public_ones(
    addresses: list[str], is_up: bool, outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a name's addresses only public ones are tried, in whatever order and whether or not they answer."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving({"mixed.example": [addresses]}))

    async def ours(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"public")

    async def run() -> bytes | TranscriptionError:
        async with Canary() as canary:
            url = f"http://mixed.example:{canary.port}/"
            monkeypatch.setattr(module, "PORTS", frozenset({canary.port}))
            if is_up and outside in addresses:
                async with serving(ours, outside, canary.port):
                    answer: bytes | TranscriptionError = await fetched(url, allowed_hosts=())
            else:
                answer = await failure(url, allowed_hosts=())
            assert canary.hits == 0
            return answer

    answer = asyncio.run(run())
    if isinstance(answer, TranscriptionError):
        assert (answer.status, answer.code in ("blocked_address", "connection_failed")) == (424, True)
    else:
        assert answer == b"public"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
@pytest.mark.parametrize("with_port", [True, False])
def test_a_host_that_the_operator_opened_is_reached(host: str, with_port: bool) -> None:
    """intake.allowed_hosts opens exactly that host; the canary can be reached by a fetch."""

    async def run() -> tuple[bytes, int]:
        async with Canary() as canary:
            if not await reached(canary, host):
                pytest.skip(f"{host} does not lead to this machine")
            opened = in_url(host) + (f":{canary.port}" if with_port else "")
            url = f"http://{in_url(host)}:{canary.port}/"
            return await fetched(url, allowed_hosts=(opened,)), canary.hits

    assert asyncio.run(run()) == (b"secret", 1)


def test_opening_one_host_opens_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not another port, another name of the same machine, nor one that only ends alike."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving({"not-media.example": [["127.0.0.1"]]}))

    async def run() -> list[TranscriptionError]:
        async with Canary() as canary:
            opened = ("media.example", "127.0.0.1:1", f"localhost:{canary.port}")
            monkeypatch.setattr(module, "PORTS", frozenset({canary.port}))
            hosts = ["not-media.example", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"]
            errors = [await failure(f"http://{h}:{canary.port}/", allowed_hosts=opened) for h in hosts]
            assert canary.hits == 0
            return errors

    assert {error.code for error in asyncio.run(run())} == {"blocked_address"}


@pytest.fixture(scope="module")
def served() -> Served:
    """The HTTP surface of a server that opens no host."""
    return Served()


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        *[
            (f"http://{in_url(host)}:{{port}}/a?token=secret#secret", 424, "")
            for host in LOOPBACK.split()[::3]
        ],
        *[(f"http://{in_url(host)}/a?token=secret", 424, "blocked_address") for host in PRIVATE.split()[::4]],
        *[(url, 400, "invalid_request") for url in (NOT_HTTP.split() + CONFUSING[:12])[::2]],
        ("http://127.0.0.1:6379/a?token=secret", 400, "invalid_request"),
    ],
)
def test_attacks_over_http(
    url: str, status: int, code: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a request is a typed 4xx whose sentence shows neither query nor credentials."""

    async def run() -> httpx.Response:
        async with Canary() as canary:
            monkeypatch.setattr(module, "PORTS", frozenset({80, 443, canary.port}))
            response = await served.answer(url.format(port=canary.port))
            assert canary.hits == 0
            return response

    response = asyncio.run(run())
    error = response.json()["error"]
    assert response.status_code == status
    assert error["code"] in ({code} if code else BLOCKED)
    assert error["param"] == "audio_file"
    assert error["type"] == ("source_error" if status == 424 else "invalid_request_error")
    assert re.fullmatch(r"\S.+\.", error["message"])
    assert "secret" not in response.text


def test_an_opened_host_over_http() -> None:
    """The same request reaches the canary once its host is opened."""

    async def run() -> tuple[int, int]:
        async with Canary() as canary:
            served = Served(allowed_hosts=(f"127.0.0.1:{canary.port}",))
            return (await served.answer(f"http://127.0.0.1:{canary.port}/")).status_code, canary.hits

    assert asyncio.run(run()) == (200, 1)
