"""Windows of speech to text: Whisper on CTranslate2, many windows of many requests at a time.

One batch is one encoder pass and one search, and each item has its own prompt, so languages and
tasks mix. Texts and scores are whisperx's; its pipeline object is not used, because it keeps the
language and options of a request on itself and costs 20 s and 0.9 GB (torch) to import.
"""

import threading
from collections.abc import Hashable, Sequence

import ctranslate2
import numpy as np
import numpy.typing as npt
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.transcribe import get_compression_ratio, get_ctranslate2_storage

from serve_app.errors import InvalidRequest, TranscriptionError
from serve_app.stages.asr.prompts import Prompts
from serve_app.stages.asr.token_ends import token_ends
from serve_app.transcript import SAMPLE_RATE_HZ, AsrRequest, Samples, WindowText

ENCODER_SAMPLES = 30 * SAMPLE_RATE_HZ  # Whisper's encoder always sees 30 s
BEST_OF = 5  # samples at a temperature above 0, of which the likeliest is taken

Features = npt.NDArray[np.float32]  # log-mel, (n_mels, 3000)


def average_logprob(score: float, tokens: int) -> float:
    """Mean log-probability of the tokens and the end token, as faster-whisper and whisperx count it.

    CTranslate2's `score` is the sum divided by the tokens alone (length penalty 1).
    """
    return score * tokens / (tokens + 1)


