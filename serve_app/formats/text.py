"""Old names, until http.app, http.responses and http.schemas ask `formats.table`."""

from serve_app.formats.subtitles import SubtitleLayout
from serve_app.formats.table import FORMATS
from serve_app.transcript import Transcript

PLAIN = SubtitleLayout()
MEDIA_TYPES: dict[str, str] = {name: entry.media_type for name, entry in FORMATS.items() if entry.write}


def rendered(transcript: Transcript, response_format: str, layout: SubtitleLayout = PLAIN) -> str:
    """The transcript in a format that is text."""
    write = next(entry.write for name, entry in FORMATS.items() if name == response_format)
    assert write is not None
    return write(transcript, layout)
