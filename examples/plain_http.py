"""Transcribes a file or a URL with an HTTP package only.

python examples/plain_http.py talk.mp3
python examples/plain_http.py https://example.com/talk.mp3
"""

import os
import sys

import httpx

service = os.environ.get("WHISPERX_URL", "http://127.0.0.1:8000")
key = os.environ.get("WHISPERX_API_KEY")  # for a service that has keys
headers = {"Authorization": f"Bearer {key}"} if key else {}
audio = sys.argv[1]

if audio.startswith(("http://", "https://")):
    answer = httpx.post(f"{service}/predict", json={"audio_file": audio}, headers=headers, timeout=3600)
else:
    with open(audio, "rb") as file:
        answer = httpx.post(f"{service}/predict", files={"file": file}, headers=headers, timeout=3600)

if answer.is_error:
    sys.exit(answer.json()["error"]["message"])  # a sentence that says what to do
for segment in answer.json()["model_output"]:
    print(f"{segment['start']:8.2f} {segment['end']:8.2f} {segment['speaker'] or '?'}: {segment['text']}")