class Recognizer:
    """A loaded Whisper. No call changes its weights or options, so requests cannot affect each other."""

    def __init__(
        self,
        whisper: WhisperModel,
        name: str,
        beam_size: int,
        compression_ratio_threshold: float = 2.4,
        *,
        lanes: int = 1,
        wide: ctranslate2.models.Whisper | None = None,
    ) -> None:
        """`wide` is the same model on more threads, for the encoder of a batch that has none beside it."""
        self.lanes = lanes
        self._wide = wide or whisper.model
        self._in_work = 0
        self._counting = threading.Lock()
        self._whisper = whisper
        self._model: ctranslate2.models.Whisper = whisper.model
        self._tokenizer = whisper.hf_tokenizer
        self._name = name
        self._beam_size = beam_size
        self._compression_ratio_threshold = compression_ratio_threshold  # above it, text repeats itself
        # The weights say how many mel bands they want; preprocessor_config.json is often missing.
        self._extract = FeatureExtractor(feature_size=self._model.n_mels)
        self._end_token: int = self._tokenizer.token_to_id("<|endoftext|>")
        self.multilingual: bool = self._model.is_multilingual
        self._prompts = Prompts(whisper)
        # faster-whisper lists every language there is; large-v2 and smaller have no token for Cantonese.
        self.languages: frozenset[str] = frozenset(
            code
            for code in whisper.supported_languages
            if not self.multilingual or self._tokenizer.token_to_id(f"<|{code}|>") is not None
        )

    def features(self, samples: Samples) -> Features:
        """Log-mel features (n_mels, 3000) of a window of at most 30 s, padded with zeros to 30 s.

        Equal to whisperx's `log_mel_spectrogram` within 1e-4; like there, what is beyond 30 s (a sample,
        by rounding) is cut.
        """
        samples = samples[:ENCODER_SAMPLES]
        padded = np.zeros(ENCODER_SAMPLES, np.float32)
        np.divide(samples, 32768, out=padded[: len(samples)])
        features: Features = self._extract(padded, padding=0)
        return features

    def batch_key(self, request: AsrRequest) -> Hashable:
        """What CTranslate2 wants the same in a whole batch: the start token's index and the temperature.

        Language and task come after that token, so they do not matter. A prompt that `transcribe` refuses
        may be anywhere.
        """
        try:
            return self._prompts.start_index(request.decoding), request.decoding.temperature or 0.0
        except InvalidRequest:
            return None

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[WindowText | TranscriptionError]:
        """Recognises windows of equal `batch_key`, with whisperx's default options, in order.

        InvalidRequest stands for an item whose language or task the model does not have, or whose prompt it
        cannot follow. A failure of the model itself is raised: it concerns all items.
        """
        answers: list[WindowText | TranscriptionError | None] = [self._refusal(r) for r in requests]
        accepted = [index for index, answer in enumerate(answers) if answer is None]
        with self._counting:
            self._in_work += 1
            encoder = self._wide if self._in_work == 1 else self._model
        try:
            texts = self._recognise([requests[index] for index in accepted], encoder) if accepted else []
        finally:
            with self._counting:
                self._in_work -= 1
        for index, text in zip(accepted, texts, strict=True):
            answers[index] = text
        return [answer for answer in answers if answer is not None]

    def _refusal(self, request: AsrRequest) -> InvalidRequest | None:
        if request.decoding.task == "translate" and not self.multilingual:
            return InvalidRequest(
                f"The model {self._name} is English-only and cannot translate: have it transcribed, "
                "or use a server with a multilingual model.",
                "task",
            )
        if request.language is not None and request.language not in self.languages:
            known = f"one of its {len(self.languages)} languages" if self.multilingual else "en"
            return InvalidRequest(
                f"The model {self._name} does not know the language {request.language!r}: give {known}, "
                "or leave it out.",
                "language",
            )
        try:
            self._prompts.context(request.decoding)
        except InvalidRequest as error:
            return error
        return None

    def _recognise(self, requests: list[AsrRequest], encoder: ctranslate2.models.Whisper) -> list[WindowText]:
        encoded = encoder.encode(get_ctranslate2_storage(np.stack([r.features for r in requests])))
        languages = self._languages(encoded, requests)
        prompts = [
            self._prompts.prompt(language, r.decoding)
            for (language, _), r in zip(languages, requests, strict=True)
        ]
        temperature = requests[0].decoding.temperature or 0.0
        results = self._model.generate(
            encoded,
            prompts,
            **self._search(temperature),
            length_penalty=1,
            repetition_penalty=1,
            no_repeat_ngram_size=0,
            max_length=self._whisper.max_length,
            suppress_blank=True,
            suppress_tokens=[-1],  # the list in the model's own config.json
            return_scores=True,
            return_no_speech_prob=True,
        )
        return [
            self._best_text(result, request, *language)
            for result, request, language in zip(results, requests, languages, strict=True)
        ]

    def _best_text(
        self,
        result: ctranslate2.models.WhisperGenerationResult,
        request: AsrRequest,
        language: str,
        language_probability: float | None,
    ) -> WindowText:
        """The likeliest of an item's samples that does not repeat itself, else the likeliest.

        faster-whisper takes the likeliest in any case, which is a loop if there is one among them: words
        that come again and again are always likely. A beam search gives one text, to both.
        """
        texts = []
        for ids, score in zip(result.sequences_ids, result.scores, strict=True):
            tokens = [token for token in ids if token < self._end_token]
            said = self._tokenizer.decode(tokens)
            text = WindowText(
                text=said,
                language=language,
                language_probability=language_probability,
                avg_logprob=average_logprob(score, len(ids)),
                no_speech_prob=result.no_speech_prob,
                compression_ratio=get_compression_ratio(said.strip()),
                tokens=tuple(tokens),
                temperature=request.decoding.temperature or 0.0,
                prompt_tokens_cut=self._prompts.context(request.decoding)[1],
                token_ends=token_ends(self._tokenizer, tokens, said),
            )
            if text.compression_ratio <= self._compression_ratio_threshold:
                return text
            texts.append(text)
        return texts[0]

    def _search(self, temperature: float) -> dict[str, float]:
        """Options of a beam search, or of sampling as faster-whisper does it."""
        if temperature:
            return {
                "beam_size": 1,
                "num_hypotheses": BEST_OF,
                "sampling_topk": 0,
                "sampling_temperature": temperature,
            }
        return {"beam_size": self._beam_size, "patience": 1}

    def _languages(
        self, encoded: ctranslate2.StorageView, requests: list[AsrRequest]
    ) -> list[tuple[str, float | None]]:
        """Each item's language, with the probability where it was detected (one step for all items)."""
        languages: list[tuple[str, float | None]] = [(r.language or "en", None) for r in requests]
        unnamed = [index for index, request in enumerate(requests) if request.language is None]
        if unnamed and self.multilingual:
            rankings = self._model.detect_language(encoded)
            for index in unnamed:
                token, probability = rankings[index][0]
                languages[index] = (token.removeprefix("<|").removesuffix("|>"), probability)
        return languages
