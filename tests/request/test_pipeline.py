"""One request through fake stages: order, concurrency, language, degradation."""

import asyncio
from base64 import b64decode
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeStages, data_url, recording, window_text

from serve_app.audio import Source
from serve_app.errors import DeadlineExceeded, InvalidRequest, ModelUnavailable, Overloaded, UnusableAudio
from serve_app.options import Options
from serve_app.request.calls import AlignCall, DetectCall, DiarizeCall, TranscribeCall
from serve_app.request.pipeline import transcribe
from serve_app.stage_requests import Decoding, SpeechSearch
from serve_app.transcript import (
    Diarization,
    Progress,
    Segment,
    SpeakerBounds,
    Speech,
    Transcript,
    Voices,
    Window,
    WindowText,
    Word,
)

SOURCE = Source(url="http://example/x.mp3")
ADA = data_url(recording(1, 1).tobytes())  # a clip of the one who says odd numbers


def run(fake: FakeStages, diarizes: bool = True, **options: Any) -> Transcript:
    return asyncio.run(transcribe(fake.stages(diarizes=diarizes), SOURCE, Options(**options)))


def test_segments_come_in_order_with_words_and_speakers() -> None:
    """Windows become segments in order of time, each with its speaker and its words'."""
    transcript = run(FakeStages(recording(1, 2, 0, 3)))
    assert [(s.start_s, s.text, s.speaker) for s in transcript.segments] == [
        (0.0, "word1", "SPEAKER_01"),
        (1.0, "word2", "SPEAKER_00"),
        (3.0, "word3", "SPEAKER_01"),
    ]
    assert [word.speaker for segment in transcript.segments for word in segment.words] == [
        "SPEAKER_01",
        "SPEAKER_00",
        "SPEAKER_01",
    ]
    assert (transcript.language, transcript.duration_s, transcript.warnings) == ("en", 4.0, ())
    assert {"speech", "asr", "alignment", "diarization", "total"} <= set(transcript.timings)


def test_the_peaks_of_the_whole_waveform_are_kept() -> None:
    """Those of all parts, in order."""
    assert b64decode(run(FakeStages(recording(0, 1, 2))).peaks) == bytes([0, 1, 2])


def test_embeddings_come_with_their_model_where_they_are_wanted() -> None:
    """Each speaker has a vector, a known one under the name; nobody gets them unasked."""
    fake = FakeStages(recording(1, 2))
    known: dict[str, Any] = {"known_speaker_names": ["Ada"], "known_speaker_references": [ADA]}
    transcript = run(fake, embeddings=True, **known)
    assert transcript.voices == Voices("fake", 2, {"Ada": (1.0, 0.0), "SPEAKER_00": (1.0, 1.0)})
    assert transcript.warnings == ()
    assert run(FakeStages(recording(1, 2))).voices is None


def test_a_speaker_without_a_vector_is_warned_about() -> None:
    """The others have theirs; without embeddings nobody asked."""
    known: dict[str, Any] = {"known_speaker_names": ["Mute"], "known_speaker_references": [ADA]}
    transcript = run(FakeStages(recording(1, 2)), embeddings=True, **known)
    assert transcript.voices
    assert transcript.voices.vectors == {"Mute": None, "SPEAKER_00": (1.0, 1.0)}
    [warning] = transcript.warnings
    assert (warning.code, "no embedding of Mute" in warning.message) == ("embeddings_missing", True)
    assert run(FakeStages(recording(1, 2)), **known).warnings == ()


def test_embeddings_need_a_model_for_speakers() -> None:
    """Else they would be missing from the answer without a word."""
    with pytest.raises(InvalidRequest, match="leave out embeddings") as caught:
        run(FakeStages(recording(1)), diarizes=False, embeddings=True)
    assert (caught.value.param, caught.value.code) == ("embeddings", "diarization_unavailable")


def test_silence_is_an_empty_list_and_no_language() -> None:
    """Without speech nothing is transcribed and no language is invented."""
    fake = FakeStages(recording(0, 0))
    transcript = run(fake)
    assert (transcript.segments, transcript.language) == ((), None)
    assert fake.calls["asr"] == 0


def test_a_named_language_reaches_every_window_and_detection_does_not_run() -> None:
    """`language` goes to each window once."""
    fake = FakeStages(recording(1, 2, 3))
    transcript = run(fake, language="de")
    assert fake.transcribed_in == [(0.0, "de"), (1.0, "de"), (2.0, "de")]
    assert transcript.language == "de"


