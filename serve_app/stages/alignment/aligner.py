"""Texts of windows to sentences with word times, by each language's wav2vec2 model.

`forced` has the arithmetic and `acoustic` the network; here are the models' names and their languages.
Importing this module takes some 20 s and 0.9 GB. Nothing but alignment models is ever downloaded.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType

import torch
from whisperx import alignment

from serve_app.errors import ModelUnavailable, TranscriptionError
from serve_app.settings import AlignmentSettings
from serve_app.settings.types import ComputeType
from serve_app.stage_requests import AlignRequest
from serve_app.stages.alignment.acoustic import AcousticModel
from serve_app.stages.alignment.forced import letter_times, spell
from serve_app.stages.alignment.sentences import SplitSentences, sentence_splitter
from serve_app.stages.alignment.words import assemble
from serve_app.transcript import Segment, Window

logger = logging.getLogger("ray.serve")

# Seconds until a model that failed to load is tried again: a failure without a network takes 20 s. One that
# found no room in GPU memory is tried again sooner, because its windows are retried for only some seconds.
_RETRY_AFTER_S = {"alignment_unavailable": 60.0, "alignment_out_of_memory": 1.0}
DOWNLOAD_AGAIN_AFTER_S = 600.0

Aligned = list[tuple[Segment, ...] | TranscriptionError]  # what becomes of each window, in order


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """What is needed to align one language."""

    acoustic: AcousticModel
    dictionary: Mapping[str, int]  # lower-case character -> token
    split_sentences: SplitSentences


def _unavailable(message: str, code: str = "alignment_unavailable") -> ModelUnavailable:
    return ModelUnavailable(message, None, code)


def load_language_model(
    language: str, name: str, device: str, max_padded_s: float, compute_type: ComputeType = "auto"
) -> LanguageModel:
    """Loads a torchaudio bundle, a hub name or a directory; raises ModelUnavailable.

    A directory that holds a .pt or .pth file has the weights of the language's default bundle.
    """
    is_bundle = not (Path(name) / "config.json").is_file() and any(Path(name).glob("*.pt*"))
    place = {"model_dir": name} if is_bundle else {"model_name": name}
    try:
        for weights in Path(name).glob("*.pt*") if is_bundle else ():
            torch.load(weights, "cpu", weights_only=True)  # torchaudio would run a pickle's code
        model, metadata = alignment.load_align_model(language, device, **place)
    except torch.OutOfMemoryError:
        model = None
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        raise _unavailable(
            f"The alignment model {Path(name).name!r} for the language {language!r} could not be "
            f"loaded; check its name and the network, or name a local directory under alignment.models."
        ) from error
    if model is None:  # raised outside the handler: its error keeps what was loaded of the model
        raise _unavailable(
            f"The alignment model for the language {language!r} found no room in GPU memory: set "
            "alignment.max_loaded_languages lower, or run less on the same GPU.",
            "alignment_out_of_memory",
        )
    is_torchaudio = metadata["type"] == "torchaudio"
    acoustic = AcousticModel(model, is_torchaudio, device, max_padded_s, compute_type)
    return LanguageModel(acoustic, metadata["dictionary"], sentence_splitter(language))


def align_language(model: LanguageModel, requests: Sequence[AlignRequest]) -> Aligned:
    """The sentences of every window, all in the model's language; never raises for odd text or audio.

    As in whisperx, a text that cannot be aligned is one segment without words. A window for which there was
    too little GPU memory gets ModelUnavailable as its value.
    """
    letters = [spell(request.text, request.language, model.dictionary) for request in requests]
    results: Aligned = [(Segment(r.start_s, r.end_s, r.text, avg_logprob=r.avg_logprob),) for r in requests]
    alignable = [i for i, request in enumerate(requests) if letters[i] and len(request.samples)]
    heard = model.acoustic.emissions([requests[i].samples for i in alignable])
    for i, emissions in zip(alignable, heard, strict=True):
        if isinstance(emissions, ModelUnavailable):
            results[i] = emissions
            continue
        request = requests[i]
        window = Window(request.start_s, request.end_s)
        times = letter_times(request.text, letters[i], *emissions, model.dictionary, window)
        if times is not None:
            sentences = model.split_sentences(request.text)
            what = request.text, request.language, times, sentences, request.avg_logprob
            segments = assemble(*what, has_chars=request.has_chars)
            results[i] = segments or results[i]
    return results


class Downloads:
    """Downloads models of languages in threads of its own; a failure is remembered for a while."""

    def __init__(self, downloads: Mapping[str, Callable[[], str]]) -> None:
        self._fetch = downloads
        self._threads = ThreadPoolExecutor(2, "download")
        self._running: dict[str, tuple[Future[str], float]] = {}  # and when a failed one is tried again

    def get(self, language: str) -> str:
        """The model's directory; raises ModelUnavailable where it is not there yet or cannot be had."""
        if language not in self._fetch:
            raise _unavailable(
                f"There is no alignment model for the language {language!r} on this machine; name a wav2vec2 "
                "model for it under alignment.models, or set alignment.method: auto."
            )
        download, retry_at_s = self._running.get(language, (None, 0.0))
        if download is None or (download.done() and download.exception() and time.monotonic() > retry_at_s):
            download = self._threads.submit(self._download, language)
            self._running[language] = download, time.monotonic() + DOWNLOAD_AGAIN_AFTER_S
        if not download.done():
            raise _unavailable(
                f"The alignment model for {language!r} is being downloaded; send the file again later.",
                "alignment_downloading",
            )
        if download.exception():
            raise _unavailable(
                f"The alignment model for {language!r} could not be downloaded; the server's log says why."
            )
        return download.result()

    def _download(self, language: str) -> str:
        try:
            return self._fetch[language]()
        except Exception:  # it is raised again; callers are told no path and no address
            logger.warning("The alignment model for %r could not be downloaded.", language, exc_info=True)
            raise


