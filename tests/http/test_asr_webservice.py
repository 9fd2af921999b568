"""whisper-asr-webservice's routes, asked as real clients ask, over real decoding and fake models."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from fakes import FakeAudio, FakeStages, recording
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import silence, tone, wav

from benchmarks.decoding import decode_whole
from serve_app.audio import Source
from serve_app.errors import InvalidRequest, Overloaded
from serve_app.http.app import create_app
from serve_app.http.asr_webservice.request import AsrFields, parse_asr
from serve_app.http.model_names import ModelNames
from serve_app.options import Options
from serve_app.request import pipeline
from serve_app.request.without_text import DetectedLanguage, detect_language
from serve_app.settings.access import AccessSettings
from serve_app.settings.openai import OpenAISettings
from serve_app.transcript import Transcript

TALK = recording(1, 2, 0, 3)  # three windows, of two speakers by turns
S16LE = TALK.astype("<i2").tobytes()
SRT = (
    "1\n00:00:00,000 --> 00:00:01,000\nword1\n\n"
    "2\n00:00:01,000 --> 00:00:02,000\nword2\n\n"
    "3\n00:00:03,000 --> 00:00:04,000\nword3\n\n"
)
BAZARR = {"User-Agent": "Subliminal/2.2.1", "Accept-Encoding": "gzip, deflate", "Accept": "*/*"}


MODELS = ModelNames("large-v2", OpenAISettings().names())


class Server:
    """The application over fake models; files are decoded by ffmpeg, as they are in the graph."""

    def __init__(self, aliases: Any = None, **access: Any) -> None:
        self.fake = FakeStages(TALK)
        self.stages = replace(self.fake.stages(), load=self.load)
        self.sources: list[Source] = []
        self.asked: list[Options] = []
        self.looked_at: list[Options] = []  # for a language alone
        self.app = create_app(
            self.transcribe,
            self.readiness,
            model="large-v2",
            max_bytes=1 << 20,
            access=AccessSettings(**access),
            openai=OpenAISettings(aliases=aliases or {}),
            detect_language=self.detect,
        )

    @asynccontextmanager
    async def load(self, source: Source) -> AsyncIterator[FakeAudio]:
        self.sources.append(source)
        assert source.file is not None
        _, samples = await decode_whole(source.file, max_audio_s=60, timeout_s=30, raw=source.raw)
        yield FakeAudio(samples)

    async def transcribe(self, source: Source, options: Options, report: Any = None) -> Transcript:
        self.asked.append(options)
        return await pipeline.transcribe(self.stages, source, options)

    async def detect(self, source: Source, options: Options) -> DetectedLanguage:
        self.looked_at.append(options)
        return await detect_language(self.stages, source, options)

    async def readiness(self) -> dict[str, bool]:
        return {}

    def send(
        self, method: str, url: str, client: str = "127.0.0.1", host: str = "127.0.0.1:9000", **kwargs: Any
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(client, 1))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
                return await http.request(method, f"http://{host}{url}", **kwargs)

        return asyncio.run(send())

    def asr(self, query: str = "", file: bytes = S16LE, name: str = "talk.wav") -> httpx.Response:
        """Sends a WAV file of these samples, as most clients do."""
        content = wav(TALK) if file is S16LE else file
        return self.send("POST", f"/asr{query}", files={"audio_file": (name, content, "audio/wav")})


def bazarr(server: Server, path: str, body: bytes = S16LE, **params: str) -> httpx.Response:
    """A request of Bazarr: a part named after itself, without a type, and the options in the URL."""
    files = {"audio_file": ("audio_file", body)}
    return server.send("POST", path, params=params, files=files, headers=BAZARR)


def test_bazarr_gets_subtitles_of_headerless_samples() -> None:
    """Bazarr's download_subtitle.

    morpheus65535/bazarr, custom_libs/subliminal_patch/providers/whisperai.py at 1029a81: s16le, 16 kHz, mono
    from ffmpeg's stdout; it keeps `r.content` as the SRT.
    """
    server = Server()
    answer = bazarr(server, "/asr", task="transcribe", language="en", output="srt", encode="false")
    assert (answer.status_code, answer.text) == (200, SRT)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["asr-engine"] == "whisperx"
    assert answer.headers["content-disposition"] == 'attachment; filename="audio_file.srt"'
    assert server.asked == [Options(language="en", response_format="srt", diarize=False)]
    assert server.fake.calls["diarize"] == 0


def test_bazarr_may_send_the_videos_name_and_two_slashes() -> None:
    """Newer ones name the video for the log; an address with a slash at its end gives two.

    LavX/bazarr, the same file at 9108ee0: `video_file`; subgen has the routes `//asr` for older ones.
    """
    params = {"task": "translate", "language": "de", "output": "srt", "encode": "false"}
    answer = bazarr(Server(), "//asr", S16LE, **params, video_file="/tv/Show/S01E01 [x&y].mkv")
    assert answer.status_code == 200
    assert answer.text.startswith("1\n00:00:00,000 --> ")


@pytest.mark.parametrize("path", ["/detect-language", "//detect-language"])
def test_bazarr_detects_a_language(path: str) -> None:
    """Its detect_language reads `language_code` and `detected_language`; nothing is transcribed for that."""
    server = Server()
    server.fake.languages, server.fake.certainties = {0.0: "de", 1.0: "de", 3.0: "nl"}, {0.0: 0.95}
    answer = bazarr(server, path, encode="false", video_file="/tv/x.mkv")
    assert answer.json() == {"detected_language": "german", "language_code": "de", "confidence": 0.5833}
    assert (server.fake.calls["language"], server.fake.calls["asr"]) == (3, 0)


def test_bazarr_is_told_that_nothing_was_spoken() -> None:
    """Newer ones know `und`: "detected undefined language" (9108ee0)."""
    answer = bazarr(Server(), "/detect-language", silence(2).tobytes(), encode="false")
    assert answer.json() == {"detected_language": "unknown", "language_code": "und", "confidence": 0.0}


@pytest.mark.parametrize(
    ("body", "params", "status", "code"),
    [
        (S16LE[:-1], {"encode": "false"}, 400, "invalid_request"),
        (b"", {"encode": "false"}, 422, "empty_audio"),
        (b"no audio at all", {}, 422, "undecodable_audio"),
        (S16LE, {"encode": "false", "output": "ass"}, 400, "invalid_request"),
        (S16LE, {"encode": "false", "language": "xx"}, 400, "invalid_request"),
        (S16LE, {"encode": "false", "model": "large-v3"}, 404, "model_not_found"),
    ],
)
def test_an_error_leaves_bazarr_nothing_to_keep(
    body: bytes, params: dict[str, str], status: int, code: str
) -> None:
    """It looks at no status and keeps any text as the subtitles, so headers say what is wrong."""
    answer = bazarr(Server(), "/asr", body, **params)
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers["x-error-code"] == code
    assert len(answer.headers["x-error-message"]) > 20


def test_errors_of_all_kinds_have_no_text() -> None:
    """A full server, a missing key, a wrong method and a bug answer /asr alike."""
    server = Server()
    for error, status in ((Overloaded("Full."), 503), (RuntimeError("a bug"), 500)):
        server.fake.fail = {"speech": error}
        answer = server.asr()
        assert (answer.status_code, answer.content) == (status, b"")
    assert server.send("GET", "/asr").content == b""
    locked = Server(keys=({"name": "a", "sha256": "0" * 64},))
    answer = locked.asr()
    assert (answer.status_code, answer.content) == (401, b"")
    assert answer.headers["x-error-code"] == "missing_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_errors_of_detect_language_have_text() -> None:
    """Bazarr parses that answer as JSON, and takes one without `language_code` for no language."""
    answer = bazarr(Server(), "/detect-language", S16LE[:-1], encode="false")
    assert answer.status_code == 400
    assert "no multiple of 2" in answer.json()["error"]["message"]
    assert "language_code" not in answer.json()


def speakr(server: Server, **params: Any) -> httpx.Response:
    """A request of Speakr's ASR connector, which httpx sends."""
    params = {"encode": True, "task": "transcribe", "output": "json", **params}
    files = {"audio_file": ("meeting 1.wav", wav(TALK), "application/octet-stream")}
    return server.send("POST", "/asr", params=params, files=files)


