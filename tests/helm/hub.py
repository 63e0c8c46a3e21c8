"""A hub of models on this machine: as much of its HTTP API as a download asks for, and what it was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Hub:
    """Where it is, the revisions that it was asked for, and what files it sent to whom."""

    url: str
    repositories: Mapping[str, tuple[Path, str]]
    revisions: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)


@contextmanager
def serve(repositories: Mapping[str, tuple[Path, str]]) -> Iterator[Hub]:
    """Serves folders as repositories, each at one commit; there are no branches."""
    server = _Server(("127.0.0.1", 0), _Handler)
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_port}", repositories)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    hub: Hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path, hub = urlsplit(self.path).path, self.server.hub
        found = FILE.fullmatch(path) or INFO.fullmatch(path)
        if found is None or found[1] not in hub.repositories:
            return self._reply(404, b"", body)
        folder, commit = hub.repositories[found[1]]
        asked = found[2] if found.re is FILE else found[3]
        hub.revisions.add(str(asked))
        if asked != commit:
            return self._reply(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
        if found.re is INFO:
            return self._reply(200, _listing(found[2], found[1], commit, folder), body)
        file = folder / found[3]
        if not file.is_file():
            return self._reply(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        if body:
            hub.sent.append(found[3])
            hub.tokens.add(self.headers.get("Authorization", ""))
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._reply(200, content, body, {"ETag": tag, "X-Repo-Commit": commit})

    def _reply(
        self, status: int, content: bytes, body: bool, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _listing(kind: str, name: str, commit: str, folder: Path) -> bytes:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
    if kind == "tree":
        listed = [
            {"type": "file", "path": file, "size": size, "oid": commit} for file, size in names
        ]
        return json.dumps(listed).encode()
    siblings = [{"rfilename": file} for file, _ in names]
    return json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": siblings}).encode()
