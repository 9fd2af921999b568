"""Who may ask: API keys with their limits, networks, and web pages of other origins."""

from typing import Self

from pydantic import Field, model_validator

from serve_app.settings.types import Network, Origin, Seconds, Strict


class ApiKey(Strict):
    """A client. The key itself stands nowhere; `whisperx-serve key NAME` makes one."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")  # shown in logs
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the key, in hex
    max_requests: int | None = Field(None, ge=1)  # at once
    max_audio_s_per_minute: Seconds | None = None


class AccessSettings(Strict):
    """Who may ask."""

    keys: tuple[ApiKey, ...] = Field(
        (),
        description="API keys: name, sha256, and if you like max_requests (at once) and "
        "max_audio_s_per_minute, both per Ingress replica; jobs have as much audio again per JobRunner.",
    )
    public_without_keys: bool = Field(False, description="Without keys, answer other machines too.")
    trusted_networks: tuple[Network, ...] = Field(
        (),
        description="Networks whose clients need no key, such as 192.168.1.0/24. Do not name a proxy's "
        "address: a proxy that sends no header about its client would let in all of its clients.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (), description="Web pages of these origins may use the API; * for all of them needs keys."
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for values in ({key.name for key in self.keys}, {key.sha256 for key in self.keys}):
            if len(values) < len(self.keys):
                raise ValueError("access.keys: each key needs a name and a sha256 of its own")
        if "*" in self.cors_origins and not self.keys:
            raise ValueError("access.cors_origins: * would let every web page in, so it needs access.keys")
        if self.trusted_networks and self.public_without_keys and not self.keys:
            raise ValueError("access.trusted_networks: public_without_keys lets everybody in; leave one out")
        return self
