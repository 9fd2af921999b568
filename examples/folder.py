"""Writes a text file next to each recording of a folder, a few at a time.

python examples/folder.py recordings/

`whisperx-serve transcribe recordings/` does this and more: subtitles, progress, resuming after a stop.
"""

import asyncio
import sys
from pathlib import Path

from serve_app.client import AsyncClient
from serve_app.errors import TranscriptionError


async def transcribe(client: AsyncClient, recording: Path, free: asyncio.Semaphore) -> None:
    """Writes one text; prints an error, so that the other files go on."""
    async with free:
        try:
            text = await client.transcribe(recording, response_format="text")
            recording.with_suffix(".txt").write_text(str(text))
            print(recording.with_suffix(".txt"))
        except (TranscriptionError, OSError) as error:  # OSError: the file cannot be read or written
            print(f"{recording}: {error}")


async def main(recordings: list[Path]) -> None:
    """Transcribes all recordings; the client waits by itself while the service is full."""
    free = asyncio.Semaphore(4)
    async with AsyncClient() as client, asyncio.TaskGroup() as tasks:
        for recording in recordings:
            tasks.create_task(transcribe(client, recording, free))


asyncio.run(main(sorted(Path(sys.argv[1]).glob("*.mp3"))))
