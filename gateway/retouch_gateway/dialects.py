"""Request bodies -> one EditRequest. The only place that knows the REST field names.

Ranges are the server's to judge. Checked here is what saves bytes (base64, image kind and size, how
many) and what the contract cannot carry (a negative or oversized integer, a value of another type).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pybase64

from retouch.v1.image_edit_pb2 import EditRequest, Size
from retouch_gateway.errors import BadRequest, Violation

MAX_IMAGES = 16
# Commas and brackets in a body: an edit has some dozens, and a prompt its own. Parsed, each `{}` takes thirty times the
# memory that it takes in the body.
MAX_STRUCTURE = 10_000
MAX_VIOLATIONS = 20
URL, INLINE = "url", "b64_json"
SWITCH = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Edit:
    """One request as the gateway understood it."""

    request: EditRequest
    # How images are to come back: URL or INLINE.
    response_format: str


def from_json(body: bytes | bytearray, max_image_bytes: int) -> Edit:
    """The JSON dialect. Raises BadRequest, naming every field that is at fault."""
    if sum(map(body.count, b",[{")) > MAX_STRUCTURE:
        raise BadRequest("The body has too many fields, items or objects to be an edit.")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error.msg}.") from None
    if not isinstance(given, dict):
        raise BadRequest("The body must be a JSON object.")
    reader = _Reader(max_image_bytes)
    for name, value in given.items():
        if value is not None:  # null is the same as absent
            reader.read(name, value)
        if len(reader.violations) == MAX_VIOLATIONS:
            reader.violations.append((None, "and maybe more"))
            break
    if not reader.request.images and not any(_of_images(field) for field, _ in reader.violations):
        reader.violations.insert(0, ("images", "is required"))
    if any(text == "unknown field" for _, text in reader.violations):
        reader.violations.append((None, f"the fields are {', '.join(FIELDS)}"))
    if reader.violations:
        raise BadRequest.of(reader.violations)
    return Edit(reader.request, reader.response_format)


def _of_images(field: str | None) -> bool:
    return (field or "").startswith("images")


class _Reader:
    """Collects one request's fields, and every violation rather than the first."""

    def __init__(self, max_image_bytes: int) -> None:
        self.request = EditRequest()
        self.response_format = URL
        self.violations: list[Violation] = []
        self.max_image_bytes = max_image_bytes

    def read(self, name: str, value: Any) -> None:
        try:
            if name in VALUES:
                setattr(self.request, name, VALUES[name](name, value))
            elif name in OTHERS:
                OTHERS[name](self, name, value)
            else:
                raise Wrong(_shown(name), "unknown field")
        except Wrong as wrong:
            self.violations.append((wrong.field, wrong.text))

    def images(self, name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise Wrong(name, f"must be an array of base64 strings, not {_kind(value)}")
        if not 1 <= len(value) <= MAX_IMAGES:
            raise Wrong(name, f"must be 1 to {MAX_IMAGES} images, not {len(value)}")
        self.request.images.extend(
            image_bytes(f"{name}[{i}]", item, self.max_image_bytes) for i, item in enumerate(value)
        )

    def mask(self, name: str, value: Any) -> None:
        self.request.mask = image_bytes(name, value, self.max_image_bytes)

    def size(self, name: str, value: Any) -> None:
        if text(name, value) == "auto":  # what unset means, too
            return
        found = _SIZE.fullmatch(value)
        if not found:
            raise Wrong(name, "must be 256x256, 512x512, 1024x1024, another WxH in pixels, or auto")
        self.request.size.CopyFrom(Size(width=int(found[1]), height=int(found[2])))

    def response(self, name: str, value: Any) -> None:
        if text(name, value) not in (URL, INLINE):
            raise Wrong(name, f"must be {URL} or {INLINE}")
        self.response_format = value


class Wrong(Exception):
    """One field breaks one rule."""

    def __init__(self, field: str, text: str) -> None:
        self.field, self.text = field, text
        super().__init__(field, text)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(name, f"must be a string, not {_kind(value)}")
    return value


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong(name, f"must be a number, not {_kind(value)}")
    return value


def integer(name: str, value: Any, most: int, shown: str) -> int:
    """An integer that fits 0..`most`; `shown` is the range to say when it does not."""
    number(name, value)
    # The parser reads an integer beyond 64 bits as a float: out of range, rather than not whole.
    if isinstance(value, float) and abs(value) < 2**63:
        raise Wrong(name, f"must be an integer, not {value}")
    if not 0 <= value <= most:
        raise Wrong(name, f"must be {shown}, not {value}")
    return int(value)


def switch(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in SWITCH:
        return SWITCH[value.lower()]
    raise Wrong(name, f"must be a boolean, or one of the strings {', '.join(SWITCH)}")


def image_bytes(name: str, value: Any, most: int) -> bytes:
    """The encoded image in a base64 string or data URL.

    Whitespace is allowed, missing padding is not: it is how a cut-off upload looks.
    """
    encoded = text(name, value)
    prefix = _DATA_URL.match(encoded)
    if prefix:
        encoded = encoded[prefix.end() :]
    data = _decoded(encoded)
    if data is None:  # line breaks, maybe: looked for only now, for it costs more than decoding
        data = _decoded("".join(encoded.split()))
    if data is None:
        raise Wrong(name, "is not whole base64 (with its padding), nor a base64 data URL")
    if not data:
        raise Wrong(name, "is empty")
    if len(data) > most:
        raise Wrong(name, f"has {len(data)} bytes; at most {most} are allowed")
    if not _is_image(data):
        raise Wrong(name, "is not a PNG, JPEG or WebP image")
    return data


def _decoded(encoded: str) -> bytes | None:
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        return None


def _is_image(data: bytes) -> bool:
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (
        data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    kinds = {
        str: "a string",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return kinds.get(type(value), "null")


def _shown(name: str) -> str:
    return name if len(name) <= 64 else name[:64] + "…"


# The declaration of the fields: those that are one value of EditRequest under the same name, then
# those that take more.
VALUES: dict[str, Callable[[str, Any], Any]] = {
    "prompt": text,
    "model": text,
    "n": lambda name, value: integer(name, value, 2**32 - 1, "1 to 10"),
    "strength": number,
    "guidance_scale": number,
    "num_inference_steps": lambda name, value: integer(name, value, 2**32 - 1, "1 to 100"),
    "seed": lambda name, value: integer(name, value, 2**64 - 1, "0 to 2^64-1"),
    "kontext_max_mode": switch,
}
OTHERS: dict[str, Callable[[_Reader, str, Any], None]] = {
    "images": _Reader.images,
    "mask": _Reader.mask,
    "size": _Reader.size,
    "response_format": _Reader.response,
}
FIELDS = (*OTHERS, *VALUES)
