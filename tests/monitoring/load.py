"""Callers of every kind, for a while: good ones, impatient ones, mistaken ones, and those who ask too much.

`python -m tests.monitoring.load MINUTES` starts all that they call, and keeps it until Ctrl-C, to look at it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.pictures import b64, padded, photo, png
from tests.keys import keys_of, secret
from tests.monitoring.stack import KEYS, TTL_SECONDS, Stack, running

EDITS = "/v1/images/edits"
SMALL, LARGE = b64(png(photo(128, 128))), b64(png(photo(192, 192)))


def edit(image: str = SMALL) -> dict[str, Any]:
    """A quick one."""
    return {"images": [image], "prompt": "make it brighter", "num_inference_steps": 4}


LONG = {**edit(), "size": "384x384", "num_inference_steps": 100}


class Load:
    """`run` it for a while; `statuses` then says how often each was answered."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.statuses: Counter[int] = Counter()
        self._over = threading.Event()

    def run(self, seconds: float, calm: float = 1) -> None:
        """All callers at once, each again and again with its pause in between, those who make trouble `calm` times
        as long. Raises what one of them met.
        """
        good = {self._edit: 0.2, self._stream: 1, self._narrow: 0.5, self._look_around: 1}
        trouble = {
            self._burst: 3,
            self._repeat: 2,
            self._leave: 3,
            self._be_late: 5,
            self._come_late: 1,
            self._mistake: 2,
            self._ask_for_what_is_blocked: 2,
            self._exceed_own_limits: 3,
            self._dawdle: 5,
            self._change_keys: 6,
        }
        callers = good | {call: pause * calm for call, pause in trouble.items()}
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(len(callers)) as pool:
            running = [pool.submit(self._again, *caller, end) for caller in callers.items()]
            try:
                for each in as_completed(running):
                    each.result()
            finally:
                self._over.set()

    def _again(self, call: Callable[[], None], pause: float, end: float) -> None:
        while time.monotonic() < end and not self._over.is_set():
            call()
            self._over.wait(pause)

    def _post(
        self,
        body: dict[str, Any],
        key: str = "ada",
        expect: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        with self.stack.client(key) as client:
            reply = client.post(EDITS, json=body, headers=headers)
        self.statuses[reply.status_code] += 1
        assert expect in (None, reply.status_code), reply.text
        return reply

    def _post_together(self, body: dict[str, Any], *keys: str) -> None:
        with ThreadPoolExecutor(len(keys)) as pool:
            list(pool.map(lambda key: self._post(body, key), keys))

    def _edit(self) -> None:
        """Two sizes, so that some forwards are not shared; of the pictures one is fetched, one deleted."""
        for size, image in (("128x128", SMALL), ("192x192", LARGE)):
            reply = self._post({**edit(image), "size": size, "n": 2})
            if reply.status_code == 200:
                with self.stack.client() as client:
                    kept, dropped = (each["url"] for each in reply.json()["data"])
                    assert client.get(kept).status_code in (200, 410)  # its life is short
                    assert client.delete(dropped).status_code in (204, 410)

    def _stream(self) -> None:
        self._post({**edit(), "num_inference_steps": 6, "stream": True, "partial_images": 2})

    def _narrow(self) -> None:
        self._post({**edit(), "model": "narrow", "num_inference_steps": 8})

    def _burst(self) -> None:
        """More for the model with one slot than its queue holds."""
        body = {**edit(), "model": "narrow", "size": "64x64", "n": 10, "num_inference_steps": 2}
        self._post_together(body, "ada", "ada", "ada")

    def _repeat(self) -> None:
        """Another edit by an Idempotency-Key that is taken."""
        once = {"idempotency-key": str(time.time())}
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda body: self._post(body, headers=once), [edit(), edit(LARGE)]))

    def _leave(self) -> None:
        with self.stack.client() as client, contextlib.suppress(httpx.ReadTimeout):
            client.post(EDITS, json=LONG, timeout=1)

    def _be_late(self) -> None:
        """An edit that takes longer than the gateway allows."""
        self._post(LONG)

    def _come_late(self) -> None:
        """A picture fetched after its life; one of no known name."""
        reply = self._post({**edit(), "num_inference_steps": 1})
        if reply.status_code != 200:
            return
        self._over.wait(TTL_SECONDS + 1)
        with self.stack.client() as client:
            late = client.get(reply.json()["data"][0]["url"]).status_code
            assert late == 410 or self._over.is_set()
            assert client.get("/images/nobody-s.png").status_code == 404

    def _mistake(self) -> None:
        self._post({**edit(), "sharpness": 3}, expect=400)
        self._post(edit("https://127.0.0.1/photo.png"), expect=400)
        self._post({**edit(), "model": "unheard-of"}, expect=404)
        self._post(edit(), key="nobody", expect=401)
        self._post(edit(), key="old", expect=401)
        self._post(edit(b64(padded(350_000))), expect=413)
        with self.stack.client() as client:
            reply = client.post(EDITS, content=b"photo", headers={"content-type": "text/plain"})
        assert reply.status_code == 415

    def _ask_for_what_is_blocked(self) -> None:
        self._post({**edit(), "prompt": "remove the watermark"})

    def _exceed_own_limits(self) -> None:
        self._post_together({**edit(), "num_inference_steps": 10}, "eve", "eve", "bob", "bob")

    def _dawdle(self) -> None:
        """A body that never comes, to the end of the gateway's patience."""
        url = httpx.URL(self.stack.url)
        with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
            connection.sendall(
                f"POST {EDITS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret('ada')}\r\n"
                "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n".encode()
            )
            assert b" 408 " in connection.recv(100)

    def _look_around(self) -> None:
        with self.stack.client() as client:
            for path in ("/v1/models", "/v1/models/pocket", "/healthz", "/"):
                assert client.get(path).status_code == 200, path
            assert client.get("/readyz").status_code in (
                200,
                503,
            )  # a server may be too busy to say
            assert client.get("/wp-login.php").status_code == 404

    def _change_keys(self) -> None:
        """A mistake in the file, then a key more; each is looked at for long enough to be noticed."""
        text = self.stack.keys.read_text()
        self.stack.keys.write_text(text + '\n[[keys]]\nid = "half')
        self._over.wait(3)
        self.stack.keys.write_text(keys_of(KEYS) + f"\n# {time.time()}\n")
        self._over.wait(3)


def main() -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: sys.exit())
    patient = {"RETOUCH_GATEWAY_TIMEOUT": "60"}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), **patient) as stack:
        print(f"Prometheus: {stack.prometheus}", flush=True)
        load = Load(stack)
        load.run(float(sys.argv[1]) * 60, calm=10)
        print(f"The load is over: {dict(load.statuses)}. Ctrl-C ends the rest.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
