"""Prints the text of a file while it is transcribed.

python examples/streaming.py talk.mp3
"""

import sys

from serve_app.client import Client

with Client() as client:  # the service at $WHISPERX_URL, else http://127.0.0.1:8000
    for piece in client.stream(sys.argv[1]):
        print(piece, end="", flush=True)
print()