def test_speakr_gets_speakers() -> None:
    """Speakr's transcribe with speakers.

    murtaza-nasir/speakr, src/services/transcription/connectors/asr_endpoint.py at 085dcba: it reads `text`,
    `language` and of each segment `speaker`, `text`, `start`, `end`, whatever the type of the answer.
    """
    server = Server()
    asked = {"diarize": True, "enable_diarization": True, "min_speakers": 1, "max_speakers": 4}
    prompts = {"initial_prompt": "A meeting.", "hotwords": "Speakr, Ada"}
    answer = speakr(server, **asked, **prompts, language="en", model="whisper-1")
    assert answer.status_code == 200
    assert answer.json() == {
        "text": "word1 word2 word3",
        "language": "en",
        "segments": [
            {"start": 0.0, "end": 1.0, "text": "word1", "speaker": "SPEAKER_01"},
            {"start": 1.0, "end": 2.0, "text": "word2", "speaker": "SPEAKER_00"},
            {"start": 3.0, "end": 4.0, "text": "word3", "speaker": "SPEAKER_01"},
        ],
    }
    assert server.asked[0] == Options(language="en", diarize=True, min_speakers=1, max_speakers=4, **prompts)
    assert answer.headers["content-disposition"] == 'attachment; filename="meeting%201.wav.json"'