def test_decoding_options_reach_every_window() -> None:
    """What a request wants of decoding is asked for with each of its windows."""
    fake = FakeStages(recording(1, 2))
    wanted: dict[str, Any] = {
        "initial_prompt": "Kant.",
        "hotwords": "Hegel",
        "temperature": 0.2,
        "temperature_inc": 0.4,
    }
    run(fake, task="translate", **wanted)
    assert fake.decodings == [Decoding("translate", "Kant.", "Hegel", 0.2, 0.4)] * 2


def test_doubtful_and_dropped_windows_are_warned_of() -> None:
    """Text that was decoded again, left out, or prompted with less than was sent, each warn once, by name."""

    class Doubtful(FakeStages):
        async def _transcribe(self, call: TranscribeCall) -> WindowText:
            text = await super()._transcribe(call)
            if call.window.start_s == 2.0:
                return replace(text, text="", was_silence=True, prompt_tokens_cut=7)
            return replace(text, attempts=2, temperature=0.2, prompt_tokens_cut=7)

    transcript = run(Doubtful(recording(1, 2, 3)), language="en")
    codes = ["prompt_shortened", "fallback_temperature", "no_speech"]
    assert [(warning.stage, warning.code) for warning in transcript.warnings] == [("asr", c) for c in codes]
    assert "2 windows (0.0-1.0 s, 1.0-2.0 s)" in transcript.warnings[1].message
    assert [segment.text for segment in transcript.segments] == ["word1", "word2"]


def test_one_language_per_file_by_vote() -> None:
    """The first windows vote; a window that heard another language is transcribed again."""
    fake = FakeStages(recording(1, 2, 3, 4, 5), languages={1.0: "cy"})
    transcript = run(fake)
    assert transcript.language == "en"
    assert sorted(fake.transcribed_in, key=str) == sorted(
        [(0.0, None), (1.0, None), (2.0, None), (3.0, None), (1.0, "en"), (4.0, "en")], key=str
    )


def test_a_window_that_is_certain_of_another_language_keeps_it() -> None:
    """A voter and a later window stay German in an English file, once decoded, and the answer says so."""
    german = {1.0: "de", 5.0: "de", 6.0: "fr"}
    fake = FakeStages(
        recording(1, 2, 3, 4, 5, 6, 7), languages=german, certainties={1.0: 0.95, 5.0: 0.95, 6.0: 0.7}
    )
    transcript = run(fake)
    heard = [s.source_text.language if s.source_text else None for s in transcript.segments]
    assert heard == ["en", "de", "en", "en", "en", "de", "en"]
    assert transcript.language == "en"
    assert fake.calls["asr"] == 7
    [warning] = transcript.warnings
    assert warning.code == "languages_mixed"
    assert "de in 2 windows (1.0-2.0 s, 5.0-6.0 s)" in warning.message


def test_a_named_language_is_that_of_every_window() -> None:
    """However certain a window is of another one, and without a warning."""
    fake = FakeStages(recording(1, 2), languages={1.0: "de"}, certainties={1.0: 1.0})
    transcript = run(fake, language="en")
    assert [s.source_text and s.source_text.language for s in transcript.segments] == ["en", "en"]
    assert transcript.warnings == ()


def test_only_allowed_languages_are_written() -> None:
    """A voter and a later window that sound like another one included; the file's is one of them, too."""
    heard = {0.0: "nl", 1.0: "de", 2.0: "en", 3.0: "de", 5.0: "nl"}
    fake = FakeStages(recording(1, 2, 3, 4, 5, 6), languages=heard, certainties={5.0: 1.0})
    transcript = run(fake, languages=["de", "en"])
    assert transcript.language == "de"
    assert {s.source_text.language for s in transcript.segments if s.source_text} <= {"de", "en"}


