"""The forms of programs that cannot be run here, byte by byte as their HTTP libraries write them."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conformance.conftest import KEY, PICTURES, World

PHOTO, OTHER, MASK = PICTURES.values()
PROMPT = "café by night"  # as the part's own bytes, in UTF-8
MODEL = "acme/echo"

Part = tuple[str, str | bytes]


def plain(**fields: str) -> list[Part]:
    """Text as httpx, undici and form-data write it."""
    return [
        (f'Content-Disposition: form-data; name="{name}"', text) for name, text in fields.items()
    ]


def typed(**fields: str) -> list[Part]:
    """Text as aiohttp writes it."""
    kind = "Content-Type: text/plain; charset=utf-8"
    return [(f"{kind}\r\n{head}", text) for head, text in plain(**fields)]


def file(name: str, filename: str, kind: str, data: bytes) -> Part:
    """A file as most write it; without a filename as form-data and openai-java may."""
    named = f'; filename="{filename}"' if filename else ""
    return f'Content-Disposition: form-data; name="{name}"{named}\r\nContent-Type: {kind}', data


@dataclass(frozen=True)
class Shape:
    """`reads`: the keys that the program looks for in the first item, in its order; it finds `found`."""

    program: str
    boundary: str
    parts: list[Part]
    reads: tuple[str, ...]
    found: str
    images: tuple[bytes, ...] = (PHOTO,)
    mask: bytes = b""
    ignored: list[str] = field(default_factory=list)
    chunked: bool = False
    query: str = ""

    @property
    def body(self) -> bytes:
        pieces = []
        for head, value in self.parts:
            data = value if isinstance(value, bytes) else value.encode()
            pieces.append(f"--{self.boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n")
        return b"".join([*pieces, f"--{self.boundary}--\r\n".encode()])


HTTPX, AIOHTTP = "28594f8acfec3c3d557b4b26b215bbdd", "06b59112ded941bb80824c0e8739a100"
UNDICI, FORM_DATA = "----formdata-undici-085206760325", "-" * 26 + "a96cca73814abf3079400d78"
COMMON = {"model": MODEL, "prompt": PROMPT}

SHAPES = [
    Shape(
        "Open WebUI, one image",
        AIOHTTP,
        [
            *typed(**COMMON, n="1", size="512x512", response_format="b64_json"),
            (
                'Content-Type: image/png\r\nContent-Disposition: form-data; name="image"; '
                'filename="image.png"',
                PHOTO,
            ),
        ],
        ("url", "b64_json"),
        "b64_json",
    ),
    Shape(
        "Open WebUI, two images, for Azure, and a model whose name it knows",
        AIOHTTP,
        [
            *typed(**COMMON, background="auto"),
            file("image[]", "image.png", "image/png", PHOTO),
            file("image[]", "image.jpg", "image/jpeg", OTHER),
        ],
        ("url", "b64_json"),
        "url",
        images=(PHOTO, OTHER),
        ignored=["background"],
        query="?api-version=2025-04-01-preview",
    ),
    Shape(
        "LiteLLM",
        HTTPX,
        [
            *plain(model=MODEL, n="1", size="512x512", prompt=PROMPT),
            file("image[]", "/tmp/photo.png", "image/png", PHOTO),  # noqa: S108
            file("image[]", "image.png", "image/png", OTHER),
            file("mask", "mask.png", "image/png", MASK),
        ],
        ("b64_json",),
        "b64_json",
        images=(PHOTO, OTHER),
        mask=MASK,
    ),
    Shape(
        "LibreChat, of a stored file",
        FORM_DATA,
        [
            *plain(**COMMON, quality="auto", size="auto"),
            file("image[]", "photo é.png", "image/png", PHOTO),
        ],
        ("b64_json",),
        "b64_json",
        ignored=["quality"],
    ),
    Shape(
        "LibreChat, of a remote one",
        FORM_DATA,
        [
            *plain(**COMMON, quality="high", size="auto"),
            file("image[]", "a.png", "image/png", PHOTO),
        ],
        ("b64_json",),
        "b64_json",
        ignored=["quality"],
        chunked=True,
    ),
    Shape(
        "n8n, gpt-image",
        FORM_DATA,
        [
            file("image[]", "", "image/png", PHOTO),
            *plain(prompt=PROMPT, model=MODEL, n="1", size="1024x1024", user="u-1"),
            *plain(input_fidelity="low", quality="auto"),
            file("mask", "mask.png", "image/png", MASK),
        ],
        ("b64_json",),
        "b64_json",
        mask=MASK,
        ignored=["user", "input_fidelity", "quality"],
    ),
    Shape(
        "n8n, dall-e-2",
        FORM_DATA,
        [
            file("image", "data.png", "image/png", PHOTO),
            *plain(prompt=PROMPT, model=MODEL, n="1", size="256x256", response_format="url"),
        ],
        ("url",),
        "url",
    ),
    Shape(
        "LobeChat",
        UNDICI,
        [
            *plain(model=MODEL, n="1", input_fidelity="high"),
            file("image", "image.png", "image/png", PHOTO),
            *plain(prompt=PROMPT),
        ],
        ("b64_json", "url"),
        "b64_json",
        ignored=["input_fidelity"],
    ),
    Shape(
        "openai-java, of a stream",
        "6e1d8a5c-3f0a-4f7e-9d3b-0a4f3e1c2b7d",
        [file("image", "", "application/octet-stream", PHOTO), *plain(**COMMON)],
        ("b64_json",),
        "b64_json",
        chunked=True,
    ),
]


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """Sent so, a body has no Content-Length; pieces end anywhere, inside boundaries too."""
    for start in range(0, len(body), 97):
        yield body[start : start + 97]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.program)
async def test_a_recorded_form(world: World, shape: Shape) -> None:
    calls = world.actor.calls[PROMPT]
    calls.clear()
    content: Any = in_pieces(shape.body) if shape.chunked else shape.body
    response = await world.gateway.client.post(
        f"/v1/images/edits{shape.query}",
        content=content,
        headers={
            "authorization": f"Bearer {KEY}",
            "content-type": f"multipart/form-data; boundary={shape.boundary}",
        },
    )
    assert response.status_code == 200, response.text
    (call,) = calls
    assert tuple(call.request.images) == shape.images
    assert call.request.mask == shape.mask
    answer = response.json()
    assert answer.get("ignored", []) == shape.ignored
    (item,) = answer["data"]
    assert next(key for key in shape.reads if item.get(key)) == shape.found
    if shape.found == "url":
        assert (await world.gateway.client.get(item["url"])).content == PHOTO
    else:
        assert b64decode(item["b64_json"]) == PHOTO
