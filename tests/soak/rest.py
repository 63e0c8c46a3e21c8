"""Callers of the REST API who do everything right, and what becomes of their images."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import Any

from PIL import Image

from tests.soak.caller import (
    BUSY,
    EDITS,
    FORMATS,
    IMAGES,
    MASK,
    MODEL,
    MODELS,
    PICTURES,
    SQUARE,
    Caller,
)
from tests.soak.tiers import TTL_SECONDS

# Seconds within which an image's life may end on one clock and not yet on another.
MARGIN = 1.5


async def in_json(caller: Caller) -> None:
    body = caller.body(response_format="b64_json")
    if answer := await caller.edit(body):
        images = [base64.b64decode(each["b64_json"]) for each in answer["data"]]
        caller.expect(len(images) == body["n"], f"{len(images)} images of {body['n']}")
        for data in images:
            with Image.open(io.BytesIO(data)) as image:
                size = f"{image.width}x{image.height}"
                right = image.format == FORMATS[body["output_format"]] and size == body["size"]
                caller.expect(right, f"{image.format} {size} for {body['size']}")


async def by_url(caller: Caller) -> None:
    """Images are fetched, asked about, deleted by who may, or left to expire."""
    if not (answer := await caller.edit(caller.body())):
        return
    for image in answer["data"]:
        path = "/images/" + image["url"].rpartition("/")[2]
        await _look(caller, path, image["expires_at"])
        if caller.random.random() < 0.4:
            await _delete(caller, path, image["expires_at"])
        elif len(caller.ledger.later) < 1000:
            caller.ledger.later.append((image["expires_at"], path))


async def _look(caller: Caller, path: str, expires_at: int) -> None:
    ways: tuple[tuple[str, dict[str, str], int], ...] = (
        ("GET", {}, 200),
        ("HEAD", {}, 200),
        ("GET", {"range": "bytes=0-99"}, 206),
        ("GET", {"range": "bytes=99999999-"}, 416),
        ("GET", {"if-none-match": "*"}, 304),
        ("OPTIONS", {}, 204),
    )
    method, headers, status = caller.in_turn("looks", ways)
    fresh = time.time() < expires_at - MARGIN
    ok = {status} if fresh and method != "OPTIONS" else {status, 404, 410}
    await caller.send(method, path, IMAGES, ok, key=None, headers=headers)


async def _delete(caller: Caller, path: str, expires_at: int) -> None:
    """By another key in vain, then by the owner's, twice."""
    if time.time() > expires_at - 3 * MARGIN:
        return
    await caller.send("DELETE", path, IMAGES, (403,), key="bob")
    if await caller.send("DELETE", path, IMAGES, (204,)):
        caller.ledger.deleted += 1
    await caller.send("DELETE", path, IMAGES, (204, 410))
    await caller.send("GET", path, IMAGES, (404, 410), key=None)


async def come_late(caller: Caller) -> None:
    """For an image that has expired, and one that never was."""
    past = [each for each in caller.ledger.later if each[0] + MARGIN < time.time()]
    if past:
        caller.ledger.later.remove(past[0])
        await caller.send("GET", past[0][1], IMAGES, (410,), key=None)
    await caller.send("GET", f"/images/{'A' * 72}.png", IMAGES, (404,), key=None)


async def in_a_form(caller: Caller) -> None:
    """As OpenAI's SDKs send it; the answer has both URL and base64."""
    fields = caller.body(mask=None, images=None, image=None, model="pocket")
    data = {name: str(value) for name, value in fields.items() if value is not None}
    files: list[tuple[str, tuple[str, bytes, str]]] = [
        ("image[]", ("a.png", caller.random.choice(PICTURES), "image/png"))
    ]
    if caller.random.random() < 0.3:
        files = [("image", ("a.png", SQUARE, "")), ("mask", ("m.png", MASK, "image/png"))]
    reply = await caller.send("POST", EDITS, EDITS, (200, BUSY), data=data, files=files)
    if answer := caller.received(reply):
        both = all("url" in each and "b64_json" in each for each in answer["data"])
        caller.expect(both, "a form's answer without both url and b64_json")


async def streamed(caller: Caller) -> None:
    """To its end, with previews."""
    partial = caller.random.randint(0, 3)
    form = caller.in_turn("forms", ("url", "b64_json", None))
    body = caller.body(stream=True, partial_images=partial, response_format=form, model="pocket")
    reply = await caller.send("POST", EDITS, EDITS, (200, BUSY), json=body)
    if reply is None or reply.status_code != 200:
        return
    events = [
        json.loads(line.removeprefix("data: "))
        for line in reply.text.splitlines()
        if line.startswith("data: ")
    ]
    done = [event for event in events if event.get("type") == "image_edit.completed"]
    caller.expect(len(done) == body["n"], f"a stream that ends with {events[-1:]}"[:300])
    caller.ledger.images += len(done)
    caller.ledger.urls += sum("url" in event for event in done)


async def once(caller: Caller) -> None:
    """The same Idempotency-Key several times at once, at both gateways, then again, then for another edit.

    A reply is kept for as long as its images, counted from the first request.
    """
    kept_until = time.monotonic() + TTL_SECONDS - MARGIN
    headers = {"idempotency-key": f"{caller.random.random()}"}
    body = caller.body()

    async def one() -> dict[str, Any] | None:
        reply = await caller.send(
            "POST", EDITS, EDITS, (200, 409, BUSY), headers=headers, json=body
        )
        return caller.received(reply)

    first = [answer for answer in await asyncio.gather(one(), one(), one()) if answer]
    if not first:
        return
    again = await one()  # the other gateway may not know of the reply yet
    if time.monotonic() < kept_until:
        same = all(answer in (first[0], None) for answer in (*first, again))
        caller.expect(same, "one Idempotency-Key, two answers")
    other = caller.body()
    ok = (200, 409, 422, BUSY)
    reply = await caller.send("POST", EDITS, EDITS, ok, headers=headers, json=other)
    caller.received(reply)
    if time.monotonic() < kept_until:
        caller.expect(reply is None or reply.status_code != 200, "one Idempotency-Key, two edits")


async def look_around(caller: Caller) -> None:
    """What is served, the pages, the probes."""
    asked = (
        (MODELS, MODELS, 200),
        (f"{MODELS}/pocket", MODEL, 200),
        (f"{MODELS}/nobody", MODEL, 404),
        ("/", "/", 200),
        ("/playground/app.js", "/playground/{name}", 200),
        ("/playground/none.js", "/playground/{name}", 404),
        ("/docs", "/docs", 200),
        ("/openapi.json", "/openapi.json", 200),
        ("/healthz", "/healthz", 200),
        ("/readyz", "/readyz", 200),
        ("/nowhere", "other", 404),
    )
    path, route, status = caller.in_turn("pages", asked)
    await caller.send("GET", path, route, (status,))