def test_log_probabilities_that_are_missing_are_a_warning() -> None:
    """A model may have none. A transcript has them once, however many segments a window has."""
    transcript = run(FakeStages(recording(1, 0, 2)), logprobs=True)
    assert "".join(bytes(token.utf8_bytes).decode() for token in transcript.tokens) == " word1 word2"
    assert [segment.source_text and segment.source_text.tokens for segment in transcript.segments] == [(), ()]
    assert transcript.warnings == ()
    assert run(FakeStages(recording(1)), confidence=True, word_timestamps=True).tokens == ()

    async def without(call: TranscribeCall) -> WindowText:
        return window_text(1, "en")

    stages = replace(FakeStages(recording(1)).stages(), transcribe=without)
    warned = asyncio.run(transcribe(stages, SOURCE, Options(logprobs=True)))
    assert [warning.code for warning in warned.warnings] == ["logprobs_missing"]


def test_an_uncertain_language_comes_with_a_warning() -> None:
    """Four windows in four languages: the answer says that the language is a guess."""
    fake = FakeStages(recording(1, 2, 3, 4), languages={0.0: "en", 1.0: "cy", 2.0: "de", 3.0: "fr"})
    assert [warning.code for warning in run(fake).warnings] == ["language_uncertain"]


def test_a_failing_alignment_keeps_the_text() -> None:
    """The text comes back with window times and one warning, not one per window."""
    fake = FakeStages(
        recording(1, 2), fail={"align": ModelUnavailable("no model", None, "alignment_unavailable")}
    )
    transcript = run(fake)
    assert [(s.text, s.start_s, s.words, s.speaker) for s in transcript.segments] == [
        ("word1", 0.0, (), "SPEAKER_01"),
        ("word2", 1.0, (), "SPEAKER_00"),
    ]
    assert [(w.stage, w.code) for w in transcript.warnings] == [("alignment", "alignment_unavailable")]


def by_attention(fake: FakeStages, **changes: Any) -> Transcript:
    """The recogniser gives word times, which begin 0.1 s after the window; the aligner's begin with it."""
    stages = replace(fake.stages(), attention=True, **changes)
    return asyncio.run(transcribe(stages, SOURCE, Options()))


def test_without_an_aligner_the_recognisers_word_times_are_taken() -> None:
    """Also where there is an aligner that does not have the language; neither is worth a warning."""
    for changes in ({"align": None}, {"aligner_languages": {"fr"}}):
        fake = FakeStages(recording(1, 2))
        transcript = by_attention(fake, **changes)
        assert [s.words[0].start_s for s in transcript.segments] == [0.1, 1.1]
        assert (transcript.warnings, fake.calls["align"]) == ((), 0)


def test_an_aligner_that_has_the_language_is_more_exact() -> None:
    """Its word times replace the recogniser's."""
    assert [s.words[0].start_s for s in by_attention(FakeStages(recording(1))).segments] == [0.0]


@pytest.mark.parametrize(
    ("error", "codes"),
    [
        (ModelUnavailable("not yet", None, "alignment_downloading"), []),
        (ModelUnavailable("not here", None, "alignment_unavailable"), []),
        (RuntimeError("broken"), ["alignment_failed"]),
    ],
)
def test_no_word_times_are_lost_with_the_aligner(error: Exception, codes: list[str]) -> None:
    """The recogniser's are taken; that a model is missing or on its way is no news, a failure is."""
    transcript = by_attention(FakeStages(recording(1), fail={"align": error}))
    assert [s.words[0].start_s for s in transcript.segments] == [0.1]
    assert [warning.code for warning in transcript.warnings] == codes


def test_a_translation_has_no_word_times() -> None:
    """The English words were never spoken, so the recogniser is not asked for their times."""
    stages = replace(FakeStages(recording(1)).stages(), attention=True, align=None)
    transcript = asyncio.run(transcribe(stages, SOURCE, Options(task="translate")))
    assert [s.words for s in transcript.segments] == [()]


def test_a_failing_diarization_keeps_the_text() -> None:
    """The text comes back without speakers, and the inner error text stays inside."""
    transcript = run(FakeStages(recording(1), fail={"diarize": RuntimeError("secret path")}))
    assert [(s.text, s.speaker) for s in transcript.segments] == [("word1", None)]
    (warning,) = transcript.warnings
    assert (warning.stage, warning.code) == ("diarization", "diarization_failed")
    assert "secret" not in warning.message


