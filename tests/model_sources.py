"""A hub, a package index and a plain web server on loopback, with small models."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"
Files = Mapping[str, bytes]


class Sources:
    """One server plays all three; it records its requests, and can stop in the middle of a file."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}  # path -> content
        self.asked: list[tuple[str, str, str]] = []  # method, path, range
        self.held_at: dict[str, int] = {}  # path -> bytes after which its answer stops
        self.reached_hold = threading.Event()
        self.release = threading.Event()
        sources = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.answer(sources)

            do_HEAD = do_GET  # noqa: N815  (http.server calls a method of this name)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def paths(self, method: str = "GET") -> list[str]:
        """The requests so far."""
        return [path for asked, path, _ in self.asked if asked == method]

    def add_repository(self, name: str, files: Files, licence: str = "mit") -> None:
        """Adds a repository to the hub; files over 100 bytes are in LFS, as large ones on the real hub."""
        siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
        for sibling, content in zip(siblings, files.values(), strict=True):
            if len(content) > 100:
                sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 1}
        info = {
            "id": name,
            "sha": REVISION,
            "private": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            "cardData": {"license": licence},
        }
        for path in (f"/api/models/{name}", f"/api/models/{name}/revision/{REVISION}"):
            self.files[path] = json.dumps(info).encode()
        for file, content in files.items():
            self.files[f"/{name}/resolve/{REVISION}/{file}"] = content

    def add_wheel(self, name: str, members: Files) -> dict[str, Any]:
        """A wheel in the index; returns its lines in a catalogue."""
        buffer = io.BytesIO()
        package = name.replace("-", "_")
        with zipfile.ZipFile(buffer, "w") as wheel:
            for member, content in members.items():
                wheel.writestr(member, content)
            info = f"{package}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        file, content = f"{package}-1.0-py3-none-any.whl", buffer.getvalue()
        self.files[f"/wheels/{file}"] = content
        self.files[f"/simple/{name}/"] = (
            f'<html><body><a href="/wheels/{file}">{file}</a></body></html>'.encode()
        )
        return {"name": name, "version": "1.0", "size": len(content), "sha256": sha256(content)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, sources: Sources) -> None:
        path = self.path.partition("?")[0]
        wanted_range = self.headers.get("Range", "")
        sources.asked.append((self.command, path, wanted_range))
        content = sources.files.get(path)
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first = int(wanted_range.removeprefix("bytes=").rstrip("-")) if wanted_range else 0
        self.send_response(206 if wanted_range else 200)
        self.send_header("Content-Length", str(len(content) - first))
        if wanted_range:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{sha256(content)}"')
        self.send_header("X-Repo-Commit", REVISION)
        if path.startswith("/simple/"):
            self.send_header("Content-Type", "text/html")
        self.end_headers()
        if self.command == "HEAD":
            return
        hold = sources.held_at.get(path, len(content))
        self.wfile.write(content[first:hold])
        if hold < len(content):
            self.wfile.flush()
            sources.reached_hold.set()
            sources.release.wait(60)
            self.close_connection = True


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def catalogue_entry(files: Files, members: Mapping[str, list[str]] | None = None) -> dict[str, Any]:
    """The files of a model as a catalogue has them."""
    return {
        name: {"size": len(content), "sha256": sha256(content), "members": (members or {}).get(name, [])}
        for name, content in files.items()
    }


def write_catalogue(path: Path, **kinds: Mapping[str, Mapping[str, Any]]) -> Path:
    """A catalogue of these models, as TOML: JSON's strings, numbers and lists are also TOML's."""
    lines = []
    for kind, models in kinds.items():
        for name, fields in models.items():
            every = {"title": name, "licence": "MIT", "author": "nobody", **fields}
            lines += [f'[{kind}."{name}"]', *(f"{key} = {_toml(value)}" for key, value in every.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f'"{key}" = {_toml(inner)}' for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
