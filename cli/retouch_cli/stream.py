"""The stream of an edit: the gateway's events, and the comments that say how it comes along."""

import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from retouch_cli.errors import Failure
from retouch_cli.session import NONSENSE, Session

CONTENT_TYPE = "text/event-stream"
COMPLETED, ERROR = "image_edit.completed", "error"
SPENT = ("input_images", "output_images", "steps")


@dataclass(frozen=True)
class Queued:
    """`position`: how many edits are ahead."""

    position: int


@dataclass(frozen=True)
class Step:
    """Image `image`, from 0, has run `step` of `total` steps."""

    image: int
    step: int
    total: int


@dataclass(frozen=True)
class Picture:
    """A finished image, encoded; `usage` is its share of input_images, output_images and steps.

    `url`: where the gateway hosts it, if that was asked for and it could.
    """

    data: bytes
    url: str | None
    seed: int
    size: str
    format: str
    model: str
    prompt: str
    usage: dict[str, int]


Event = Queued | Step | Picture


async def events(session: Session, reply: httpx.Response) -> AsyncGenerator[Event, None]:
    """What comes of an edit, until its end. Raises Failure: the edit's, or of an answer that makes no sense."""
    if reply.headers.get("content-type", "").partition(";")[0].strip() != CONTENT_TYPE:
        raise session.stranger(reply)
    name = b""
    async for line in lines(reply):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        try:
            if field == b"event":
                name = value
            elif field == b"data" and name == ERROR.encode():
                error = json.loads(value)["error"]
                request_id = reply.headers.get("x-request-id")
                raise session.failure(int(error["code"]), error, request_id)
            elif field == b"data" and name == COMPLETED.encode():
                yield await _picture(session, json.loads(value))
            elif not field and (event := _comment(value)):
                yield event
        except NONSENSE as error:
            raise Failure(f"{session.gateway.url} said what makes no sense: {error}") from error


async def lines(reply: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Lines by line feeds alone. httpx's own also end at characters that JSON leaves as they are in a string."""
    parts: list[bytes] = []
    async for chunk in reply.aiter_bytes():
        first, *others = chunk.split(b"\n")
        parts.append(first)
        for other in others:
            yield b"".join(parts).removesuffix(b"\r")
            parts = [other]


def _comment(text: bytes) -> Event | None:
    word, _, said = text.partition(b" ")
    if word == b"queued":
        return Queued(int(json.loads(said)["position"]))
    if word == b"step":
        step = json.loads(said)
        return Step(int(step["image_index"]), int(step["step"]), int(step["total"]))
    return None  # such as keep-alive


async def _picture(session: Session, said: dict[str, Any]) -> Picture:
    if "b64_json" in said:
        data = base64.b64decode(said["b64_json"], validate=True)
    else:  # of this session's gateway: the public name that a URL has may not lead there from here
        data = await session.content(f"/images/{urlsplit(said['url']).path.rpartition('/')[2]}")
    return Picture(
        data=data,
        url=said.get("url"),
        seed=int(said["seed"]),
        size=str(said["size"]),
        format=str(said["output_format"]),
        model=str(said["model"]),
        prompt=str(said["revised_prompt"]),
        usage={name: int(said["usage"][name]) for name in SPENT},
    )