def test_no_speaker_where_speakers_were_looked_for_is_a_warning() -> None:
    """A null is explained, with the diarizer's turns empty and text there; not where nobody asked."""

    async def nobody(*arguments: Any) -> Diarization:
        return Diarization((), ())

    stages = replace(FakeStages(recording(1, 2)).stages(), diarize=nobody)
    transcript = asyncio.run(transcribe(stages, SOURCE, Options()))
    assert [(s.text, s.speaker) for s in transcript.segments] == [("word1", None), ("word2", None)]
    assert [(w.stage, w.code) for w in transcript.warnings] == [("diarization", "no_speakers_found")]
    assert asyncio.run(transcribe(stages, SOURCE, Options(diarize=False))).warnings == ()
    silence = replace(FakeStages(recording(0)).stages(), diarize=nobody)
    assert asyncio.run(transcribe(silence, SOURCE, Options())).warnings == ()


async def never(*arguments: Any) -> Any:
    await asyncio.Event().wait()


def test_a_diarization_that_hangs_does_not_cost_the_text() -> None:
    """Shortly before the deadline the text goes without its speakers; turns alone are not to be had."""
    stages = replace(FakeStages(recording(1, 2)).stages(), diarize=never)

    def before_deadline(**options: Any) -> Transcript:
        running = transcribe(stages, SOURCE, Options(**options), limit_s=0.5)
        return asyncio.run(asyncio.wait_for(running, 10))

    transcript = before_deadline()
    assert [(s.text, s.speaker) for s in transcript.segments] == [("word1", None), ("word2", None)]
    (warning,) = transcript.warnings
    assert (warning.stage, warning.code) == ("diarization", "diarization_timeout")
    assert "Segments have no speakers." in warning.message
    with pytest.raises(DeadlineExceeded):
        before_deadline(response_format="rttm")


def test_rttm_fails_with_its_diarization() -> None:
    """Who wants turns alone gets the error, not a file that says that nobody spoke."""
    for error in (ModelUnavailable("Gone."), RuntimeError("broken")):
        with pytest.raises(type(error)):
            run(FakeStages(recording(1), fail={"diarize": error}), response_format="rttm")
    transcript = run(FakeStages(recording(1, 0, 2)), response_format="rttm")
    assert [turn.speaker for turn in transcript.turns] == ["SPEAKER_01", "SPEAKER_00"]


def test_rttm_needs_a_diarization_model() -> None:
    """Where the server has none it is a 400 that names the option, before any work."""
    fake = FakeStages(recording(1))
    with pytest.raises(InvalidRequest, match="response_format") as caught:
        run(fake, diarizes=False, response_format="rttm")
    assert (caught.value.param, caught.value.code) == ("response_format", "diarization_unavailable")
    assert fake.calls["asr"] == 0


@pytest.mark.parametrize(
    ("stage", "code"), [("align", "alignment_failed"), ("diarize", "diarization_failed")]
)
def test_what_keeps_failing_is_a_warning(stage: str, code: str) -> None:
    """After the last retry as after any other failure: one code for each of the two stages."""
    error = Overloaded(f"The {code.partition('_')[0]} stage keeps failing; try again later.", None, code)
    transcript = run(FakeStages(recording(1, 2), fail={stage: error}))
    assert [segment.text for segment in transcript.segments] == ["word1", "word2"]
    assert [warning.code for warning in transcript.warnings] == [code]


@pytest.mark.parametrize(
    ("silent", "spoken", "codes"),
    [(6, 4, ["speech_without_text"]), (6, 30, []), (4, 1, []), (10, 0, ["speech_without_text"])],
)
def test_speech_that_came_to_no_text_is_a_warning(silent: int, spoken: int, codes: list[str]) -> None:
    """Where it is a good part of the file's speech, and some seconds of it."""
    fake = FakeStages(recording(*[1] * spoken, *[2] * silent))
    stages = fake.stages()

    async def hear(call: TranscribeCall) -> WindowText:
        text = await stages.transcribe(call)
        return text if call.window.start_s < spoken else replace(text, text=" ")

    deaf = replace(stages, transcribe=hear)
    transcript = asyncio.run(transcribe(deaf, SOURCE, Options(language="en")))
    assert len(transcript.segments) == spoken
    assert [warning.code for warning in transcript.warnings] == codes


def test_unusable_audio_is_the_callers_error() -> None:
    """What loading raised comes out as it is, whichever stage meets it first."""
    error = UnusableAudio("not audio")
    with pytest.raises(UnusableAudio, match="not audio"):
        run(FakeStages(recording(1), fail={"speech": error, "diarize": error}))


