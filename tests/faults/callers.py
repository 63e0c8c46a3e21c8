"""Callers of a gateway, each on a thread of its own: how far their edits have come, and what they got."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx

from tests.e2e.pictures import b64, photo, png

EDITS = "/v1/images/edits"
HANGS_SECONDS = 120.0  # far beyond all that a test waits for: to be still waiting is to hang


def body(side: int = 64, steps: int = 1, **fields: Any) -> dict[str, Any]:
    """A JSON request for an edit of a photo of that side."""
    return {
        "prompt": "make it night",
        "images": [b64(png(photo(side, side)))],
        "num_inference_steps": steps,
        "response_format": "b64_json",
        **fields,
    }


class Caller(threading.Thread):
    """One request and what came of it.

    `status`, `headers`, `text`: of the answer, as far as it came. `lines`: the text as it comes.
    `broken`: the exception's name where the connection was. `seconds`: until the end.
    """

    def __init__(
        self, url: str, sent: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.url, self.sent, self.sent_headers = url, sent, headers
        self.status = 0
        self.headers = httpx.Headers()
        self.lines: list[str] = []
        self.broken = ""
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        try:
            with (
                httpx.Client(timeout=HANGS_SECONDS, trust_env=False) as client,
                client.stream(
                    "POST", self.url + EDITS, json=self.sent, headers=self.sent_headers
                ) as answer,
            ):
                self.status, self.headers = answer.status_code, answer.headers
                for line in answer.iter_lines():
                    self.lines.append(line)
        except httpx.TransportError as error:
            self.broken = type(error).__name__
        self.seconds = time.monotonic() - began

    def saw(self, comment: str) -> bool:
        """Whether its stream has had a comment that begins so."""
        return any(line.startswith(f": {comment}") for line in self.lines)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The data of its stream's events."""
        found = [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]
        return [json.loads(data) for data in found]

    @property
    def json(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads("".join(self.lines))
        return answer

    @property
    def outcome(self) -> int | str:
        """What it came to: a status, of a stream that of its last event; or how the connection broke."""
        assert not self.is_alive(), "it hangs"
        if self.broken or not self.sent.get("stream") or self.status != 200:
            return self.broken or self.status
        last = self.events[-1]
        return int(last["error"]["code"]) if "error" in last else 200

    def end(self, seconds: float = HANGS_SECONDS) -> int | str:
        """Its outcome, which must be there by then."""
        self.join(seconds)
        return self.outcome
