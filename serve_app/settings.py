"""What runs: the `args:` of serve_config.yaml, typed. How many and where stands in `deployments:`.

Nothing is read from the environment here; secrets (HF_TOKEN) are read where they are used.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from serve_app.addresses import Host, Origin
from serve_app.stage_settings import (
    AlignmentSettings,
    AsrSettings,
    DiarizationSettings,
    SpeechSettings,
    Strict,
)

Seconds = Annotated[float, Field(gt=0, le=1e9)]
MOST_THREADS = 8  # of a replica that is not told otherwise; these models gain little beyond


class IntakeSettings(Strict):
    """Limits on what comes in."""

    max_bytes: int = Field(1 << 30, gt=0, description="Largest upload or fetched file, in bytes.")
    max_json_bytes: int = Field(
        64 << 20,
        gt=0,
        description="Largest JSON body in bytes; larger files are sent as multipart or fetched from a URL.",
    )
    max_audio_s: Seconds = Field(4 * 3600, description="Longest audio, in decoded seconds.")
    receive_timeout_s: Seconds = Field(600, description="Longest time to receive a request's body.")
    fetch_timeout_s: Seconds = Field(300, description="Longest time to fetch an audio URL.")
    decode_timeout_s: Seconds = Field(600, description="Longest time to decode one file.")
    audio_in_flight_s: Seconds = Field(
        24 * 3600,
        description="Seconds of decoded audio of running requests, 32 kB each, from which on more are "
        "answered 503; files over ten minutes take nine tenths of it at most.",
    )
    allowed_hosts: tuple[Host, ...] = Field(
        (),
        description="host or host:port that may be fetched although private or on an unusual port.",
    )


class ApiKey(Strict):
    """A client. The key itself stands nowhere; `python -m serve_app key NAME` makes one."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")  # shown in logs
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the key, in hex
    max_requests: int | None = Field(None, ge=1)  # at once
    max_audio_s_per_minute: Seconds | None = None


class AccessSettings(Strict):
    """Who may ask."""

    keys: tuple[ApiKey, ...] = Field(
        (),
        description="API keys, each with name and sha256, and if you like max_requests (at once) and "
        "max_audio_s_per_minute.",
    )
    public_without_keys: bool = Field(
        False, description="Without keys, answer other machines too, not only this one."
    )
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="Web pages of these origins may use the API, such as https://example.com; "
        "with keys also *, all of them.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> "AccessSettings":
        for one_of in ({key.name for key in self.keys}, {key.sha256 for key in self.keys}):
            if len(one_of) < len(self.keys):
                raise ValueError("access.keys: each key needs a name and a sha256 of its own")
        if "*" in self.cors_origins and not self.keys:
            raise ValueError("access.cors_origins: * would let every web page in, so it needs access.keys")
        return self


class Settings(Strict):
    """The builder's argument: `args:` in serve_config.yaml."""

    model: str = Field(
        "large-v2",
        description="Whisper model: bundled, a name (tiny ... large-v3-turbo), hub repository, directory.",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto = GPUs where the cluster has any, else CPU."
    )
    request_timeout_s: Seconds = Field(
        3600,
        description="A request that takes longer is answered 504; one that by the pace of the last minutes "
        "would, beside what is held, 503.",
    )
    call_timeout_s: Seconds = Field(
        120,
        description="A model call that lasts longer than this and the next together is taken for hung: its "
        "replica is replaced, its calls are made again.",
    )
    call_timeout_per_audio_s: float | None = Field(
        None, ge=0, description="Seconds for each second of audio in it; empty = 1 on a GPU, 20 on a CPU."
    )
    cpu_when_gpu_is_full: bool = Field(
        False,
        description="What finds too little GPU memory again and again, even alone, is computed on CPUs, by "
        "replicas (TranscriberOnCpu, AlignerOnCpu, DiarizerOnCpu) that are started for it, with a CPU's "
        "threads and batches.",
    )
    windows_in_flight: int = Field(
        192,
        ge=1,
        description="Windows of all requests of one Ingress that wait for a model or run, at once; at least "
        "three batches for each GPU: 192 is enough for four GPUs with batches of 16.",
    )
    requests_in_flight: int = Field(
        256, ge=1, description="Requests received and worked on at once; more are answered 503."
    )
    asr: AsrSettings = AsrSettings()
    speech: SpeechSettings = SpeechSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    diarization: DiarizationSettings = DiarizationSettings()
    intake: IntakeSettings = IntakeSettings()
    access: AccessSettings = AccessSettings()

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        if self.speech.offset > self.speech.onset:
            raise ValueError("speech.offset must not be above speech.onset")
        if self.speech.method == "silero" and {"gpu_share", "step_s"} & self.speech.model_fields_set:
            raise ValueError("speech.gpu_share and speech.step_s are for pyannote, not for silero")
        if self.cpu_when_gpu_is_full and self.device == "cpu":
            raise ValueError("cpu_when_gpu_is_full needs a GPU; leave it out, or device: cpu")
        if len(self.alignment.preload) > self.alignment.max_loaded_languages:
            raise ValueError("alignment.preload has more languages than alignment.max_loaded_languages")
        return self
