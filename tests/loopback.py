"""A loopback HTTP server whose files a test sets: the outside world of the graph tests."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files:
    """A loopback HTTP server whose files a test sets."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.seen_headers: dict[str, dict[str, str]] = {}
        self._requested: dict[str, threading.Event] = {}
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files.seen_headers[self.path] = dict(self.headers)
                files.requested(self.path).set()
                body = files.content.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                """Tests read results, not access logs."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, path: str, content: bytes) -> str:
        self.content[path] = content
        self._requested.pop(path, None)
        return f"http://{self.host}{path}"

    def requested(self, path: str) -> threading.Event:
        """Set as soon as somebody has asked for the file."""
        return self._requested.setdefault(path, threading.Event())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
