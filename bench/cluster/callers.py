"""Callers that never pause, by REST and by gRPC; each answer is looked at, and what it came to is kept."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import httpx
from PIL import Image

from bench.gateway.bodies import noisy
from retouch.v1.image_edit_pb2 import EditRequest
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_gateway import channels

SIDE = 64
PATIENCE = 60.0  # seconds for an answer
PAUSE = 0.1  # seconds after a failure
DONE = "done"


@dataclass(frozen=True)
class Outcome:
    """What an edit came to: DONE, an HTTP or gRPC status, or an exception's name. `ended` by time.monotonic."""

    way: str
    status: str
    ended: float
    seconds: float


@dataclass
class Callers:
    """What they saw, in the order of the ends."""

    outcomes: list[Outcome] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def failed(self) -> Counter[str]:
        """How often each way had which failure."""
        return Counter(f"{o.way} {o.status}" for o in list(self.outcomes) if o.status != DONE)

    def done(self, way: str = "") -> int:
        return sum(o.status == DONE and way in ("", o.way) for o in list(self.outcomes))

    def longest(self) -> float:
        return max(outcome.seconds for outcome in self.outcomes)

    def between(self, began: float, ended: float) -> list[Outcome]:
        return [o for o in list(self.outcomes) if began <= o.ended < ended]

    def call(self, way: str, once: Callable[[], str]) -> None:
        """Call `once` until told to stop."""
        while not self.stopping.is_set():
            began = time.monotonic()
            status = once()
            ended = time.monotonic()
            self.outcomes.append(Outcome(way, status, ended, ended - began))
            if status != DONE:
                self.stopping.wait(PAUSE)


Caller = Callable[[Callers], None]


def rest(url: str, steps: int = 2, *, stream: bool = False) -> Caller:
    """One keep-alive connection, one edit after the other; nothing is tried twice."""
    body = {
        "prompt": "make it night",
        "images": [base64.b64encode(noisy(SIDE)).decode()],
        "num_inference_steps": steps,
        "response_format": "b64_json",
    }
    if stream:
        body |= {"stream": True}

    def run(callers: Callers) -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:

            def once() -> str:
                try:
                    reply = client.post("/v1/images/edits", json=body)
                except httpx.TransportError as error:
                    return type(error).__name__
                if reply.status_code != 200:
                    return str(reply.status_code)
                return _streamed(reply.text) if stream else _answered(reply.json()["data"][0])

            callers.call("REST stream" if stream else "REST", once)

    return run


def direct(target: str, steps: int = 2) -> Caller:
    """By gRPC, with the gateway's own options of a channel: gRPC itself balances, watches health and tries again."""
    request = EditRequest(images=[noisy(SIDE)], prompt="make it night", num_inference_steps=steps)

    def run(callers: Callers) -> None:
        with grpc.insecure_channel(target, channels.options(2**24)) as channel:
            stub = ImageEditStub(channel)

            def once() -> str:
                try:
                    reply = stub.Edit(request, timeout=PATIENCE)
                except grpc.RpcError as error:
                    return str(error.code().name)
                return _read(reply.images[0].data)

            callers.call("gRPC", once)

    return run


def _answered(item: dict[str, str]) -> str:
    return _read(base64.b64decode(item["b64_json"]))


def _streamed(events: str) -> str:
    """What its last event says: the end of an edit, or an error, whose code it is."""
    data = [
        line.removeprefix("data: ") for line in events.splitlines() if line.startswith("data: ")
    ]
    last = json.loads(data[-1]) if data else {}
    if last.get("type") == "image_edit.completed":
        return _answered(last)
    return f"{last.get('error', {}).get('code')} in the stream"


def _read(data: bytes) -> str:
    """DONE if it is a whole picture of the right size."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return DONE if image.size == (SIDE, SIDE) else "a picture of another size"
    except OSError:
        return "no picture"


@contextmanager
def calling(callers: Sequence[Caller]) -> Iterator[Callers]:
    """Each on a thread of its own, until the end; then every answer has come."""
    state = Callers()
    threads = [threading.Thread(target=caller, args=(state,)) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        for thread in threads:
            thread.join()
