"""URLs of callers and of redirects: the host as it is checked and connected to, the rest as it was given.

Whoever signed a URL signed its bytes, so nothing that HTTP can carry is decoded, encoded or tidied up. A
`URL` from here has the whole target in its path, query included: yarl would drop an empty query.
"""

import re
from urllib.parse import quote

from yarl import URL

MAX_CHARACTERS = 8_192

_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*:"
_URL = re.compile(f"({_SCHEME}//)([^/?#]+)([^#]*)(?:#.*)?", re.DOTALL)
_NOT_IN_AN_AUTHORITY = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_NOT_IN_A_TARGET = re.compile(r"[\x00-\x1f\x7f]|^[^?]*\\")  # some clients take a backslash for a slash
_LONE_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
_LEGAL = "!$%&'()*+,/:;=?@[]"  # as are letters, digits and _.-~


def parse(url: str) -> URL:
    """The address of a whole URL, without its fragment. Raises ValueError if it is none."""
    parts = _URL.fullmatch(url.strip(" \t\r\n"))
    if not parts or len(url) > MAX_CHARACTERS:
        raise ValueError("no whole URL")
    scheme, authority, target = parts.groups()
    if _NOT_IN_AN_AUTHORITY.search(authority) or _NOT_IN_A_TARGET.search(target):
        raise ValueError("characters that a URL cannot have")
    site = URL(scheme + authority)  # ends where ours does, since there is no / ? # in it
    if not site.host:
        raise ValueError("no host")
    # A redirect's bytes that are no UTF-8 come as surrogates.
    path = quote(_LONE_PERCENT.sub("%25", target), safe=_LEGAL, errors="surrogateescape")
    return URL.build(
        scheme=site.scheme,
        user=site.raw_user,
        password=site.raw_password,
        host=site.host_subcomponent or "",
        port=site.port,
        path=path if path.startswith("/") else f"/{path}",
        encoded=True,
    )


def resolve(base: URL, location: str) -> URL:
    """The address that a redirect from `base` leads to. Raises ValueError if it is none."""
    location = location.partition("#")[0]
    if not location:
        return base
    if location.startswith("//"):
        return parse(f"{base.scheme}:{location}")
    if re.match(_SCHEME, location):
        return parse(location)
    base_path = base.raw_path.partition("?")[0]
    path, mark, query = location.partition("?")
    if not path:
        path = base_path
    elif not path.startswith("/"):
        path = _without_dots(f"{base_path.rpartition('/')[0]}/{path}")
    return parse(f"{base.origin()}{path}{mark}{query}")


def without_secrets(address: URL) -> str:
    """The address as messages may show it: query and user often hold secrets."""
    return f"{address.origin()}{address.raw_path.partition('?')[0]}"[:200]


def _without_dots(path: str) -> str:
    """An absolute path without the segments . and .. (RFC 3986, 5.2.4)."""
    first, *segments = path.split("/")
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join([first, *kept])
