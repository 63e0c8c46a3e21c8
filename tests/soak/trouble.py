"""Callers of the REST API who are mistaken, ask too much, or leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from tests.e2e.pictures import animated, b64, photo, png
from tests.keys import secret
from tests.soak.caller import BUSY, EDITS, MODELS, PICTURES, Caller
from tests.soak.checks import AFTER, BEFORE
from tests.soak.ledger import OTHER
from tests.soak.tiers import BODIES_BYTES, BODY_SECONDS, IMAGE_BYTES, Tier

PICTURE = b64(PICTURES[0])
# What is wrong with an edit, and what it is answered.
MISTAKES: tuple[tuple[dict[str, Any], int], ...] = (
    ({"colour": "red"}, 400),
    ({"prompt": None}, 400),
    ({"prompt": "x" * 4001}, 400),
    ({"n": 11}, 400),
    ({"seed": "7"}, 400),
    ({"strength": 2}, 400),
    ({"size": "65x64"}, 400),
    ({"size": "4096x4096"}, 400),
    ({"negative_prompt": "dull", "guidance_scale": 1}, 400),
    ({"partial_images": 1}, 400),
    ({"model": "nobody"}, 404),
    ({"images": []}, 400),
    ({"images": ["no base64!"]}, 400),
    ({"images": ["https://example.com/a.png"]}, 400),
    ({"images": [b64(b"\x89PNG\r\n\x1a\n" + bytes(99))]}, 400),
    ({"images": [b64(PICTURES[4][:-2000])]}, 400),
    ({"images": [b64(animated())]}, 400),
    ({"images": [b64(png(photo(16, 16).resize((1100, 1000), 0)))]}, 400),
    ({"images": [b64(PICTURES[0]) * 17]}, 400),
    ({"images": [PICTURE], "mask": b64(png(photo(8, 8)))}, 400),
    ({"images": [b64(b"\x89PNG\r\n\x1a\n" + bytes(IMAGE_BYTES))]}, 400),
    ({"images": [PICTURE], "user": "x" * BODIES_BYTES}, 413),
)


async def mistaken(caller: Caller) -> None:
    wrong, status = caller.in_turn("mistakes", MISTAKES)
    body = {**caller.body(), "images": [PICTURE], **wrong}
    body.pop("image", None)
    if "mask" not in wrong:
        body.pop("mask", None)
    if "model" not in wrong:
        body.pop("model", None)
    await caller.send("POST", EDITS, EDITS, (status, BUSY), json=body)


async def no_edit_at_all(caller: Caller) -> None:
    """Bodies, methods, keys and heads that are wrong."""
    fine = json.dumps({"images": [PICTURE], "prompt": "night"}).encode()
    kinds: tuple[tuple[str, int, str | None, dict[str, str], bytes], ...] = (
        ("POST", 415, "ada", {"content-type": "text/plain"}, fine),
        ("POST", 415, "ada", {"content-encoding": "gzip"}, fine),
        ("POST", 400, "ada", {}, b"{"),
        ("POST", 400, "ada", {}, b"[" * 9999),
        ("POST", 400, "ada", {"idempotency-key": "x" * 256}, fine),
        ("POST", 400, "ada", {"content-type": "multipart/form-data"}, fine),
        ("POST", 401, None, {}, fine),
        ("POST", 401, "nobody", {}, fine),
        ("POST", 401, "old", {}, fine),
        ("GET", 405, "ada", {}, b""),
    )
    method, status, key, headers, content = caller.in_turn("kinds", kinds)
    headers = {"content-type": "application/json", **headers}
    ok = (status, BUSY)
    await caller.send(method, EDITS, EDITS, ok, key=key, headers=headers, content=content)


async def blocked(caller: Caller) -> None:
    """By a safety check: before the edit, or after it."""
    asked = (("pocket", BEFORE), ("narrow", AFTER))
    model, prompt = caller.in_turn("blocked", asked)
    body = caller.body(model=model, prompt=prompt)
    reply = await caller.send("POST", EDITS, EDITS, (400, BUSY), json=body)
    if reply is not None and reply.status_code == 400:
        kind = reply.json()["error"]["type"]
        caller.expect(kind == "moderation_blocked", f"a blocked edit was answered {kind}")


async def a_guest(caller: Caller) -> None:
    """Whose key comes and goes with the file of keys."""
    reply = await caller.send(
        "POST", EDITS, EDITS, (200, 401, BUSY), key="guest", json=caller.body()
    )
    caller.received(reply)
    await caller.send("GET", MODELS, MODELS, (200, 401), key="guest")


async def beyond_own_limits(caller: Caller) -> None:
    """More at once, and more in a second, than that key may."""
    body = caller.body(n=1, size="64x64")
    await asyncio.gather(*(caller.edit(body, key="bob") for _ in range(4)))


async def a_crowd(caller: Caller) -> None:
    """More than the queue holds, at once."""
    body = caller.body(n=10, size="64x64", num_inference_steps=1)
    await asyncio.gather(*(caller.edit(body) for _ in range(4)))


async def big_bodies(caller: Caller) -> None:
    """That together fill the room for them, which they leave again."""
    big = b64(b"\x89PNG\r\n\x1a\n" + bytes(IMAGE_BYTES - 8))
    body, tier = {"images": [big] * 2, "prompt": "night"}, caller.gateway()
    one = partial(caller.send, "POST", EDITS, EDITS, (400, BUSY), gateway=tier, json=body)
    await asyncio.gather(*(one() for _ in range(4)))


async def no_http(caller: Caller) -> None:
    """What is refused before it was a request."""
    tier = caller.gateway()
    sent = caller.random.choice((b"HELO you\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"))
    answer = await _said(tier, sent)
    status = int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    caller.ledger.answers[tier.name, OTHER, OTHER, status] += 1
    caller.expect(status == 400, f"{sent[:10]!r} was answered {answer[:100]!r}")


async def dawdle(caller: Caller) -> None:
    """A body that does not come within its time."""
    tier = caller.gateway()
    answer = await _said(tier, _head(tier, 1000) + b"{", BODY_SECONDS + 60)
    status = int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    caller.ledger.answers[tier.name, EDITS, "POST", status] += 1
    caller.expect(status == 408, f"a slow body was answered {answer[:100]!r}")


async def leave(caller: Caller) -> None:
    """Hang up at any moment from the connection to the last byte of the answer."""
    ways: tuple[Callable[[Caller], Any], ...] = (
        _before_asking,
        _while_sending,
        _while_waiting,
        _while_waiting,
        _while_reading,
        _while_reading,
    )
    await caller.in_turn("ways", ways)(caller)


async def _before_asking(caller: Caller) -> None:
    tier = caller.gateway()
    begun = _head(tier, 10)[: caller.random.choice((0, 1, 40))]
    async with _Line(tier) as line:
        line.write(begun)
        await asyncio.sleep(caller.random.random() / 4)


async def _while_sending(caller: Caller) -> None:
    tier = caller.gateway()
    body = json.dumps(caller.body()).encode()
    async with _Line(tier) as line:
        caller.ledger.left[tier.name, EDITS, "POST"] += 1
        line.write(_head(tier, len(body)) + body[: caller.random.randrange(len(body))])
        await line.drain()
        await asyncio.sleep(caller.random.random() / 4)


async def _while_waiting(caller: Caller) -> None:
    """In the queue, or at any step."""
    tier = caller.gateway()
    fields = caller.body(num_inference_steps=caller.random.randint(1, 30))
    key = {"idempotency-key": str(caller.random.random())} if caller.random.random() < 0.3 else {}
    async with _Line(tier) as line:
        _left(caller, tier, fields)
        body = json.dumps(fields).encode()
        line.write(_head(tier, len(body), key) + body)
        await line.drain()
        await asyncio.sleep(caller.random.random() * 1.5)


async def _while_reading(caller: Caller) -> None:
    """Of a stream: some pieces, and no more."""
    tier = caller.gateway()
    steps = caller.random.randint(2, 12)
    fields = caller.body(stream=True, partial_images=3, num_inference_steps=steps)
    async with _Line(tier) as line:
        _left(caller, tier, fields)
        body = json.dumps(fields).encode()
        line.write(_head(tier, len(body)) + body)
        for _ in range(caller.random.randint(1, 6)):
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(2):
                    if not await line.read(4096):
                        break


def _left(caller: Caller, tier: Tier, fields: dict[str, Any]) -> None:
    caller.ledger.left[tier.name, EDITS, "POST"] += 1
    caller.ledger.unknown += fields["n"]
    caller.ledger.unknown_urls += fields["n"]


class _Line:
    """A connection that is dropped in the end, whatever is under way on it."""

    def __init__(self, tier: Tier) -> None:
        self.port = tier.port

    async def __aenter__(self) -> _Line:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.write, self.drain, self.read = (
            self._writer.write,
            self._writer.drain,
            self._reader.read,
        )
        return self

    async def __aexit__(self, *reason: object) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


async def _said(tier: Tier, sent: bytes, seconds: float = 60) -> bytes:
    """All that is answered until the line is closed."""
    async with _Line(tier) as line:
        line.write(sent)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                return await line.read(-1)
    return b""


def _head(tier: Tier, length: int, headers: dict[str, str] = {}) -> bytes:  # noqa: B006
    lines = [
        f"POST {EDITS} HTTP/1.1",
        f"host: 127.0.0.1:{tier.port}",
        f"authorization: Bearer {secret('ada')}",
        "content-type: application/json",
        f"content-length: {length}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
