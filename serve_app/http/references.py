"""The one thing beside the file that may be large: recordings of known speakers, as data: URLs.

They are strings, few and long. Parsed, a string takes the memory of its text; so they may pass the limit on
what else a body holds, which is there because parsed JSON can take thirty times the memory of its text.
"""

import re

from serve_app.errors import PayloadTooLarge
from serve_app.http.json_escapes import begun, unescaped
from serve_app.options import MOST_KNOWN_SPEAKERS

REFERENCES = "known_speaker_references"
REFERENCES_BYTES = 8 << 20  # of all of them in a request

_ARRAY = re.compile(rb'[{,][ \t\n\r]*"known_speaker_references"[ \t\n\r]*:[ \t\n\r]*\[')
_BEGIN = re.compile(rb'[ \t\n\r,]*"')


def references_bytes(text: bytearray) -> int:
    """How much of a JSON text is inside the strings of its references; raises PayloadTooLarge.

    Found without parsing: no unescaped quote stands inside a JSON string, so in valid JSON the bytes of
    `_ARRAY` can only be this name and the begin of its array. A string with an escape that no `data:` URL has
    does not count.
    """
    array = _ARRAY.search(text)
    size, position = 0, array.end() if array else len(text)
    for _ in range(MOST_KNOWN_SPEAKERS):
        begin = _BEGIN.match(text, position)
        if begin is None:
            break
        end = text.find(b'"', begin.end())
        string = unescaped(bytes(text[begin.end() : end if end >= 0 else len(text)]))
        if end < 0:  # the rest of it has yet to come
            end, string = len(text), string[: len(string) - begun(string)]
        if b"\\" in string:
            break
        size, position = size + end - begin.end(), end + 1
    return limited(size)


def limited(size: int) -> int:
    """The same number of bytes; raises PayloadTooLarge where these are too many."""
    if size > REFERENCES_BYTES:
        raise PayloadTooLarge(
            f"{REFERENCES}: over {REFERENCES_BYTES} bytes; send shorter or compressed recordings.", REFERENCES
        )
    return size
