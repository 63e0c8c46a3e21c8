"""The two kinds of store, so that each test of what lies above them runs over both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest

from retouch_gateway.stores import Store, open_store
from tests.object_store import ObjectStore, run_object_store

Open = Callable[[], Store]


class Forgetful(ThreadingHTTPServer):
    """As much of S3 as one PUT and one GET need; what is new it keeps, and fails to say so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.status = 500  # what it says instead; 0: it hangs up
        self.refused = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Forgetful

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        new = self.path not in self.server.objects
        if not new and "if-none-match" in self.headers:
            self.server.refused += 1
            return self.answer(412)
        self.server.objects[self.path] = body
        if new and not self.server.status:
            self.close_connection = True
            return None
        return self.answer(self.server.status if new else 200)

    def do_GET(self) -> None:
        kept = self.server.objects.get(self.path)
        self.answer(404 if kept is None else 200, kept or b"")

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (("content-length", str(len(body))), ("etag", '"e"')):
            self.send_header(name, value)
        self.send_header("last-modified", "Tue, 24 Nov 2026 21:20:56 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forgetful]:
    """Where `s3://` leads."""
    with Forgetful() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name, value in ObjectStore(url).variables.items():
            monkeypatch.setenv(name, value)
        yield server
        server.shutdown()


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    with run_object_store() as store:
        yield store


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix of a bucket, as `RETOUCH_GATEWAY_STORE` names it."""
    for name, value in object_store.variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://{object_store.bucket}/{uuid4().hex}/images"


@pytest.fixture(params=["folder", "bucket"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same empty store each time it is called, as each replica does."""
    kind = request.param == "bucket"
    place = request.getfixturevalue("bucket") if kind else str(tmp_path / "store")
    return lambda: open_store(place)


@pytest.fixture
def store(open_again: Open) -> Store:
    return open_again()
