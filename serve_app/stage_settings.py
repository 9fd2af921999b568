"""What each stage's model is and computes with: the parts of `args:` that belong to one stage."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Threads = Annotated[int | None, Field(ge=1)]  # None: every core, at most 8, on a CPU, and one beside a GPU
ComputeType = Literal["auto", "float32", "float16", "bfloat16"]  # torch's; CTranslate2 has more


class Strict(BaseModel):
    """Names every key that it does not know."""

    # What stands in the file is not repeated in errors: it might be a key where its hash belongs.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class AsrSettings(Strict):
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


class SpeechSettings(Strict):
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


class AlignmentSettings(Strict):
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
    compute_type: ComputeType = Field(
        "auto",
        description="auto = float16 on a GPU, float32 on a CPU. In half precision a word "
        "may start a frame (20 ms) away from where whisperx has it.",
    )
    threads: Threads = Field(
        None, description="CPU threads of one replica; empty = all cores, at most 8; one beside a GPU."
    )
    gpu_share: Share = Field(0.2, description="Part of a GPU that one replica books.")


class DiarizationSettings(Strict):
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
    compute_type: ComputeType = Field(
        "auto",
        description="auto = float16 on a GPU for pyannote's WeSpeaker embeddings and the "
        "bundled one, else float32. In half precision turns may differ from pyannote's where a voice is in "
        "doubt.",
    )
    threads: Threads = Field(
        None, description="CPU threads of one replica; empty = all cores, at most 8; one beside a GPU."
    )
    gpu_share: Share = Field(0.3, description="Part of a GPU that one replica books.")