class Aligner:
    """Aligns windows of any language; the models of the last few languages stay in memory."""

    def __init__(
        self,
        models: Mapping[str, str],
        *,
        device: str,
        max_padded_s: float,
        settings: AlignmentSettings,
        downloads: Mapping[str, Callable[[], str]] = MappingProxyType({}),
    ) -> None:
        """Takes `models` (language -> torchaudio bundle or directory).

        `downloads` has, for languages whose model is not on this machine, what fetches it and gives its
        directory; that happens in a thread of its own, so that no other window waits. `max_padded_s` is the
        most audio, padding included, in one pass; 0 = every window alone. The models of `settings.preload`
        are loaded now; where one cannot be loaded, only its windows fail.
        """
        self._names: dict[str, str] = dict(models)
        self._downloads = Downloads(downloads)
        self._load = partial(
            load_language_model,
            device=device,
            max_padded_s=max_padded_s,
            compute_type=settings.compute_type,
        )
        self._max_loaded = settings.max_loaded_languages
        self._loaded: OrderedDict[str, LanguageModel] = OrderedDict()  # least recently used first
        self._failed: dict[str, tuple[float, str, str]] = {}  # time of the next attempt, message, code
        for language in settings.preload:
            try:
                self.load(language)
            except ModelUnavailable as error:
                logger.warning("%s", error)

    def load(self, language: str) -> LanguageModel:
        """The language's model, from memory or loaded now; raises ModelUnavailable."""
        if language not in self._loaded:
            name = self._names.get(language) or self._downloads.get(language)
            retry_at_s, message, code = self._failed.get(language, (0.0, "", ""))
            if time.monotonic() < retry_at_s:
                # A new error: one that is raised twice keeps both callers' audio in its traceback.
                raise _unavailable(message, code)
            while len(self._loaded) >= self._max_loaded:
                self._loaded.popitem(last=False)  # before loading: there may be no room for both
            try:
                self._loaded[language] = self._load(language, name)
            except ModelUnavailable as error:
                logger.warning("%s", error.message)
                retry_at_s = time.monotonic() + _RETRY_AFTER_S[error.code]
                self._failed[language] = (retry_at_s, error.message, error.code)
                raise
        self._loaded.move_to_end(language)
        return self._loaded[language]

    def align(self, requests: Sequence[AlignRequest]) -> Aligned:
        """As `align_language`, or ModelUnavailable for windows whose language has no usable model."""
        results: Aligned = [()] * len(requests)
        for language in dict.fromkeys(request.language for request in requests):
            chosen = [i for i, request in enumerate(requests) if request.language == language]
            try:
                aligned = align_language(self.load(language), [requests[i] for i in chosen])
            except ModelUnavailable as error:
                aligned = [error.with_traceback(None)] * len(chosen)  # its frames hold the audio
            for i, segments in zip(chosen, aligned, strict=True):
                results[i] = segments
        return results
