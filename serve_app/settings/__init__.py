"""What runs: the `args:` of serve_config.yaml, typed. How many and where stands in `deployments:`.

Nothing is read from the environment here; secrets (HF_TOKEN) are read where they are used.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from serve_app.settings.access import AccessSettings
from serve_app.settings.asr import AsrSettings as AsrSettings
from serve_app.settings.asr import ModelSettings, refuse_wrong_names
from serve_app.settings.jobs import JobsSettings
from serve_app.settings.openai import OpenAISettings
from serve_app.settings.types import (
    GPU_SHARE,
    THREADS,
    ComputeType,
    Host,
    Probability,
    Seconds,
    Share,
    Strict,
    Threads,
)

MAX_DEFAULT_THREADS = 8  # of a replica that is not told otherwise; these models gain little beyond


class SpeechSettings(Strict):
    """Voice activity detection: where the speech is."""

    method: Literal["pyannote", "silero"] = Field(
        "pyannote", description="pyannote: whisperx's default. silero: 25 times cheaper on a CPU, less exact."
    )
    onset: Probability = Field(0.500, description="Speech starts above this probability.")
    offset: Probability = Field(0.363, description="Speech ends below this probability.")
    step_s: float = Field(
        0.5, gt=0, le=5, description="Hop of pyannote's 5 s window. 0.5: whisperx's; 1: half the cost."
    )
    threads: Threads = Field(None, description="Empty: half of the cores, at most 4; 1 beside a GPU.")
    gpu_share: float = Field(0.0, ge=0, le=1, description=f"{GPU_SHARE} 0: it runs on the CPU.")


class AlignmentSettings(Strict):
    """Text to word times: by each language's wav2vec2, or by Whisper's own attention."""

    method: Literal["auto", "wav2vec2", "attention", "off"] = Field(
        "auto",
        description="wav2vec2: a model for each language, as whisperx. attention: Whisper's own, for every "
        "language. auto: wav2vec2 where its model can be had, else attention. off: no word times.",
    )
    models: dict[str, str] = Field(
        default_factory=dict,
        description="Language code to model (hub name, torchaudio bundle, directory). Else: whisperx's.",
    )
    preload: tuple[str, ...] = Field(("en",), description="Languages whose models are loaded at start.")
    max_loaded_languages: int = Field(3, ge=1, description="Languages whose models stay in memory.")
    max_padded_s: float | None = Field(
        None,
        ge=0,
        description="Seconds of audio, padding included, that the model takes at once. 0: one window at a "
        "time. Empty: 60 on a GPU, 0 on a CPU, where that is faster.",
    )
    compute_type: ComputeType = Field(
        "auto",
        description="auto: float16 on a GPU, float32 on a CPU. In half precision a word may start a frame "
        "(20 ms) away from where whisperx has it.",
    )
    threads: Threads = Field(None, description=THREADS)
    gpu_share: Share = Field(0.2, description=GPU_SHARE)


class DiarizationSettings(Strict):
    """pyannote: who speaks when."""

    model: str = Field(
        "auto",
        description="auto: community-1 where HF_TOKEN is set, else campplus. Or: off, a name, a directory.",
    )
    batch_windows: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Windows at once. Empty: 16 on a GPU, what is fastest on a CPU. Halved out of memory.",
    )
    known_speaker_threshold: float | None = Field(
        None,
        gt=0,
        le=2,
        description="Cosine distance below which voices are the same. Empty: 0.55 for campplus, else 0.5.",
    )
    compute_type: ComputeType = Field(
        "auto",
        description="auto: float16 on a GPU, float32 on a CPU. In half precision turns may differ a little.",
    )
    threads: Threads = Field(None, description=THREADS)
    gpu_share: Share = Field(0.3, description=GPU_SHARE)


class IntakeSettings(Strict):
    """Limits on what comes in."""

    max_bytes: int = Field(1 << 30, gt=0, description="Largest upload or fetched file, in bytes.")
    max_json_bytes: int = Field(
        64 << 20, gt=0, description="Largest JSON body, in bytes; send larger files as multipart or by URL."
    )
    max_audio_s: Seconds = Field(4 * 3600, description="Longest audio, in decoded seconds.")
    receive_timeout_s: Seconds = Field(600, description="Longest time to receive a request's body.")
    fetch_timeout_s: Seconds = Field(300, description="Longest time to fetch an audio URL.")
    decode_timeout_s: Seconds = Field(600, description="Longest time to decode one file.")
    audio_in_flight_s: Seconds = Field(
        24 * 3600,
        description="Most audio, in seconds, of all running requests of one Ingress, or jobs of one "
        "JobRunner (32 kB of memory per second). Beyond it new requests get 503, and jobs wait. A tenth is "
        "reserved for files of up to ten minutes.",
    )
    allowed_hosts: tuple[Host, ...] = Field(
        (), description="host or host:port that may be fetched although private or on an unusual port."
    )


class PlacementSettings(Strict):
    """On which nodes replicas run, by the nodes' labels (`ray start --labels`, KubeRay's `labels`)."""

    cpu: dict[str, str] = Field(
        {}, description="Labels of the nodes for replicas that book no part of a GPU. Empty: any node."
    )
    gpu: dict[str, str] = Field(
        {}, description="Labels of the nodes for replicas that book part of a GPU. Empty: any with a GPU."
    )


class Settings(Strict):
    """The builder's argument: `args:` in serve_config.yaml."""

    model: str = Field(
        "large-v2", description="Whisper model: a name (tiny ... large-v3-turbo), hub repository, directory."
    )
    models: dict[str, ModelSettings] = Field(
        default_factory=dict,
        description="More Whisper models, which requests choose by their names as `model`: for each what it "
        "loads (`model`; empty: its name) and what it has unlike `asr`, such as `small: {beam_size: 1}` or "
        "`english: {model: tiny.en, gpu_share: 0.1}`. Each is a deployment: Transcriber-small.",
    )
    models_dir: Annotated[str, Field(pattern="^[/~]")] | None = Field(
        None, description="Folder of models on each node. Empty: $MODELS_DIR, else ~/.cache/whisperx-serve."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto: GPUs where the cluster has any, or may start nodes with them; else CPUs."
    )
    request_timeout_s: Seconds = Field(3600, description="Longest time of a request; then it fails with 504.")
    call_timeout_s: Seconds = Field(
        120,
        description="A model call that lasts longer, plus the next for each second of its audio, counts as "
        "hung: its replica is replaced and the call is made again.",
    )
    call_timeout_per_audio_s: float | None = Field(None, ge=0, description="Empty: 1 on a GPU, 20 on a CPU.")
    windows_in_flight: int = Field(
        192,
        ge=1,
        description="Windows of all requests of one Ingress, or jobs of one JobRunner, that wait for a model "
        "or run; at least three batches for each GPU: 192 is enough for four GPUs with batches of 16.",
    )
    requests_in_flight: int = Field(256, ge=1, description="Requests of one Ingress at once; more get 503.")
    asr: AsrSettings = AsrSettings()
    speech: SpeechSettings = SpeechSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    diarization: DiarizationSettings = DiarizationSettings()
    placement: PlacementSettings = PlacementSettings()
    intake: IntakeSettings = IntakeSettings()
    access: AccessSettings = AccessSettings()
    openai: OpenAISettings = OpenAISettings()
    jobs: JobsSettings = JobsSettings()

    @field_validator("models", mode="before")
    @classmethod
    def _may_be_empty(cls, models: object) -> object:
        """A name with nothing behind it is a model with the settings of `asr`."""
        return {name: given or {} for name, given in models.items()} if isinstance(models, dict) else models

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        refuse_wrong_names(self.model, self.models)
        self.openai.refuse_unknown_models((self.model, *self.models))
        if self.speech.offset > self.speech.onset:
            raise ValueError("speech.offset must not be above speech.onset")
        if self.speech.method == "silero" and {"gpu_share", "step_s"} & self.speech.model_fields_set:
            raise ValueError("speech.gpu_share and speech.step_s are for pyannote, not for silero")
        method, others = self.alignment.method, self.alignment.model_fields_set - {"method"}
        if method in ("attention", "off") and others:
            raise ValueError(f"alignment.{min(others)} is for wav2vec2, not for method: {method}")
        if len(self.alignment.preload) > self.alignment.max_loaded_languages:
            raise ValueError("alignment.preload has more languages than alignment.max_loaded_languages")
        return self

    def asr_of(self, name: str) -> AsrSettings:
        """The settings of one of the models."""
        return self.models[name].over(self.asr) if name in self.models else self.asr

    def model_of(self, name: str) -> str:
        """What one of the models loads."""
        return (self.models[name].model if name in self.models else "") or name
