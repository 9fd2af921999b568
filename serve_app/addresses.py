"""Hosts and origins as a config file names them."""

import re
from typing import Annotated

from pydantic import AfterValidator


def _host(entry: str) -> str:
    host_and_port = r"([^\s/\\*?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
    ipv6 = r"[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*"
    if not re.fullmatch(f"{host_and_port}|{ipv6}", entry):
        raise ValueError("write one host or host:port, such as media.internal:9000, without a scheme or *")
    return entry


def _origin(entry: str) -> str:
    if entry != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\sA-Z/\\*?#@]+", entry):
        raise ValueError(
            "write an origin as browsers send it, in lower case and without a path or a slash at its end, "
            "such as https://example.com"
        )
    return entry


Host = Annotated[str, AfterValidator(_host)]
Origin = Annotated[str, AfterValidator(_origin)]
