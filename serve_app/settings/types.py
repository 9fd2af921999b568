"""What settings are made of: a model that refuses unknown keys, and fields with bounds."""

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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


def _network(entry: str) -> str:
    try:
        network = ipaddress.ip_network(entry)
    except ValueError:
        raise ValueError(
            "write a network as its first address and the bits that all its addresses share, such as "
            "192.168.1.0/24, or one address"
        ) from None
    if network.prefixlen < (8 if network.version == 4 else 7):
        raise ValueError(
            "this is much of the internet; name smaller networks, or, to let everybody in, set "
            "access.public_without_keys"
        )
    if network.is_multicast or network.network_address in ipaddress.ip_network("::ffff:0:0/96"):
        raise ValueError("no client has such an address; write those of IPv4 as 192.168.1.0/24")
    return str(network)


Seconds = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Threads = Annotated[int | None, Field(ge=1)]
ComputeType = Literal["auto", "float32", "float16", "bfloat16"]  # torch's; CTranslate2 has more

THREADS = "CPU threads of one replica. Empty: all cores, at most 8; 1 beside a GPU."
GPU_SHARE = "Part of a GPU that one replica books."

# As operators write them into lists of what is allowed.
Host = Annotated[str, AfterValidator(_host)]
Origin = Annotated[str, AfterValidator(_origin)]
Network = Annotated[str, AfterValidator(_network)]


class Strict(BaseModel):
    """Refuses unknown keys by name."""

    # Errors do not repeat what stands in the file: it might be a key where its hash belongs.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)