def test_asking_for_speakers_where_there_is_no_model_is_refused() -> None:
    """diarize=true or a speaker count without a model is a 400 that says what to do."""
    for options in ({"diarize": True}, {"num_speakers": 2}):
        with pytest.raises(InvalidRequest, match=r"diarization\.model"):
            run(FakeStages(recording(1)), diarizes=False, **options)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"known_speaker_names": ["Ada"], "known_speaker_references": [ADA]}, "known_speaker_names"),
        ({"split_at_speaker_change": True}, "split_at_speaker_change"),
        ({"max_speakers": 2}, "max_speakers"),
    ],
)
def test_what_needs_a_diarization_model_is_named(options: dict[str, Any], param: str) -> None:
    """The error's parameter is the option that cannot be honoured."""
    with pytest.raises(InvalidRequest, match=f"leave out {param}") as caught:
        run(FakeStages(recording(1)), diarizes=False, **options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({"num_speakers": 3}, SpeakerBounds(3)),
        ({"min_speakers": 2, "max_speakers": 5}, SpeakerBounds(None, 2, 5)),
        ({}, SpeakerBounds()),
    ],
)
def test_the_number_of_speakers_reaches_the_diarizer(options: dict[str, Any], bounds: SpeakerBounds) -> None:
    """As it was asked for."""
    asked: list[SpeakerBounds] = []

    class Told(FakeStages):
        async def _diarize(self, call: DiarizeCall) -> Diarization:
            asked.append(call.bounds)
            return await super()._diarize(call)

    run(Told(recording(1)), **options)
    assert asked == [bounds]


def test_known_speakers_have_their_names() -> None:
    """Turns, segments and words carry the name; another voice keeps its label."""
    transcript = run(
        FakeStages(recording(1, 2, 3)), known_speaker_names=["Ada"], known_speaker_references=[ADA]
    )
    assert [segment.speaker for segment in transcript.segments] == ["Ada", "SPEAKER_00", "Ada"]
    assert [s.words[0].speaker for s in transcript.segments] == ["Ada", "SPEAKER_00", "Ada"]
    assert [turn.speaker for turn in transcript.turns] == ["Ada", "SPEAKER_00", "Ada"]
    assert transcript.warnings == ()


@pytest.mark.parametrize("spoken", [(2, 4), (0, 0)])
def test_a_known_speaker_who_is_not_heard_is_a_warning(spoken: tuple[int, ...]) -> None:
    """The caller is told which of the names stands nowhere, in silence too."""
    transcript = run(
        FakeStages(recording(*spoken)), known_speaker_names=["Ada"], known_speaker_references=[ADA]
    )
    (warning,) = transcript.warnings
    assert (warning.stage, warning.code) == ("diarization", "known_speaker_not_found")
    assert "Ada" in warning.message