def test_speakr_gets_a_text_without_speakers() -> None:
    """It sends its bounds although it wants no speakers; then they have nothing to bound."""
    server = Server()
    answer = speakr(server, diarize=False, enable_diarization=False, min_speakers=2, max_speakers=3)
    assert [*answer.json()["segments"][0]] == ["start", "end", "text"]
    assert server.asked == [Options(diarize=False)]


def test_speakr_builds_its_voice_profiles() -> None:
    """It asks for embeddings with speakers only, and keeps `speaker_embeddings`: label -> list of numbers.

    Its matcher leaves out a label without a list, and compares vectors of one length only.
    """
    server = Server()
    answer = speakr(server, diarize=True, enable_diarization=True, return_speaker_embeddings=True).json()
    assert answer["speaker_embeddings"] == {"SPEAKER_00": [1.0, 0.0], "SPEAKER_01": [1.0, 1.0]}
    assert answer["embedding_model"] == {"name": "fake", "dimension": 2}
    assert server.asked == [Options(diarize=True, embeddings=True)]
    assert server.asr("?output=json&diarize=true&embeddings=true").json() == answer
    assert "speaker_embeddings" not in server.asr("?output=json&diarize=true").json()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("output=json&return_speaker_embeddings=true", "return_speaker_embeddings: needs diarize"),
        (
            "output=srt&diarize=true&return_speaker_embeddings=true",
            "return_speaker_embeddings: output=srt",
        ),
        ("output=srt&diarize=true&embeddings=true", "embeddings: output=srt has no embeddings"),
    ],
)
def test_embeddings_without_a_place_are_refused(query: str, says: str) -> None:
    """By the name that the client sent."""
    refused = Server().asr(f"?{query}")
    assert (refused.status_code, refused.headers["x-error-message"][: len(says)]) == (400, says)


def test_speakr_probes_the_server() -> None:
    """Its health_check asks /health, its list_models reads `data[].id`."""
    server = Server()
    assert server.send("GET", "/health").status_code == 200
    assert "whisper-1" in [each["id"] for each in server.send("GET", "/v1/models").json()["data"]]
    assert Server(keys=({"name": "a", "sha256": "0" * 64},)).send("GET", "/health").status_code == 200


def test_clients_of_subgen_are_answered() -> None:
    """SubGen's own query names are left alone, its default for `output` is ours.

    McCloudS/subgen, subgen.py: `video_file`, `detect_lang_length`, `detect_lang_offset`; the part's name and
    type as its tests/test_endpoints.py at e6962c3 sends them.
    """
    server, files = Server(), {"audio_file": ("test.wav", wav(TALK), "audio/wav")}
    query = "?encode=true&video_file=%2Fdata%2Fx.mp4&detect_lang_length=30&detect_lang_offset=0"
    assert server.send("POST", f"/detect-language{query}", files=files).json()["language_code"] == "en"
    assert server.send("POST", "/asr?output=srt", files=files).text == SRT
    assert server.send("POST", "/asr", files=files).text == "word1\nword2\nword3\n"


