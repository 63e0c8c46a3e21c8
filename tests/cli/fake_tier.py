"""Stands in for both tiers where `retouch up` meets failures: small, quick, ill-behaved on demand.

Installed under each tier's name; FAKE_SERVER and FAKE_GATEWAY say how it behaves, and it notes its
process id and its end in the folder FAKE_NOTES.
"""

import json
import os
import re
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

NAME = Path(sys.argv[0]).name
BEHAVIOUR = os.environ.get("FAKE_" + NAME.removeprefix("retouch-").upper(), "good")
NOTES = Path(os.environ["FAKE_NOTES"])


class Gateway(BaseHTTPRequestHandler):
    def answer(self, status: int, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/readyz" and BEHAVIOUR == "never-ready":
            self.answer(503, b'{"error": {"message": "the model is loading"}}')
        elif self.path == "/":
            gone = BEHAVIOUR == "without-page"
            self.answer(404 if gone else 200, b"<html>", "text/html; charset=utf-8")
        else:
            self.answer(200, b"picture of " + self.path.encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if BEHAVIOUR == "refuses":
            self.answer(400, b'{"error": {"message": "prompt: no such style", "param": "prompt"}}')
        elif BEHAVIOUR == "wants-key" and self.headers["Authorization"] != "Bearer rt_ada":
            self.answer(401, b'{"error": {"message": "An API key is needed"}}')
        elif BEHAVIOUR == "nonsense":
            self.answer(200, b"<html>")
        else:
            self.answer(200, completed(field(body, "prompt")), "text/event-stream")


def field(form: bytes, name: str) -> str:
    """A field's text."""
    found = re.search(rf'name="{name}"\r\n\r\n(.*?)\r\n--'.encode(), form, re.DOTALL)
    return found[1].decode() if found else ""


def completed(prompt: str) -> bytes:
    """The end of an edit, its image hosted under the prompt's first word, or in base64 where the store is full."""
    url = f"http://pictures.example/of/images/{prompt.split()[0]}"
    image = {"b64_json": "QUJD"} if BEHAVIOUR == "full" else {"url": url}
    usage = {"input_images": 1, "output_images": 1, "steps": 6}
    look = {"size": "64x64", "output_format": "png", "model": "pocket", "seed": 7}
    body = {**image, **look, "revised_prompt": prompt, "usage": usage}
    return b"event: image_edit.completed\ndata: %b\n\n" % json.dumps(body).encode()


def stop(number: int, frame: FrameType | None) -> None:
    if BEHAVIOUR != "stubborn":
        with (NOTES / "ended").open("a") as file:
            file.write(f"{NAME}\n")
        sys.exit(0)


signal.signal(signal.SIGTERM, stop)
(NOTES / NAME).write_text(json.dumps({"pid": os.getpid(), **os.environ}))
if BEHAVIOUR == "dies":
    print(f"{NAME}: starting")
    sys.exit(f"{NAME}: no folder /nowhere\n")
if BEHAVIOUR == "confused":
    print("RETOUCH_X: is wrong\nRETOUCH_Y: is wrong too", file=sys.stderr)
    sys.exit(2)
if NAME == "retouch-gateway":
    port = int(os.environ["RETOUCH_GATEWAY_PORT"])
    ThreadingHTTPServer(("127.0.0.1", port), Gateway).serve_forever()
while True:
    time.sleep(0.1)