def test_a_reference_of_no_use_ends_the_request_at_once() -> None:
    """It is the caller's error, although the windows, which wait here, have no text yet."""
    error = UnusableAudio("references[0]: not audio", "known_speaker_references")
    fake = FakeStages(recording(1, 2), fail={"diarize": error})
    cancelled = asyncio.Event()

    async def transcribe_window(*arguments: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def scenario() -> None:
        stages = replace(fake.stages(), transcribe=transcribe_window)
        options = Options(known_speaker_names=["Ada"], known_speaker_references=[ADA])
        with pytest.raises(UnusableAudio, match=r"references\[0\]"):
            await asyncio.wait_for(transcribe(stages, SOURCE, options), 10)
        assert cancelled.is_set()

    asyncio.run(scenario())


def test_a_reference_that_is_no_data_url_is_refused_before_anything_is_loaded() -> None:
    """A request that cannot be honoured costs no decoder."""
    fake = FakeStages(recording(1))
    with pytest.raises(InvalidRequest) as caught:
        run(fake, known_speaker_names=["A", "B"], known_speaker_references=[ADA, "http://x/y.wav"])
    assert caught.value.param == "known_speaker_references"
    assert fake.loaded == []


def test_another_failure_of_diarization_still_keeps_the_text() -> None:
    """Known speakers do not turn a broken model into a failed request."""
    fake = FakeStages(recording(1), fail={"diarize": RuntimeError("broken")})
    transcript = run(fake, known_speaker_names=["Ada"], known_speaker_references=[ADA])
    assert [(s.text, s.speaker) for s in transcript.segments] == [("word1", None)]
    assert [warning.code for warning in transcript.warnings] == ["diarization_failed"]


def test_a_sentence_of_two_speakers_is_split_unless_that_is_switched_off() -> None:
    """One window in which both speak two words each."""
    stages = FakeStages(recording(1, 2)).stages()

    async def detect(call: DetectCall) -> Speech:
        return Speech((Window(0.0, 2.0),) if call.part.is_last else (), None, 2.0)

    async def align(*arguments: Any) -> Any:
        words = [Word(word, 0.5 * i, 0.5 * i + 0.4) for i, word in enumerate(["a", "b", "c", "d"])]
        return (Segment(0.0, 2.0, "a b c d", tuple(words)),)

    def texts(**options: Any) -> list[tuple[str, str | None]]:
        both = replace(stages, detect=detect, align=align)
        segments = asyncio.run(transcribe(both, SOURCE, Options(**options))).segments
        return [(segment.text, segment.speaker) for segment in segments]

    parts = [("a b", "SPEAKER_01"), ("c d", "SPEAKER_00")]
    assert texts() == texts(split_at_speaker_change=True) == parts
    assert texts(split_at_speaker_change=False) == [("a b c d", "SPEAKER_01")]


def test_diarization_is_off_on_request_or_without_a_model() -> None:
    """diarize=false, and a server without a model, give speakers of null."""
    fake = FakeStages(recording(1))
    assert run(fake, diarize=False).segments[0].speaker is None
    assert run(FakeStages(recording(1)), diarizes=False).segments[0].speaker is None
    assert fake.calls["diarize"] == 0


def test_translation_is_not_aligned() -> None:
    """English text is not aligned to speech in another language."""
    fake = FakeStages(recording(1, 2))
    transcript = run(fake, task="translate", language="de")
    assert fake.calls["align"] == 0
    assert [(s.start_s, s.end_s, s.words) for s in transcript.segments] == [(0.0, 1.0, ()), (1.0, 2.0, ())]


def test_windows_in_flight_are_bounded() -> None:
    """A long file never has more windows under way than the limit."""
    fake = FakeStages(recording(*range(1, 41)))
    asyncio.run(transcribe(fake.stages(windows_in_flight=5), SOURCE, Options(language="en")))
    assert fake.calls["asr"] == 40
    assert fake.most_in_flight == 5


def test_diarization_and_recognition_run_side_by_side() -> None:
    """Each waits for the other to have begun: one after the other would never end."""
    fake = FakeStages(recording(1))
    stages = fake.stages()
    both = asyncio.Event()
    begun: set[str] = set()

    async def meet(name: str) -> None:
        begun.add(name)
        if len(begun) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 5)

    async def transcribe_window(*arguments: Any) -> Any:
        await meet("asr")
        return await stages.transcribe(*arguments)

    async def diarize(*arguments: Any) -> Any:
        await meet("diarize")
        assert stages.diarize is not None
        return await stages.diarize(*arguments)

    async def scenario() -> Transcript:
        nonlocal both
        both = asyncio.Event()
        together = replace(stages, transcribe=transcribe_window, diarize=diarize)
        return await transcribe(together, SOURCE, Options())

    assert asyncio.run(scenario()).segments[0].speaker == "SPEAKER_01"