def test_obsidian_gets_a_text() -> None:
    """Obsidian Transcription writes its form by hand.

    djmango/obsidian-transcription, src/transcribe.ts at 029afd3 and payloadGenerator in src/utils.ts at
    05d1afd: the part's type is in quotes. It takes `response.text` for the transcript.
    """
    head = 'Content-Disposition: form-data; name="audio_file"; filename="blob"\r\n'
    head += 'Content-Type: "application/octet-stream"\r\n\r\n'
    edge = "------Boundary0123456789abcdef"
    body = f"{edge}\r\n{head}".encode() + wav(TALK) + f"\r\n{edge}--\r\n".encode()
    kind = "multipart/form-data; boundary=----Boundary0123456789abcdef"
    answer = Server().send(
        "POST", "/asr?task=transcribe&language=en", content=body, headers={"Content-Type": kind}
    )
    assert (answer.status_code, answer.text) == (200, "word1\nword2\nword3\n")


def test_the_example_of_its_documentation_works() -> None:
    """The curl command that Swagger UI shows, as copied into n8n flows and apps: it names every default."""
    answer = Server().asr("?encode=true&task=transcribe&vad_filter=false&word_timestamps=false&output=txt")
    assert (answer.status_code, answer.text) == (200, "word1\nword2\nword3\n")
    assert [each["code"] for each in json.loads(answer.headers["x-warnings"])] == ["vad_filter_always"]


def test_words_have_times() -> None:
    """`word_timestamps=true` adds `words` to json; a text is the same: its words have times anyway."""
    server = Server()
    words = server.asr("?output=json&word_timestamps=true").json()["segments"][0]["words"]
    assert words == [{"word": "word1", "start": 0.0, "end": 1.0, "score": 0.9}]
    spoken = server.asr("?output=json&word_timestamps=true&diarize=true").json()["segments"][0]["words"]
    assert spoken[0]["speaker"] == "SPEAKER_01"
    assert server.asr("?output=srt&word_timestamps=true").text == SRT
    (spelled,) = server.asr("?output=json&word_timestamps=true&char_timestamps=true").json()["segments"][0][
        "words"
    ]
    assert "".join(char["char"] for char in spelled["chars"]) == "word1"


def test_speakers_stand_in_every_output_that_has_them() -> None:
    """As whisperx writes them; tsv has none, and says so."""
    server = Server()
    assert server.asr("?diarize=true").text.startswith("[SPEAKER_01]: word1\n")
    assert "[SPEAKER_00]: word2" in server.asr("?diarize=true&output=srt").text
    assert "<v SPEAKER_00>word2" in server.asr("?diarize=true&output=vtt").text
    assert server.asr("?output=tsv").text.startswith("start\tend\ttext\n0\t1000\tword1\n")
    assert server.asr("?diarize=true&output=tsv").status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "?diarize=true&enable_diarization=false",
        "?min_speakers=2",
        "?diarize=perhaps",
        "?task=translate&word_timestamps=true",
        "?response_format=srt",
        "?language=en&language=de",
        "?max_line_width=40",
        "?vad_parameters={}",
        "?vad_onset=0.2&vad_offset=0.3",
        "?align=false&word_timestamps=true",
        "?align=false&word_timestamps=true&output=json",
        "?char_timestamps=true&output=json",
        "?char_timestamps=true&word_timestamps=true&output=srt",
    ],
)
def test_what_is_known_and_not_honoured_is_refused(query: str) -> None:
    """No option is accepted and ignored: a sentence names it as the client sent it."""
    answer = Server().asr(query)
    assert answer.status_code == 400
    message = answer.headers["x-error-message"]
    assert message.split(":")[0] in query
    assert "response_format=" not in message
    outputs = message.rstrip(".").partition("use one of ")[2].split(", ")
    assert {*outputs} <= {"", "txt", "text", "vtt", "srt", "tsv", "json"}


