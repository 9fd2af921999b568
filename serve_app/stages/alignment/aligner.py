"""Window texts to sentences with word times, by each language's wav2vec2 model.

The arithmetic is in forced_alignment, the network in acoustic; here are the models' names, their
languages and the sentence splitter. Importing this module is light: whisperx.alignment (14 s, 0.9 GB),
torch and nltk (8 s) are imported by the functions that load. Nothing but alignment models is ever downloaded.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from serve_app.errors import ModelUnavailable, TranscriptionError
from serve_app.stage_settings import ComputeType
from serve_app.stages.alignment.forced import assemble, blank_token, letter_times, spell
from serve_app.transcript import AlignRequest, Segment, Window

if TYPE_CHECKING:
    from serve_app.stages.alignment.acoustic import AcousticModel

logger = logging.getLogger("ray.serve")

_RETRY_AFTER_S = 60.0  # a model that could not be loaded is not asked for again sooner
_FULL_RETRY_AFTER_S = 1.0  # one that found no room is: whoever asked for it asks again for some seconds

# Without the last dot, as punkt keeps them: English, German, French, Spanish and Portuguese, Italian.
_ABBREVIATIONS = """
adm approx apt assn ave bldg blvd capt cf cmdr co col corp dept dr e.g esp et al etc fig gen gov hon i.e inc
jr lt ltd maj messrs mr mrs ms mt nos p.m a.m ph.d prof pvt rep rev sen sgt sr st u.k u.s vol vs
bzw d.h dipl geb ggf hr inkl nr str u.a usw vgl z.b mlle mme p.ex dra p.ej sra srta dott ecc sig
"""

SentenceSplitter = Callable[[str], Sequence[tuple[int, int]]]


def whole_window(request: AlignRequest) -> tuple[Segment, ...]:
    """What whisperx gives where a text cannot be aligned: the window as one segment, no words."""
    return (Segment(request.start_s, request.end_s, request.text, avg_logprob=request.avg_logprob),)


def load_sentence_splitter(language: str) -> SentenceSplitter:
    """Text -> (first, end) positions of its sentences, by NLTK's punkt.

    With the language's trained data where it is installed (English for languages without any, like
    whisperx), else untrained with a list of abbreviations. Never a download, unlike whisperx.
    """
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktTokenizer
    from whisperx.utils import PUNKT_LANGUAGES

    try:
        tokenizer = PunktTokenizer(PUNKT_LANGUAGES.get(language, "english"))
    except LookupError:
        parameters = PunktParameters()
        parameters.abbrev_types = set(_ABBREVIATIONS.split())
        tokenizer = PunktSentenceTokenizer(parameters)
    return lambda text: list(tokenizer.span_tokenize(text))


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """What aligning one language takes."""

    acoustic: "AcousticModel"
    dictionary: Mapping[str, int]  # lower-case character -> token
    split_sentences: SentenceSplitter


def model_name(language: str, name: str | None) -> str:
    """`name`, or whisperx's default model of the language; ModelUnavailable where it has none."""
    from whisperx import alignment

    defaults = alignment.DEFAULT_ALIGN_MODELS_TORCH | alignment.DEFAULT_ALIGN_MODELS_HF
    if name is None and language not in defaults:
        raise ModelUnavailable(
            f"There is no default alignment model for the language {language!r}; "
            f"name a wav2vec2 model for it under alignment.models, or go without word times.",
            None,
            "alignment_unavailable",
        )
    return name or str(defaults[language])


def load_language_model(
    language: str, name: str, device: str, max_padded_s: float, compute_type: ComputeType = "auto"
) -> LanguageModel:
    """`name` is a torchaudio bundle, a hub name or a directory; ModelUnavailable if it cannot be loaded."""
    import torch
    from whisperx import alignment

    from serve_app.stages.alignment.acoustic import AcousticModel

    full = False
    try:
        model, metadata = alignment.load_align_model(language, device, name)
    except torch.OutOfMemoryError:
        full = True
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelUnavailable(
            f"The alignment model {name!r} for the language {language!r} could not be "
            f"loaded; check its name and the network, or name a local directory under alignment.models.",
            None,
            "alignment_unavailable",
        ) from error
    if full:  # outside the handler, whose error keeps what was loaded of the model
        raise ModelUnavailable(
            f"The alignment model for the language {language!r} found no room in GPU memory: set "
            "alignment.max_loaded_languages lower, or let less run beside it.",
            None,
            "alignment_out_of_memory",
        )
    acoustic = AcousticModel(
        model,
        from_torchaudio=metadata["type"] == "torchaudio",
        device=device,
        max_padded_s=max_padded_s,
        compute_type=compute_type,
    )
    return LanguageModel(acoustic, metadata["dictionary"], load_sentence_splitter(language))


