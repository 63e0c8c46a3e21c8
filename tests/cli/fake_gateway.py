"""A gateway that answers what a test tells it to: for answers that the real one gives rarely, or never."""

import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n and no more"
USAGE = {"input_images": 1, "output_images": 1, "steps": 6}


@dataclass(frozen=True)
class Answer:
    """One answer, after `seconds`. A body of a `content-type` ends with the connection, others say their length."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def failed(status: int, message: str, param: str | None = None, **headers: str) -> Answer:
    body = {"error": {"message": message, "type": "x", "param": param, "code": status}}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), sent)


def stream(*chunks: bytes, seconds: float = 0.0) -> Answer:
    return Answer(200, b"".join(chunks), {"content-type": "text/event-stream"}, seconds)


def event(name: str, body: Any) -> bytes:
    """JSON as the gateway writes it: characters beyond ASCII as they are."""
    return f"event: {name}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def completed(seed: object = 7, prompt: str = "night", **other: Any) -> bytes:
    body = {
        "b64_json": "iVBORw0KGgogYW5kIG5vIG1vcmU=",  # PNG
        "revised_prompt": prompt,
        "seed": seed,
        "size": "64x64",
        "output_format": "png",
        "model": "pocket",
        "usage": USAGE,
    }
    return event("image_edit.completed", {**body, **other})


DONE = stream(completed())


@dataclass
class FakeGateway:
    """`answers` in turn, the last one again and again; what it was asked is in `requests`."""

    url: str = ""
    answers: list[Answer] = field(default_factory=lambda: [DONE])
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def next(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def running(context: ssl.SSLContext | None = None) -> Iterator[FakeGateway]:
    """At a free port of this machine; over TLS where there is a context for it."""
    gateway = FakeGateway()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            gateway.requests.append((self.command, self.path, headers, body))
            answer = gateway.next()
            time.sleep(answer.seconds)
            with suppress(ConnectionError):  # who waited too long has gone
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "content-type" not in answer.headers and "content-length" not in answer.headers:
                self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        gateway.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield gateway
        finally:
            server.shutdown()
            thread.join()
