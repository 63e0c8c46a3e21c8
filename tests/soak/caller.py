"""One caller among many: what each scenario needs to send requests and to keep the ledger of what came back."""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import grpc
import httpx
from PIL import Image

from retouch.v1 import image_edit_pb2_grpc as rpc
from tests.e2e.pictures import b64, left_half, photo, png
from tests.keys import secret
from tests.soak.ledger import Ledger
from tests.soak.tiers import Stack, Tier

T = TypeVar("T")

EDITS, MODELS, MODEL, IMAGES = "/v1/images/edits", "/v1/models", "/v1/models/{id}", "/images/{name}"
# What an edit that is right may meet besides success: a full queue, or bodies that fill the room for them.
BUSY = 429
# Small ones mostly: what is soaked is what happens around a forward.
SIZES = {"64x64": 12, "128x64": 4, "64x128": 4, "128x128": 4, "192x128": 1}
LARGEST = "256x256"
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
WORDS = ("night", "snow", "sepia", "brighter", "a sunset", "grey", "fog", "warm", "blue", "darker")


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


PICTURES = (
    png(photo(128, 128)),
    png(photo(200, 150).convert("RGBA")),
    png(photo(96, 96).convert("P")),
    png(photo(80, 120).convert("L")),
    _encoded(photo(256, 256), "JPEG", quality=85),
    _encoded(photo(160, 160).convert("CMYK"), "JPEG"),
    _encoded(photo(256, 192), "WEBP", quality=80),
)
SQUARE, MASK = png(photo(128, 128)), png(left_half(128, 128))


@dataclass
class Round:
    """What all callers of one round share."""

    stack: Stack
    ledger: Ledger
    clients: Mapping[str, httpx.AsyncClient]
    channel: grpc.aio.Channel


@contextlib.asynccontextmanager
async def opened(stack: Stack, ledger: Ledger) -> AsyncIterator[Round]:
    """A round with connections of its own, all of them closed behind it."""
    async with contextlib.AsyncExitStack() as held:
        clients = {}
        for tier in stack.gateways:
            client = httpx.AsyncClient(base_url=tier.url, timeout=120, trust_env=False)
            clients[tier.name] = await held.enter_async_context(client)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{stack.server.port}", OPTIONS)
        await held.enter_async_context(channel)
        yield Round(stack, ledger, clients, channel)


# A subchannel of its own, not one that this process shares with another channel to the same server.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


@dataclass
class Caller:
    """Draws what to do from `random`, and does it."""

    round: Round
    random: Random

    @property
    def ledger(self) -> Ledger:
        return self.round.ledger

    @property
    def stub(self) -> rpc.ImageEditAsyncStub:
        return rpc.ImageEditStub(self.round.channel)

    def gateway(self) -> Tier:
        return self.random.choice(self.round.stack.gateways)

    def in_turn(self, what: str, options: Sequence[T]) -> T:
        """The next of `options`, whoever had the one before."""
        self.ledger.turns[what] += 1
        return options[self.ledger.turns[what] % len(options)]

    def body(self, **fields: Any) -> dict[str, Any]:
        """An edit as JSON has it, of any size, steps, format, number, guidance and strength; `fields` win."""
        draw = self.random
        body: dict[str, Any] = {
            "images": [b64(draw.choice(PICTURES))],
            "prompt": f"make it {draw.choice(WORDS)}, {draw.randrange(10**6)}",
            "size": draw.choices(list(SIZES), list(SIZES.values()))[0],
            "num_inference_steps": draw.randint(1, 3),
            "seed": draw.randrange(2**63),
            "n": draw.choice((1, 1, 1, 2)),
            "output_format": draw.choice(tuple(FORMATS)),
        }
        if draw.random() < 0.2:
            body["guidance_scale"], body["negative_prompt"] = 3.0, "blurred"
        elif draw.random() < 0.02:
            body["size"], body["num_inference_steps"] = LARGEST, 1
        if draw.random() < 0.2:
            body |= {"image": b64(SQUARE), "mask": b64(MASK)}
            del body["images"]
        if draw.random() < 0.2:
            body["strength"] = draw.random()
        if draw.random() < 0.1:
            body["model"] = "narrow"
        return body | fields

    async def send(
        self,
        method: str,
        path: str,
        route: str,
        ok: Collection[int],
        *,
        key: str | None = "ada",
        headers: Mapping[str, str] = {},
        gateway: Tier | None = None,
        **content: Any,
    ) -> httpx.Response | None:
        """An answer that is one of `ok`; None where another came or none, which the ledger has by then."""
        tier = gateway or self.gateway()
        bearer = {"authorization": f"Bearer {secret(key)}"} if key else {}
        try:
            reply = await self.round.clients[tier.name].request(
                method, path, headers={**bearer, **headers}, **content
            )
        except httpx.TransportError as error:
            self.ledger.surprises.append(f"{method} {route}: {error!r}")
            return None
        self.ledger.answers[tier.name, route, method, reply.status_code] += 1
        if reply.status_code in ok:
            return reply
        self.ledger.surprises.append(f"{method} {route}: {reply.status_code} {reply.text[:300]}")
        return None

    async def edit(
        self,
        body: dict[str, Any],
        *,
        key: str = "ada",
        headers: Mapping[str, str] = {},
        **more: Any,
    ) -> dict[str, Any] | None:
        """A JSON edit's answer, where it was not refused for want of room."""
        reply = await self.send(
            "POST", EDITS, EDITS, (200, BUSY), key=key, headers=headers, json=body, **more
        )
        return self.received(reply)

    def received(self, reply: httpx.Response | None) -> dict[str, Any] | None:
        """What an edit's answer holds, with its images counted once; None unless it is a 200."""
        if reply is None or reply.status_code != 200:
            return None
        answer: dict[str, Any] = reply.json()
        if "idempotent-replayed" in reply.headers:
            self.ledger.replayed += 1
        else:
            self.ledger.images += len(answer["data"])
            self.ledger.urls += sum("url" in each for each in answer["data"])
        return answer

    def expect(self, holds: bool, words: str) -> None:
        if not holds:
            self.ledger.surprises.append(words)