def align_language(
    model: LanguageModel, requests: Sequence[AlignRequest]
) -> list[tuple[Segment, ...] | TranscriptionError]:
    """The sentences of every window, all of the model's language; never raises for odd text or audio.

    ModelUnavailable is the value of windows that found too little GPU memory.
    """
    blank = blank_token(model.dictionary)
    letters = [spell(request.text, request.language, model.dictionary) for request in requests]
    results: list[tuple[Segment, ...] | TranscriptionError] = [whole_window(request) for request in requests]
    alignable = [i for i, request in enumerate(requests) if letters[i] and len(request.samples)]
    heard = model.acoustic.emissions([requests[i].samples for i in alignable])
    for i, emissions in zip(alignable, heard, strict=True):
        if isinstance(emissions, ModelUnavailable):
            results[i] = emissions
            continue
        request = requests[i]
        times = letter_times(letters[i], *emissions, blank, Window(request.start_s, request.end_s))
        if times is not None:
            sentences = model.split_sentences(request.text)
            segments = assemble(request.text, request.language, times, sentences, request.avg_logprob)
            results[i] = segments or results[i]
    return results


class Aligner:
    """Aligns windows of any language; the models of the last few languages stay in memory."""

    def __init__(
        self,
        models: Mapping[str, str],
        *,
        device: str,
        compute_type: ComputeType,
        max_padded_s: float,
        max_loaded_languages: int,
    ) -> None:
        self._models = models
        self._load = partial(
            load_language_model, device=device, max_padded_s=max_padded_s, compute_type=compute_type
        )
        self._max_loaded_languages = max_loaded_languages
        self._loaded: OrderedDict[str, LanguageModel] = OrderedDict()  # least recently used first
        # When it may be tried again, and why not now: message and code.
        self._failed: dict[str, tuple[float, str, str]] = {}

    def load(self, language: str) -> LanguageModel:
        """The language's model, from memory or loaded now; raises ModelUnavailable."""
        if language not in self._loaded:
            again_at, reason, code = self._failed.get(language, (0.0, "", ""))
            if time.monotonic() < again_at:  # anew: an error that is raised twice keeps both callers' audio
                raise ModelUnavailable(reason, None, code)
            name = model_name(language, self._models.get(language))  # before another one has to go
            while len(self._loaded) >= self._max_loaded_languages:
                self._loaded.popitem(last=False)  # before loading: two models may not fit beside each other
            try:
                self._loaded[language] = self._load(language, name)
            except ModelUnavailable as failure:
                is_full = failure.code == "alignment_out_of_memory"
                again_s = time.monotonic() + (_FULL_RETRY_AFTER_S if is_full else _RETRY_AFTER_S)
                self._failed[language] = (again_s, failure.message, failure.code)
                raise
        self._loaded.move_to_end(language)
        return self._loaded[language]

    def align(self, requests: Sequence[AlignRequest]) -> list[tuple[Segment, ...] | TranscriptionError]:
        """The sentences of every window in the order given; ModelUnavailable as the value where its
        language has no usable model. A text that cannot be aligned is one segment without words."""
        results: list[tuple[Segment, ...] | TranscriptionError] = [()] * len(requests)
        for language in dict.fromkeys(request.language for request in requests):
            chosen = [i for i, request in enumerate(requests) if request.language == language]
            try:
                model = self.load(language)
            except ModelUnavailable as error:
                for i in chosen:
                    results[i] = error.with_traceback(None)  # whose frames hold this list
                continue
            aligned = align_language(model, [requests[i] for i in chosen])
            for i, segments in zip(chosen, aligned, strict=True):
                results[i] = segments
        return results


def load_aligner(
    models: Mapping[str, str],
    *,
    device: str,
    compute_type: ComputeType = "auto",
    max_padded_s: float,
    max_loaded_languages: int,
    preload: Sequence[str] = (),
) -> Aligner:
    """An aligner with `models` (language -> bundle, hub name or directory) over whisperx's defaults.

    `max_padded_s` is the most audio, padding included, in one pass of a model; 0 = every window alone.
    Imports whisperx.alignment now, so that no request waits for it. The models of `preload`'s
    languages are loaded now too, the others when first used; one that cannot be loaded is no reason
    not to start, its windows get the error.
    """
    from whisperx import alignment  # noqa: F401

    aligner = Aligner(
        models,
        device=device,
        compute_type=compute_type,
        max_padded_s=max_padded_s,
        max_loaded_languages=max_loaded_languages,
    )
    for language in preload[:max_loaded_languages]:
        try:
            aligner.load(language)
        except ModelUnavailable as error:
            logger.warning("%s", error)
    return aligner