def test_a_failing_window_ends_the_request_and_its_siblings() -> None:
    """The error is raised at once: other windows and the search for speech are cancelled."""
    stages = FakeStages(recording(1, 2, 3, 4)).stages()
    cancelled: list[str] = []
    searching = asyncio.Event()

    async def until_cancelled(name: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    async def transcribe_window(call: TranscribeCall) -> Any:
        if call.window.start_s:
            await until_cancelled(f"window at {call.window.start_s:g}")
        await searching.wait()
        raise UnusableAudio("broken")

    async def detect(call: DetectCall) -> Speech:
        if call.part.is_last:
            searching.set()
            await until_cancelled("search")
        return await stages.detect(call)

    with pytest.raises(UnusableAudio, match="broken"):
        asyncio.run(
            transcribe(
                replace(stages, transcribe=transcribe_window, detect=detect),
                SOURCE,
                Options(language="en", diarize=False),
            )
        )
    assert sorted(cancelled) == ["search", "window at 1", "window at 2"]


def test_windows_are_transcribed_while_the_search_goes_on() -> None:
    """The search for speech waits for the first window's text here, so it must be under way already."""
    stages = FakeStages(recording(1, 2)).stages()
    aligned = asyncio.Event()

    async def align(*arguments: Any) -> Any:
        aligned.set()
        assert stages.align
        return await stages.align(*arguments)

    async def detect(call: DetectCall) -> Speech:
        if call.before:
            await asyncio.wait_for(aligned.wait(), 5)
        return await stages.detect(call)

    streamed = replace(stages, align=align, detect=detect)
    transcript = asyncio.run(transcribe(streamed, SOURCE, Options(language="en")))
    assert [segment.text for segment in transcript.segments] == ["word1", "word2"]


def test_a_request_that_waits_for_its_speakers_alone_says_so() -> None:
    """They take minutes for a long file; until they come, it must not look as if it hung."""
    stages, found = FakeStages(recording(1, 2)).stages(), asyncio.Event()
    diarize = stages.diarize
    assert diarize is not None

    async def late(call: DiarizeCall) -> Diarization:
        await found.wait()
        return await diarize(call)

    reports: list[Progress] = []

    def report(news: Progress) -> None:
        reports.append(news)
        if news.stage == "diarization":
            found.set()

    transcript = asyncio.run(
        asyncio.wait_for(transcribe(replace(stages, diarize=late), SOURCE, Options(), report), 60)
    )
    assert reports[-1] == Progress(2, 2, True, (), "diarization")
    assert {news.stage for news in reports[:-1]} == {"recognition"}
    assert {segment.speaker for segment in transcript.segments} == {"SPEAKER_00", "SPEAKER_01"}


def test_progress_is_reported_window_by_window_and_in_order() -> None:
    """Reported segments are the transcript's, in order and each once, although later windows end first."""
    stages = FakeStages(recording(1, 2, 3, 4)).stages(diarizes=False)
    reports: list[Progress] = []
    last_aligned = asyncio.Event()

    async def align(call: AlignCall) -> Any:
        if call.window.start_s == 0:
            await asyncio.wait_for(last_aligned.wait(), 5)
        if call.window.start_s == 3:
            last_aligned.set()
        assert stages.align
        return await stages.align(call)

    slow_first = replace(stages, align=align)
    transcript = asyncio.run(transcribe(slow_first, SOURCE, Options(language="en"), reports.append))
    assert [segment for report in reports for segment in report.segments] == list(transcript.segments)
    assert [report.windows_done for report in reports] == [1, 2, 3, 4]
    assert all(not report.segments for report in reports[:3])  # the first window is not there yet
    assert (reports[-1].windows_found, reports[-1].all_found) == (4, True)


@pytest.mark.parametrize("windows_in_flight", [1, 2])
def test_few_windows_in_flight_do_not_stop_the_vote(windows_in_flight: int) -> None:
    """Voters that wait for each other's languages keep no place that the others need."""
    fake = FakeStages(recording(1, 2, 3, 4, 5))
    stages = fake.stages(windows_in_flight=windows_in_flight)
    transcript = asyncio.run(asyncio.wait_for(transcribe(stages, SOURCE, Options()), 10))
    assert len(transcript.segments) == 5


def test_a_window_that_vanishes_fails_the_request() -> None:
    """Nothing that was said is left out silently."""
    stages = FakeStages(recording(1, 2)).stages(diarizes=False)

    async def vanish(call: TranscribeCall) -> WindowText:
        if call.window.start_s:
            raise asyncio.CancelledError
        return await stages.transcribe(call)

    with pytest.raises(RuntimeError, match="without its text"):
        asyncio.run(transcribe(replace(stages, transcribe=vanish), SOURCE, Options(language="en")))


def test_every_part_is_searched_as_the_request_wants() -> None:
    """What it leaves out is as configured; windows are short only where segments have no words."""
    asked: dict[str, Any] = {
        "vad_onset": 0.7,
        "vad_offset": 0.3,
        "vad_min_silence_s": 0.5,
        "max_segment_s": 5.0,
    }
    for more, window_s in (
        ({}, None),
        ({"align": False}, 4.999),
        ({"task": "translate"}, 4.999),
    ):
        fake = FakeStages(recording(1, 0, 2))
        run(fake, **asked, **more)
        assert fake.searches == [SpeechSearch(0.7, 0.3, 0.5, window_s)] * 3
    fake = FakeStages(recording(1))
    stages = replace(fake.stages(), align=None)
    asyncio.run(transcribe(stages, SOURCE, Options.model_validate(asked)))
    assert fake.searches == [SpeechSearch(0.7, 0.3, 0.5, 4.999)]


@pytest.mark.parametrize("more", [{"align": False}, {"task": "translate"}])
def test_short_segments_cost_no_more_than_windows_of_five_seconds(more: dict[str, Any]) -> None:
    """Each window takes the recogniser's whole time; below, its text is divided by its length."""

    class Long(FakeStages):
        async def _transcribe(self, call: TranscribeCall) -> WindowText:
            return replace(await super()._transcribe(call), text="aaaa bbbb cccc dddd")

    fake = Long(recording(1, 1, 1, 1))
    stages = fake.stages(diarizes=False)
    options = Options.model_validate({"max_segment_s": 1.0, "language": "en", **more})
    transcript = asyncio.run(transcribe(stages, SOURCE, options))
    assert {search.window_s for search in fake.searches} == {4.999}
    assert all(segment.end_s - segment.start_s <= 1.0 for segment in transcript.segments)


def test_without_alignment_no_stage_gives_word_times() -> None:
    """The segments are the windows, and neither the recogniser nor the Aligner is asked for words."""

    class Told(FakeStages):
        told: tuple[bool, ...] = ()

        async def _transcribe(self, call: TranscribeCall) -> WindowText:
            self.told += (call.word_times,)
            return await super()._transcribe(call)

    for align in (True, False):
        fake = Told(recording(1, 2))
        stages = replace(fake.stages(), attention=True)
        transcript = asyncio.run(transcribe(stages, SOURCE, Options(align=align)))
        assert set(fake.told) == {align}
        assert fake.calls["align"] == 2 * align
        assert [(s.start_s, s.end_s, s.text, bool(s.words)) for s in transcript.segments] == [
            (0.0, 1.0, "word1", align),
            (1.0, 2.0, "word2", align),
        ]
        assert transcript.warnings == ()


class Talkative(FakeStages):
    """Hears a sentence of 20 words in the first 4 s, with a pause after the seventh."""

    async def _align(self, call: AlignCall) -> tuple[Segment, ...]:
        starts_s = [0.15 * n + (n > 6) for n in range(20)]
        words = tuple(Word(f"w{n}", s, round(s + 0.1, 3), 0.9) for n, s in enumerate(starts_s))
        return (Segment(0.0, 4.0, " ".join(word.text for word in words), words),)


def test_segments_are_split_where_they_are_longer_than_asked_for() -> None:
    """At the pause, with speakers for each part, in what is reported as in the transcript."""
    fake = Talkative(recording(1))
    reports: list[Progress] = []
    options = Options(max_segment_s=3.0)
    transcript = asyncio.run(transcribe(fake.stages(), SOURCE, options, reports.append))
    parts = [(segment.text.split()[0], segment.text.split()[-1]) for segment in transcript.segments]
    assert parts == [("w0", "w6"), ("w7", "w19")]
    assert all(segment.end_s - segment.start_s <= 3.0 for segment in transcript.segments)
    assert all(segment.speaker and segment.source_text for segment in transcript.segments)
    assert [s.text for report in reports for s in report.segments] == [s.text for s in transcript.segments]
    (whole,) = run(Talkative(recording(1))).segments
    assert whole.text == " ".join(segment.text for segment in transcript.segments)


def test_words_have_characters_where_asked_for() -> None:
    """Only then, from the Aligner; a word that it did not align has none, with a warning."""
    asked = {"char_timestamps": True, "word_timestamps": True}
    transcript = run(FakeStages(recording(1)), **asked)
    (word,) = transcript.segments[0].words
    assert "".join(char.text for char in word.chars) == "word1"
    assert transcript.warnings == ()
    assert run(FakeStages(recording(1))).segments[0].words[0].chars == ()
    for languages, has_chars in ((["en"], True), (["de"], False)):
        fake = FakeStages(recording(1))
        stages = replace(fake.stages(), attention=True, aligner_languages=languages)
        options = Options.model_validate({**asked, "language": "en"})
        transcript = asyncio.run(transcribe(stages, SOURCE, options))
        assert bool(transcript.segments[0].words[0].chars) == has_chars
        codes = [warning.code for warning in transcript.warnings]
        assert codes == [] if has_chars else ["char_timestamps_missing"]
