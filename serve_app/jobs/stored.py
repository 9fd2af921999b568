"""What the store keeps as text and bytes: a job's request, and its transcript."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from serve_app.errors import InvalidRequest, Overloaded
from serve_app.formats.table import FORMATS
from serve_app.options import Options
from serve_app.options.validation import validate_or_400
from serve_app.transcript import Transcript

_TRANSCRIPT: TypeAdapter[Transcript] = TypeAdapter(Transcript)


class OtherVersion(Overloaded, code="job_of_other_version"):
    """A job has options that this version does not know: it is for runners of the version that stored it."""

    retry_after_s = 30


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job's request without the URL and headers that fetch its audio, which are stored encrypted."""

    options: Options
    audio: str  # the URL as it may be shown, without its query; or "upload"
    echo: Mapping[str, Any] = field(default_factory=dict)  # what another API's answers repeat

    @property
    def to_run(self) -> Options:
        """The options to run with: speakers are found for any format, because clients can change it later."""
        if FORMATS[self.options.response_format].has_speakers:
            return self.options
        return self.options.model_copy(update={"response_format": "json"})

    def dump(self) -> str:
        """The text for the store."""
        options = self.options.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"options": options, "audio": self.audio, "echo": dict(self.echo)})

    @classmethod
    def load(cls, text: str) -> "JobRequest":
        """What `dump` gave, also of an older version. Raises OtherVersion."""
        kept = json.loads(text)
        try:
            options = validate_or_400(Options, kept["options"])
        except InvalidRequest as error:
            raise OtherVersion(f"The job's options are of another version: {error.message}") from None
        return cls(options, kept["audio"], kept["echo"])


def dump_transcript(transcript: Transcript) -> bytes:
    """The transcript as JSON. This can take seconds: call it in a thread."""
    # Not the adapter's own JSON: that turns NaN into null, which is no float.
    return json.dumps(to_jsonable_python(transcript, inf_nan_mode="constants")).encode()


def load_transcript(stored: bytes) -> Transcript:
    """The transcript that `dump_transcript` gave, also of an older version."""
    kept = json.loads(stored)
    if "tokens" not in kept:  # each segment had those of its whole window
        windows: dict[str, list[Any]] = {}  # two channels may have equal windows, with other tokens
        for segment in kept["segments"]:
            tokens = (segment["source_text"] or {}).pop("tokens", [])
            if tokens not in (texts := windows.setdefault(str(segment["window"]), [])):
                texts.append(tokens)
        kept["tokens"] = [token for texts in windows.values() for tokens in texts for token in tokens]
    return _TRANSCRIPT.validate_python(kept)
