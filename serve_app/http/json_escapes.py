"""Escapes that JSON may have in base64 and data: URLs, although they need none.

PHP writes a slash as `\\/`, .NET a plus as `\\u002B`, and its settings can make it escape more.
"""

import re

LONGEST_BYTES = 6  # of an escape of one character

# The shortest first: after a character has been put in, nothing may be taken for an escape that was none.
_CHARACTERS = {
    rb"\/": b"/",
    **{
        rb"\u00%s" % digits: bytes.fromhex(digits.decode())
        for digits in (b"2b", b"2B", b"2f", b"2F", b"3d", b"3D")
    },
}
_BEGUN = re.compile(rb"\\(u(0(0[23]?)?)?)?\Z")


def unescaped(text: bytes) -> bytes:
    """The text with the characters `/`, `+` and `=` for their escapes; other escapes stay as they are."""
    if b"\\" in text:  # a plain search, for this is called with every byte of a large file
        for escape, character in _CHARACTERS.items():
            text = text.replace(escape, character)
    return text


def begun(text: bytes) -> int:
    """How many bytes at the end of a text may be the beginning of such an escape."""
    found = _BEGUN.search(text, max(0, len(text) - LONGEST_BYTES))
    return len(text) - found.start() if found else 0