def test_a_models_name_stands_for_the_same_as_at_openais_routes() -> None:
    """With its options, of which those that the output cannot show give way, as does the format."""
    talk = {"diarize": True, "language": "de", "response_format": "diarized_json", "prompt": "x"}
    server = Server({"talk": talk})
    assert server.asr("?model=talk&output=srt").text.count("[SPEAKER_0") == 3
    assert server.asr("?model=talk&output=tsv&language=en").status_code == 200
    assert server.asr("?output=srt").text == SRT
    assert server.asked == [
        Options(response_format="srt", diarize=True, language="de"),
        Options(response_format="tsv", diarize=False, language="en"),
        Options(response_format="srt", diarize=False),
    ]


def test_an_error_about_what_a_models_name_stands_for_names_the_model() -> None:
    """The client has sent no language that it could mend."""
    server = Server({"talk": {"language": "yue"}})
    server.fake.fail = {"asr": InvalidRequest("language: the model does not know yue.", "language")}
    message = server.asr("?model=talk").headers["x-error-message"]
    assert message.endswith("The model talk stands for language; send another language, or another model.")
    assert "stands for" not in server.asr("?model=talk&language=yue").headers["x-error-message"]


def test_log_probabilities_stand_in_json() -> None:
    """Those of the recogniser's tokens, as /predict shows them; no other output has a place for them."""
    server = Server()
    answer = server.asr("?output=json&logprobs=true").json()
    assert "".join(each["token"] for each in answer["logprobs"]) == " word1 word2 word3"
    assert "logprobs" not in server.asr("?output=json").json()
    refused = server.asr("?output=srt&logprobs=true")
    assert refused.status_code == 400
    assert refused.headers["x-error-message"].startswith("logprobs: output=srt has no log-probabilities")


def test_words_and_segments_have_what_was_asked_for() -> None:
    """The recogniser's confidence, and languages; `confidence` is refused where no words are shown."""
    server = Server()
    server.fake.languages = {0.0: "de", 1.0: "en", 3.0: "de"}
    asked = "?output=json&word_timestamps=true&confidence=true&language=multiple&beam_size=2"
    answer = server.asr(asked).json()
    assert [segment["language"] for segment in answer["segments"]] == ["de", "en", "de"]
    assert [each["code"] for each in answer["languages"]] == ["de", "en"]
    assert all(word["confidence"] == 0.29 for segment in answer["segments"] for word in segment["words"])
    assert {(each.beam_size, each.own_languages) for each in server.fake.decodings} == {(2, True)}
    assert server.asr("?output=json&confidence=true").status_code == 400


def test_a_detected_language_is_one_of_those_that_it_may_be() -> None:
    """With `languages`, in any of their names; another name is a 400."""
    server = Server()
    server.fake.languages = dict.fromkeys((0.0, 1.0, 3.0), "en")

    def detected(query: str) -> httpx.Response:
        files = {"audio_file": ("a.wav", wav(TALK))}
        return server.send("POST", f"/detect-language{query}", files=files)

    assert detected("").json()["language_code"] == "en"
    assert detected("?languages=German,nl").json()["language_code"] == "de"
    assert detected("?languages=de&start_s=1&track=1&vad_onset=0.9&model=whisper-1").status_code == 200
    assert server.looked_at[-1] == Options(languages=("de",), start_s=1, track=1, vad_onset=0.9)
    assert detected("?model=small").status_code == 404
    refused = detected("?languages=klingon")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "languages")


@pytest.mark.parametrize(
    "query",
    ["task=translate", "channels=speakers", "output=srt", "beam_size=2", "encode=false&encoding=mulaw"],
)
def test_options_without_a_meaning_for_a_language_are_refused(query: str) -> None:
    """By name; only names that this server does not know are ignored."""
    files = {"audio_file": ("a.wav", wav(TALK))}
    answer = Server().send("POST", f"/detect-language?{query}", files=files)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert f"{error['param']}=" in query
    if error["param"] != "encoding":  # which is an option, but not of samples that have a header
        listed = error["message"].partition("has only")[2]
        assert {"encode", "model", "languages"} <= set(re.findall(r"\w+", listed))


