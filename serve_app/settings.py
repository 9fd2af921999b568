"""What runs: the `args:` of serve_config.yaml, typed. How many and where stands in `deployments:`.

Nothing is read from the environment here; secrets (HF_TOKEN) are read where they are used.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.addresses import Host, Origin

Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]
Probability = Annotated[float, Field(gt=0, lt=1)]
MOST_THREADS = 8  # of a replica that is not told otherwise; these models gain little beyond
Threads = Annotated[int | None, Field(ge=1)]  # None: every core, at most 8, on a CPU, and one beside a GPU


class _Strict(BaseModel):
    # What stands in the file is not repeated in errors: it might be a key where its hash belongs.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class AsrSettings(_Strict):
    """Whisper: windows to text."""

    compute_type: str = Field(
        "auto", description="CTranslate2 type; auto = int8_float16 on a GPU, int8 on a CPU."
    )
    beam_size: int = Field(5, ge=1, le=20, description="Beam width, as whisperx's default.")
    temperature_fallback: tuple[Annotated[float, Field(ge=0.01, le=1)], ...] = Field(
        (0.2, 0.4, 0.6, 0.8, 1.0),
        description="A window whose text repeats itself or is unlikely is decoded again at these "
        "temperatures, one after the other; [] = never, as whisperx.",
    )
    compression_ratio_threshold: float = Field(
        2.4, gt=0, description="Text that zlib makes smaller than one in so many repeats itself."
    )
    log_prob_threshold: float = Field(
        -1.0, le=0, description="Text with less log-probability per token is unlikely."
    )
    no_speech_threshold: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Unlikely text is left out, with a warning, where Whisper says with more than this "
        "probability that nobody speaks; 1 = never, as whisperx.",
    )
    window_s: float | None = Field(
        None,
        gt=0,
        le=30,
        description="Longest window; empty = 30, or what the bundled model was trained for.",
    )
    threads: Threads = Field(
        None,
        description="CPU threads; empty = all cores, at most 8; one beside a GPU. On CPUs two batches share "
        "them, but the encoder of a lone one has all, in a second copy of the weights.",
    )
    gpu_share: Share = Field(0.5, description="Part of a GPU that one replica books.")

    @model_validator(mode="after")
    def _agree(self) -> "AsrSettings":
        if list(self.temperature_fallback) != sorted(set(self.temperature_fallback)):
            raise ValueError("asr.temperature_fallback must rise, such as [0.2, 0.4, 0.6, 0.8, 1.0]")
        return self


class SpeechSettings(_Strict):
    """Voice activity detection: where the speech is."""

    method: Literal["pyannote", "silero"] = Field(
        "pyannote",
        description="pyannote = whisperx's default; silero = 25x cheaper on a CPU, slightly less exact.",
    )
    onset: Probability = Field(0.500, description="Speech starts above this probability.")
    offset: Probability = Field(0.363, description="Speech ends below this probability.")
    step_s: float = Field(
        0.5,
        gt=0,
        le=5,
        description="pyannote looks at 5 s every so many seconds; 0.5 = whisperx, 1 = half the cost.",
    )
    threads: Threads = Field(
        None, description="CPU threads of a replica; empty = half of the cores, at most 4; one beside a GPU."
    )
    gpu_share: float = Field(
        0.0, ge=0, le=1, description="Part of a GPU that one replica books; 0 = on the CPU."
    )


class AlignmentSettings(_Strict):
    """wav2vec2: text to word times."""

    models: dict[str, str] = Field(
        default_factory=dict,
        description="Language code to model (hub name, torchaudio bundle, directory); else whisperx's.",
    )
    preload: tuple[str, ...] = Field(
        ("en",), description="Languages whose models are loaded at start instead of at their first request."
    )
    max_loaded_languages: int = Field(3, ge=1, description="Models of this many languages stay in memory.")
    max_padded_s: float | None = Field(
        None,
        ge=0,
        description="Seconds of audio, padding included, that the model takes at once; 0 = every window "
        "alone; empty = 60 on a GPU, 0 on a CPU, where that is faster.",
    )
    threads: Threads = Field(
        None, description="CPU threads of one replica; empty = all cores, at most 8; one beside a GPU."
    )
    gpu_share: Share = Field(0.2, description="Part of a GPU that one replica books.")


class DiarizationSettings(_Strict):
    """pyannote: who speaks when."""

    model: str = Field(
        "auto",
        description="auto = bundled with a bundled recogniser, community-1 where HF_TOKEN is set, else off; "
        "off, bundled, a hub name or a local directory.",
    )
    batch_windows: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Windows the device takes at once; empty = 16 on a GPU, on a CPU what is fastest. "
        "Out of memory, a replica halves it.",
    )
    known_speaker_threshold: float | None = Field(
        None,
        gt=0,
        le=2,
        description="Cosine distance below which a speaker has a known speaker's voice; empty = 0.3 with "
        "the bundled model, else 0.5.",
    )
    threads: Threads = Field(
        None, description="CPU threads of one replica; empty = all cores, at most 8; one beside a GPU."
    )
    gpu_share: Share = Field(0.3, description="Part of a GPU that one replica books.")


class IntakeSettings(_Strict):
    """Limits on what comes in."""

    max_bytes: int = Field(1 << 30, gt=0, description="Largest upload or fetched file, in bytes.")
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


class ApiKey(_Strict):
    """A client. The key itself stands nowhere; `python -m serve_app key NAME` makes one."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")  # shown in logs
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the key, in hex
    max_requests: int | None = Field(None, ge=1)  # at once
    max_audio_s_per_minute: Seconds | None = None


class AccessSettings(_Strict):
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


class Settings(_Strict):
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
        128, ge=1, description="Windows of one request that wait or run; two batches for each GPU and more."
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
