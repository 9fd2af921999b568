"""Windows of speech to text: Whisper on CTranslate2, windows of many requests in one batch.

A batch is one encoder pass and one search, and each item has its own prompt, so languages and tasks mix.
Texts and scores are whisperx's; its pipeline object is not used, because it keeps the language and options of
a request on itself and costs 20 s and 0.9 GB (torch) to import.
"""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.transcribe import get_ctranslate2_storage

from serve_app.errors import InvalidRequest, ModelUnavailable, TranscriptionError
from serve_app.settings import AsrSettings
from serve_app.stage_requests import AsrRequest
from serve_app.stages.alignment import attention, sound
from serve_app.stages.asr.language import Ranking, allowed, choose_language, probable, rankings, without_text
from serve_app.stages.asr.prompts import Prompts
from serve_app.stages.asr.search import Search
from serve_app.stages.devices import choose_compute_type
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Segment, Token, Window, WindowText

ENCODER_SAMPLES = 30 * SAMPLE_RATE_HZ  # Whisper's encoder always sees 30 s

QUIET_PEAK = 328  # -40 dBFS
_warn_once = cache(logging.getLogger("ray.serve").warning)
Features = npt.NDArray[np.float32]  # log-mel, (n_mels, 3000)


class Recognizer:
    """A loaded Whisper. No call changes its weights or options, so requests cannot affect each other."""

    def __init__(
        self, whisper: WhisperModel, name: str, settings: AsrSettings, attention_shift_s: float = 0.0
    ) -> None:
        """Takes over the model; `attention_shift_s` is by how much its attention is early."""
        self._whisper = whisper
        self._model: ctranslate2.models.Whisper = whisper.model
        self._tokenizer = whisper.hf_tokenizer
        self._name = name
        self._search = Search(whisper.hf_tokenizer, settings)
        self._attention_shift_s = attention_shift_s
        # The weights say how many mel bands they want; preprocessor_config.json is often missing.
        self._extract = FeatureExtractor(feature_size=self._model.n_mels)
        self.multilingual: bool = self._model.is_multilingual
        self._prompts = Prompts(whisper)
        # faster-whisper lists every language there is; large-v2 and smaller have no token for Cantonese.
        self.languages: frozenset[str] = frozenset(
            code
            for code in whisper.supported_languages
            if not self.multilingual or self._tokenizer.token_to_id(f"<|{code}|>") is not None
        )

    def features(self, samples: Samples) -> Features:
        """The window's features, padded with zeros to 30 s: whisperx's `log_mel_spectrogram` within 1e-4.

        Like there, what is beyond 30 s (a sample, by rounding) is cut. A quiet window is amplified: Whisper
        takes quiet words for silence.
        """
        samples = samples[:ENCODER_SAMPLES]
        padded = np.zeros(ENCODER_SAMPLES, np.float32)
        peak = max(int(samples.max(initial=0)), -int(samples.min(initial=0)))
        np.divide(samples, 2 * peak if 0 < peak < QUIET_PEAK else 32768, out=padded[: len(samples)])
        features: Features = self._extract(padded, padding=0)
        return features

    def batch_key(self, request: AsrRequest) -> Hashable:
        """What must be equal in a batch of CTranslate2's: the start token's index and the search.

        Language and task come after that token, so they do not matter. A prompt that `transcribe` refuses
        may be in any batch. Windows of which the language alone is wanted have batches of their own.
        """
        if request.only_language:
            return "language"
        try:
            return self._prompts.start_index(request.decoding), self._search.key(request.decoding)
        except InvalidRequest:
            return None

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[WindowText | TranscriptionError]:
        """Recognises windows of equal `batch_key`, with whisperx's default options, in order.

        An item whose language or task the model does not have, or whose prompt it cannot follow, becomes an
        InvalidRequest. A failure of the model itself is raised: it concerns all items.
        """
        refusals = [self._refusal(request) for request in requests]
        accepted = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        only_language = any(request.only_language for request in accepted)  # then all do
        recognise = self._detect_languages if only_language else self._recognise
        texts = iter(recognise(accepted) if accepted else ())
        return [refusal or next(texts) for refusal in refusals]

    def sentences(self, text: WindowText, window: Window, features: Features) -> tuple[Segment, ...]:
        """The sentences of a text whose tokens have times, with the times of their words."""
        loud = sound.loudness(features, window.end_s - window.start_s)
        return attention.sentences(text, window, loud, self._attention_shift_s)

    def _refusal(self, request: AsrRequest) -> InvalidRequest | None:
        if request.decoding.task == "translate" and not self.multilingual:
            return InvalidRequest(
                f"The model {self._name} is English-only and cannot translate: have it transcribed, "
                "or choose a multilingual model.",
                "task",
            )
        if (request.only_language or request.decoding.own_languages) and not self.multilingual:
            return InvalidRequest(
                f"The model {self._name} is English-only and cannot tell languages apart: choose a "
                "multilingual model.",
                None if request.only_language else "language",
            )
        asked = request.decoding.languages or ((request.language,) if request.language else ())
        if unknown := [code for code in asked if code not in self.languages]:
            known = f"one of its {len(self.languages)} languages" if self.multilingual else "en"
            return InvalidRequest(
                f"The model {self._name} does not know the language {unknown[0]!r}: give {known}, "
                "or leave it out.",
                "languages" if request.decoding.languages else "language",
            )
        try:
            self._prompts.context(request.decoding)
        except InvalidRequest as error:
            return error
        return None

    def _detect_languages(self, requests: list[AsrRequest]) -> list[WindowText]:
        """The language of each window, with no text: a pass of the encoder and a step of the decoder."""
        ranked = rankings(self._model, self._encoded(requests))
        return [without_text(allowed(request, each)) for request, each in zip(requests, ranked, strict=True)]

    def _encoded(self, requests: Sequence[AsrRequest]) -> Any:
        return self._model.encode(get_ctranslate2_storage(np.stack([r.features for r in requests])))

    def _recognise(self, requests: list[AsrRequest]) -> list[WindowText]:
        encoded = self._encoded(requests)
        chosen = list(zip(requests, self._languages(encoded, requests), strict=True))
        results = self._model.generate(
            encoded,
            [self._prompts.prompt(language, request.decoding) for request, (language, _) in chosen],
            max_length=self._whisper.max_length,
            **self._search.options(requests[0].decoding),
        )
        found = [
            self._search.best_text(
                result,
                request.decoding,
                language=language,
                language_probability=dict(ranking).get(language),
                languages=probable(ranking),
                prompt_tokens_cut=self._prompts.context(request.decoding)[1],
            )
            for result, (request, (language, ranking)) in zip(results, chosen, strict=True)
        ]
        tokens = self._token_times(encoded, requests, found)
        return [replace(text, tokens=times) for (text, _), times in zip(found, tokens, strict=True)]

    def _token_times(
        self, encoded: Any, requests: list[AsrRequest], found: list[tuple[WindowText, list[int]]]
    ) -> list[tuple[Token, ...]]:
        """Each text's tokens where they are wanted."""
        if not any(request.times_until_s for request in requests):
            return [()] * len(requests)
        pairs = list(zip(requests, found, strict=True))
        starts = [self._prompts.start(text.language, request.decoding) for request, (text, _) in pairs]
        texts = [ids if request.times_until_s else [] for request, (_, ids) in pairs]
        lengths_s = [request.times_until_s for request in requests]
        decode, name_of = self._tokenizer.decode, self._tokenizer.id_to_token
        try:
            times = attention.token_times(self._model, encoded, starts, texts, lengths_s, decode)
        except RuntimeError as error:  # of a conversion without alignment_heads, say: the text is there
            _warn_once("The model gives no word times: %s", str(error).partition("\n")[0])
            return [()] * len(requests)
        return [
            attention.spelled(*each) for each in zip(times, (map(name_of, ids) for ids in texts), strict=True)
        ]

    def _languages(
        self, encoded: ctranslate2.StorageView, requests: list[AsrRequest]
    ) -> list[tuple[str, Ranking]]:
        """Each item's language, with all of them where it was detected (one step for all items)."""
        if not self.multilingual or all(r.language and r.certain_at is None for r in requests):
            return [(request.language or "en", ()) for request in requests]
        ranked = rankings(self._model, encoded)
        return [choose_language(request, each) for request, each in zip(requests, ranked, strict=True)]


def load_recognizer(
    model: str,
    *,
    device: str,
    threads: int,
    settings: AsrSettings,
    name: str = "",
    attention_shift_s: float = 0.0,
) -> Recognizer:
    """Loads a CTranslate2 Whisper from a directory or, by faster-whisper name or repository, from the hub.

    Messages call it `name` or as its directory. Raises ModelUnavailable if that fails, whatever the reason.
    """
    try:
        compute_type = choose_compute_type(settings.compute_type, device)
        whisper = WhisperModel(model, device=device, compute_type=compute_type, cpu_threads=threads)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        message = (
            f"The Whisper model {model!r} could not be loaded ({reason}): `model` must be a CTranslate2 "
            "directory, a name such as small or large-v2, or a hub repository that this machine can reach, "
            "and `device` and `asr.compute_type` must be ones it has."
        )
        raise ModelUnavailable(message, "model") from error
    return Recognizer(whisper, name or Path(model).name, settings, attention_shift_s)
