"""The service's client, sync and async, for programs that have neither Ray nor torch.

    from serve_app.client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.transcribe("talk.mp3", response_format="text"))

Errors are those of serve_app.errors, the same that a deployment handle raises, and Unreachable.
"""

from serve_app.client.answers import Unreachable
from serve_app.client.asynchronous import AsyncClient
from serve_app.client.calls import Audio
from serve_app.client.synchronous import Client

__all__ = ["Audio", "AsyncClient", "Client", "Unreachable"]
