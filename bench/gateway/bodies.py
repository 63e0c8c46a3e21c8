"""The pictures that are sent, and whole HTTP requests around them."""

from __future__ import annotations

import io
import json
from typing import Literal, NamedTuple

import numpy as np
import pybase64
from PIL import Image

Body = Literal["json", "multipart"]
Answer = Literal["b64_json", "url"]
MODEL = "echo"
BOUNDARY = "----------------------------0123456789abcdef"


class Ask(NamedTuple):
    """How an edit goes in and how its picture is to come out."""

    body: Body
    answer: Answer


ASKS = (
    Ask("json", "b64_json"),
    Ask("json", "url"),
    Ask("multipart", "b64_json"),
    Ask("multipart", "url"),
)


def photo(side: int) -> bytes:
    """A PNG as a camera's picture makes one: soft shapes under a sensor's noise; 1.6 MB at 1024."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    shapes = np.stack([np.sin(7 * x + i) * np.cos(5 * y * (i + 1)) for i in range(3)], axis=-1)
    pixels = 128 + 90 * shapes + rng.normal(0, 2.8, shapes.shape)
    return png(pixels.clip(0, 255).astype(np.uint8))


def noisy(side: int) -> bytes:
    """A PNG that does not compress: 3 bytes a pixel, so that in base64 it has four."""
    return png(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def request(picture: bytes, ask: Ask) -> bytes:
    """A whole HTTP/1.1 request for one edit of `picture`."""
    fields = {"model": MODEL, "prompt": "make it night", "response_format": ask.answer}
    if ask.body == "json":
        media_type = "application/json"
        encoded = pybase64.b64encode_as_string(picture)
        body = json.dumps({**fields, "images": [encoded]}).encode()
    else:
        media_type = f"multipart/form-data; boundary={BOUNDARY}"
        body = form(picture, fields)
    head = (
        "POST /v1/images/edits HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "Authorization: Bearer none\r\n"
        f"Content-Type: {media_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def form(picture: bytes, fields: dict[str, str]) -> bytes:
    """As the official SDKs send it."""
    line = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    text = "".join(f'{line}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
    file = f'{line}"image"; filename="photo.png"\r\nContent-Type: image/png\r\n\r\n'
    return (text + file).encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
