"""Submits a job, and waits for the signed webhook that reports its end.

The server needs the secret, and must be allowed to call this machine:

    args:
      jobs:
        webhooks:
          allowed_hosts: ["127.0.0.1"]

WEBHOOK_SECRETS=$(whisperx-serve webhook-secret) must be set for the server and for this program:
python examples/jobs_with_webhook.py talk.mp3
"""

import base64
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from serve_app.client import Client

KEY = base64.b64decode(os.environ["WEBHOOK_SECRETS"].split()[0].removeprefix("whsec_"))


def is_genuine(headers: Any, body: bytes) -> bool:
    """Whether the service has sent this in the last five minutes."""
    message_id, sent_at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not sent_at.isdecimal() or abs(time.time() - int(sent_at)) > 300:
        return False
    digest = hmac.digest(KEY, f"{message_id}.{sent_at}.".encode() + body, "sha256")
    expected = b"v1," + base64.b64encode(digest)
    signatures = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(expected, signature) for signature in signatures)


received: list[dict[str, Any]] = []


class Receiver(BaseHTTPRequestHandler):
    """Answers at once: the service does not wait long for the answer to a webhook."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        genuine = is_genuine(self.headers, body)
        self.send_response(204 if genuine else 401)
        self.end_headers()
        if genuine:
            received.append(json.loads(body))


with HTTPServer(("127.0.0.1", 0), Receiver) as receiver, Client() as client:
    job = client.jobs.submit(sys.argv[1], webhook_url=f"http://127.0.0.1:{receiver.server_port}/")
    print(f"submitted {job['id']}")
    while not received:
        receiver.handle_request()
    event = received[0]
    print(event["type"])
    if event["type"] == "transcription.completed":
        print(client.jobs.result(job["id"], response_format="text"))
    client.jobs.delete(job["id"])
