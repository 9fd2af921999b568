"""What somebody signed is asked for byte by byte, in URLs and redirects, as a raw server hears it."""

import asyncio
import socket

import pytest
from loopback import fetched, resolving

from serve_app.errors import SourceUnavailable
from serve_app.stages.audio import address

FILE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthere"

# Legal, so nobody may change them: each is a signature's input somewhere.
SIGNED = """
/ /a%2Fb.wav /a%2fb.wav /a%7Eb~c.wav /%41.wav /a%20b.wav?x=a%20b /a?x=a+b /a?x=a%2Bb /a%2520b?x=%25 /%E4.wav
/a?b=2&a=1 /a?a=1&a=1 /a?a&b=&=c&&d /a? /? /a?x=1&? /a;v=1/b;?x=1;y=2 /a?; /a?/../b?c
/a/../b /a/./b /a/%2e%2e/b /a/%2E/b /../a /. /.. //a///b// /a//../b
/[a].wav?x[]=1&y[0]=[2] /a:b@c,d/$e!'()* /a?x=:@/?,$!'()* /a?sig=AbC%3d&Expires=1%2C2 /%00%ff?%0d%0a
"""

# Not legal in a request: what must be quoted is, and nothing else.
QUOTED = {
    "/a b.wav?x=c d%20e": "/a%20b.wav?x=c%20d%20e",
    "/böb%2f.wav?x=ß%e4": "/b%C3%B6b%2f.wav?x=%C3%9F%e4",
    "/😀%2F": "/%F0%9F%98%80%2F",
    "/e\N{COMBINING ACUTE ACCENT}": "/e%CC%81",
    "/１％": "/%EF%BC%91%EF%BC%85",
    "/100%.wav?x=5%&y=%2&z=%zz%2f": "/100%25.wav?x=5%25&y=%252&z=%25zz%2f",
    '/{a}|"<b>"^`?{a}|"<b>"^`': "/%7Ba%7D%7C%22%3Cb%3E%22%5E%60?%7Ba%7D%7C%22%3Cb%3E%22%5E%60",
    "/a?x=c:\\d": "/a?x=c:%5Cd",
    "": "/",
    "?x=%2f": "/?x=%2f",
    "?": "/?",
    "/a%2f#b?c": "/a%2f",
    "/a?#": "/a?",
    "#/a": "/",
    " \r\n": "/",
}


def target_of(head: bytes) -> str:
    """What was asked for, of a request whose first line is a well-formed one."""
    method, target, version = head.partition(b"\r\n")[0].split(b" ")
    assert (method, version) == (b"GET", b"HTTP/1.1")
    return target.decode("ascii")


async def asked(target: str, location: bytes | None = None, host: str = "127.0.0.1") -> str:
    """What a server is asked for when `target` follows the host in a URL, in the end.

    With `location`, in which `{port}` is the server's own, it redirects there first.
    """
    heard: list[bytes] = []

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        if location is not None and len(heard) == 1:
            to = location.replace(b"{port}", b"%d" % port)
            writer.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + to + b"\r\n\r\n")
        else:
            writer.write(FILE)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(each, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert await fetched(f"http://{host}:{port}{target}", allowed_hosts=("127.0.0.1", host)) == b"there"
    assert len(heard) == 1 + (location is not None)
    return target_of(heard[-1])


@pytest.mark.parametrize("target", SIGNED.split())
def test_a_url_is_asked_for_as_it_was_given(target: str) -> None:
    """No escape, case, order, empty parameter or dot segment is tidied up."""
    assert asyncio.run(asked(target)) == target


@pytest.mark.parametrize("target", QUOTED)
def test_only_what_must_be_quoted_is(target: str) -> None:
    """Spaces, other alphabets and lone percent signs are quoted; escapes beside them stay as they are."""
    assert asyncio.run(asked(target)) == QUOTED[target]


@pytest.mark.parametrize("target", SIGNED.split())
@pytest.mark.parametrize("before", ["", "//127.0.0.1:{port}", "http://127.0.0.1:{port}"])
def test_a_redirect_is_followed_as_it_was_given(before: str, target: str) -> None:
    """A Location is signed as often as a URL is; only one that starts with // names a host."""
    if before or not target.startswith("//"):
        assert asyncio.run(asked("/first", (before + target).encode())) == target


LOCATIONS = {
    b"/a b?x=c d%2f": "/a%20b?x=c%20d%2f",
    "/böb%2f".encode(): "/b%C3%B6b%2f",
    b"/b\xf6b%2f": "/b%F6b%2f",  # not UTF-8: the bytes are what was signed
    b"/100%.wav": "/100%25.wav",
    b"/a%2f#b": "/a%2f",
    b"HTTP://127.0.0.1:{port}/a%2f#b": "/a%2f",
    b"http://127.0.0.1:{port}": "/",
    b"http://127.0.0.1:{port}?x=%2f": "/?x=%2f",
    # Relative to /one%2F1//two/three;v?x=%2f
    b"?y=%2f": "/one%2F1//two/three;v?y=%2f",
    b"?": "/one%2F1//two/three;v?",
    b"#part": "/one%2F1//two/three;v?x=%2f",
    b"four": "/one%2F1//two/four",
    b"four%2f/%2e%2e/b?": "/one%2F1//two/four%2f/%2e%2e/b?",
    b"./four;": "/one%2F1//two/four;",
    b"../four?x=../%7e": "/one%2F1//four?x=../%7e",
    b"../../four": "/one%2F1/four",
    b"../../../../../four": "/four",
    b".": "/one%2F1//two/",
    b"..": "/one%2F1//",
    b"a:b/c": None,
    b"./a:b": "/one%2F1//two/a:b",
    b"four#/../../x": "/one%2F1//two/four",
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_locations(location: bytes) -> None:
    """Whatever a Location lacks comes from the URL, escapes and doubled slashes included."""
    asked_for = LOCATIONS[location]
    coroutine = asked("/one%2F1//two/three;v?x=%2f", location)
    if asked_for is None:
        with pytest.raises(SourceUnavailable):
            asyncio.run(coroutine)
    else:
        assert asyncio.run(coroutine) == asked_for


def test_a_redirect_from_a_bare_host() -> None:
    """A host without a path has a root to be relative to."""
    assert asyncio.run(asked("", b"a%2fb")) == "/a%2fb"
    assert asyncio.run(asked("?x", b"a%2fb")) == "/a%2fb"


def test_a_default_port_is_no_other_origin() -> None:
    """A redirect to the same host, named with its port or without, is one to the same origin."""
    base = address.parse("https://host:443/a")
    for location in ("/b", "https://host/b", "https://HOST:443/b"):
        assert address.resolve(base, location).origin() == base.origin()
    assert address.resolve(base, "https://host:80/b").origin() != base.origin()


def test_hosts_of_other_alphabets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is looked up and named in its ASCII form, and the target stays as it was."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving({"xn--bcher-kva.example": [["127.0.0.1"]]}))
    assert asyncio.run(asked("/ü%2f", host="Bücher.example")) == "/%C3%BC%2f"