@pytest.mark.parametrize("query", ["?languages=de,nl", "?languages=de&languages=Dutch"])
def test_one_of_the_allowed_languages_is_chosen(query: str) -> None:
    """The speech sounds English, which is none of them."""
    server = Server()
    server.fake.languages = dict.fromkeys((0.0, 1.0, 3.0), "en")
    assert server.asr(f"{query}&output=json&temperature_inc=0").json()["language"] == "de"
    assert server.asked == [Options(languages=("de", "nl"), temperature_inc=0, diarize=False)]


def test_options_may_stand_in_the_form() -> None:
    """Some clients put text next to the file, where whisper-asr-webservice itself does not look."""
    server = Server()
    files = {"audio_file": ("a.wav", wav(TALK)), "initial_prompt": (None, "Names: Ada.")}
    assert server.send("POST", "/asr?output=srt", files=files).status_code == 200
    assert server.asked[0].initial_prompt == "Names: Ada."


def test_a_header_is_no_place_for_options() -> None:
    """As on every other route."""
    files = {"audio_file": ("a.wav", wav(TALK))}
    answer = Server().send("POST", "/asr", files=files, headers={"Initial-Prompt": "x"})
    assert "not as the header" in answer.headers["x-error-message"]


def test_a_wav_file_is_no_noise_where_samples_are_announced() -> None:
    """`encode=false` with a file all the same: its header says what it is, here 48 kHz and two channels."""
    talk = recording(300, 300).repeat(3)
    server = Server()
    answer = server.asr("?encode=false", wav(talk.reshape(-1, 1).repeat(2, axis=1), 48_000))
    assert answer.text == "word300\nword300\n"
    assert server.sources[0].raw is None


def test_the_part_needs_its_name() -> None:
    """OpenAI's name for it is another one; the sentence says which it is here."""
    answer = Server().send("POST", "/asr", files={"file": ("a.wav", wav(tone(0.1)))})
    assert answer.status_code == 400
    assert "audio_file" in answer.headers["x-error-message"]


TEXT = st.text("abcdefghijklmnopqrstuvwxyz_-.0123456789", min_size=1, max_size=20)
KNOWN = {*Options.model_fields, *AsrFields.model_fields}


@given(st.lists(st.tuples(TEXT.filter(lambda name: name.partition("[")[0] not in KNOWN), TEXT), max_size=5))
@settings(max_examples=50)
def test_unknown_names_change_nothing(others: list[tuple[str, str]]) -> None:
    """Clients add names of other servers, once or twice; the request is what it is without them."""
    query = [("language", "de"), ("output", "srt")]
    assert parse_asr([*others, *query], MODELS, []) == parse_asr(query, MODELS, [])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "task": st.sampled_from(["transcribe", "translate"]),
            "language": st.sampled_from(["de", "German", "pt-BR", "auto"]),
            "temperature": st.sampled_from(["0", "0.5"]),
            "hotwords": TEXT,
            "initial_prompt": TEXT,
        },
    )
)
@settings(max_examples=50)
def test_our_own_options_mean_the_same_here(sent: dict[str, str]) -> None:
    """Each option has one meaning, whichever route it comes by."""
    asked = parse_asr([*sent.items(), ("output", "json")], MODELS, [])
    assert asked.options == Options.model_validate({**sent, "diarize": False})


def test_a_lan_needs_no_key() -> None:
    """Bazarr in another container, by the service's name, at a server whose operator trusts that network."""
    server = Server(trusted_networks=("172.18.0.0/16",))
    query = urlencode({"task": "transcribe", "language": "en", "output": "srt", "encode": "false"})
    files = {"audio_file": ("audio_file", S16LE)}
    inside = server.send("POST", f"/asr?{query}", client="172.18.0.7", host="whisperx:8000", files=files)
    assert inside.text == SRT
    outside = server.send("POST", f"/asr?{query}", client="203.0.113.9", host="whisperx:8000", files=files)
    assert (outside.status_code, outside.content) == (403, b"")
