"""Transcribes from a process on the service's own Ray cluster, without HTTP.

python examples/deployment_handle.py talk.mp3
"""

import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve

from serve_app.errors import TranscriptionError

ray.init(address="auto")  # the Ray of this machine; where there are several, RAY_ADDRESS names one
handle: Any = serve.get_app_handle("whisperx")
audio = Path(sys.argv[1]).read_bytes()

for item in handle.options(stream=True).stream.remote(audio, language="en"):
    print(item.get("segments", "the whole answer:"))
try:
    print(handle.transcribe.remote(audio, response_format="srt").result())
except TranscriptionError as error:
    sys.exit(error.message)
