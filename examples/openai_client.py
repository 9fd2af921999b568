"""Transcribes with OpenAI's own package: another base URL, and nothing else.

python examples/openai_client.py talk.mp3
"""

import os
import sys
from pathlib import Path

from openai import OpenAI

service = os.environ.get("WHISPERX_URL", "http://127.0.0.1:8000")
key = os.environ.get("WHISPERX_API_KEY", "none")  # the package wants one, also where the service does not
client = OpenAI(base_url=f"{service}/v1", api_key=key, timeout=3600)

audio = Path(sys.argv[1])
answer = client.audio.transcriptions.create(model="whisper-1", file=audio, response_format="verbose_json")
for segment in answer.segments or ():
    print(f"{segment.start:8.2f} {segment.end:8.2f} {segment.text}")
