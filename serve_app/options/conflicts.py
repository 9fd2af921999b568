"""Which options contradict each other, so that none is accepted and ignored."""

import re
from collections.abc import Callable, Sequence

from serve_app.audio import TELEPHONE_RATES_HZ
from serve_app.errors import InvalidRequest
from serve_app.formats.table import FORMATS, Format
from serve_app.options.fields import KNOWN_SPEAKERS, MULTIPLE, OptionFields
from serve_app.options.validation import conflict

SPEAKER_COUNTS = ("num_speakers", "min_speakers", "max_speakers")
SPEAKER_OPTIONS = ("diarize", *SPEAKER_COUNTS, *KNOWN_SPEAKERS, "embeddings", "split_at_speaker_change")
LINE_OPTIONS = ("max_line_width", "max_line_count", "highlight_words")
MIN_STRETCH_S = 0.01
IN_WORDS = ("confidence", "char_timestamps")

# Options, what they ask a format to show, and whether it can.
_SHOWN: tuple[tuple[Sequence[str], str, Callable[[Format], bool]], ...] = (
    (("embeddings",), "embeddings of speakers", lambda form: form.name == "json"),
    (SPEAKER_OPTIONS, "speakers", lambda form: form.has_speakers),
    (LINE_OPTIONS, "subtitle lines", lambda form: form.has_lines),
    (("word_timestamps", *IN_WORDS), "words with times", lambda form: form.has_words),
    (("max_segment_s",), "segments", lambda form: form.has_segments),
    (("logprobs",), "log-probabilities of tokens", lambda form: form.name == "json"),
)


def check(options: OptionFields) -> None:
    """Raises InvalidRequest that names the first option that contradicts another."""
    _check_audio(options)
    _check_languages(options)
    _check_speakers(options)
    _check_words(options)
    _check_format(options)
    _check_segments(options)


def in_their_formats(
    error: InvalidRequest, sent: str, known: Sequence[str], able: Sequence[str] = ()
) -> InvalidRequest:
    """The error in the words of an API with other formats.

    `sent` is what the client asked for there, such as `output=srt`. Of the formats that the error advises,
    only those that the API has (`known`) stay; `able`, if given, are its formats that can show the same.
    """
    message = re.sub(r"response_format=\w+ has no", f"{sent} has no", error.message)
    what, advice, ours = message.partition("; use one of ")
    if advice:
        names = [name for name in able or ours.rstrip(".").split(", ") if name in known]
        message = f"{what}{advice}{', '.join(names)}."
    return InvalidRequest(message, error.param, error.code)


def _refuse(options: OptionFields, names: Sequence[str], why: str) -> None:
    """Raises the error of the first of these options that asks for something."""
    for name in names:
        if getattr(options, name):
            raise conflict(name, why)


def _check_audio(options: OptionFields) -> None:
    if options.end_s is not None and round(options.end_s - (options.start_s or 0.0), 6) < MIN_STRETCH_S:
        raise conflict("end_s", f"must be after start_s, by at least {MIN_STRETCH_S} s")
    if options.encoding is None:
        why = "is for samples without a header: name the encoding"
        _refuse(options, ("sample_rate", "channel_count"), why)
    elif rate_hz := TELEPHONE_RATES_HZ.get(options.encoding):
        if options.sample_rate not in (None, rate_hz):
            raise conflict("sample_rate", f"{options.encoding} has {rate_hz}")
        if options.channel_count not in (None, 1):
            raise conflict("channel_count", f"{options.encoding} has 1")
    elif options.sample_rate is None:
        raise conflict("encoding", "needs sample_rate: samples do not say how fast they are")


def _check_languages(options: OptionFields) -> None:
    if options.languages and options.language not in (None, MULTIPLE):
        raise conflict("languages", "send language for one, or languages for several, not both")
    if len(options.languages) == 1 and options.language == MULTIPLE:
        raise conflict("languages", f"language={MULTIPLE} needs several, or none")
    if options.temperature:
        _refuse(options, ("beam_size",), "at a temperature above 0 text is sampled, not searched for")


def _check_speakers(options: OptionFields) -> None:
    chosen = FORMATS[options.response_format]
    if len(options.known_speaker_references) != (count := len(options.known_speaker_names)):
        raise conflict("known_speaker_references", f"give one for each of the {count} names")
    if options.channels == "speakers":
        why = "cannot be combined with channels=speakers, which has the speakers"
        _refuse(options, SPEAKER_OPTIONS, why)
        if not chosen.has_speakers:
            raise conflict("channels", f"response_format={chosen.name} has no speakers; ask for another")
    elif options.diarize is False:
        needing = ("response_format",) if chosen.needs_speakers else ()
        _refuse(options, (*needing, *SPEAKER_OPTIONS), "needs diarize to be true")
    if options.min_speakers or options.max_speakers:
        _refuse(options, ("num_speakers",), "cannot be combined with min_speakers or max_speakers")
    if options.min_speakers and options.max_speakers and options.min_speakers > options.max_speakers:
        raise conflict("min_speakers", "must not be above max_speakers")


def _check_words(options: OptionFields) -> None:
    if options.wants_words():
        return
    needing = ("response_format",) if FORMATS[options.response_format].needs_words else ()
    needing = (*needing, "word_timestamps", *IN_WORDS, "split_at_speaker_change", *LINE_OPTIONS)
    without = "task=translate" if options.task == "translate" else "align=false"
    _refuse(options, needing, f"needs word times, which {without} does not give")


def _check_format(options: OptionFields) -> None:
    chosen = FORMATS[options.response_format]
    for names, what, can_show in _SHOWN:
        if not can_show(chosen):
            others = ", ".join(other.name for other in FORMATS.values() if can_show(other))
            _refuse(options, names, f"response_format={chosen.name} has no {what}; use one of {others}")
    if chosen.needs_speakers:
        _refuse(options, ("split_at_speaker_change",), f"{chosen.name} has no sentences to split")
    if options.max_line_width is None:
        _refuse(options, ("max_line_count",), "needs max_line_width")
    if not (options.word_timestamps or chosen.needs_words):
        _refuse(options, IN_WORDS, "is shown in words: send word_timestamps")


def _check_segments(options: OptionFields) -> None:
    if options.vad_onset and options.vad_offset and options.vad_offset > options.vad_onset:
        raise conflict("vad_offset", "must not be above vad_onset")
    if options.max_line_count:
        why = "cannot be combined with max_line_count, which joins segments"
        _refuse(options, ("max_segment_s",), why)
