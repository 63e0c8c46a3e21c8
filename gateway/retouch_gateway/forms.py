"""The parts of a multipart form -> the values that a JSON body would have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from retouch_gateway.errors import Violation
from retouch_gateway.fields import BY_NAME
from retouch_gateway.json_body import LONG
from retouch_gateway.multipart import Part
from retouch_gateway.pictures import is_image
from retouch_gateway.values import Wrong

# `image[]`, `images[2]`, and what SDKs make of nested objects: `images[][image_url]`, `mask[image_url][url]`.
_PICTURE = re.compile(
    r"(?:images?(?:\[(?P<index>[0-9]{0,4})\])?|(?P<mask>mask))"
    r"(?:\[image_url\](?:\[url\])?|(?P<file_id>\[file_id\]))?"
)


def values(parts: Iterable[Part], longest: int) -> tuple[dict[str, Any], list[Violation]]:
    """Each field's value, all images under `images`, in the order given or by their indices; and what is wrong.

    The parts are emptied. A picture is bytes where it is one, else text, of up to `longest` bytes. A part with neither
    a file's name nor a byte of it is what a browser sends for a file that was not chosen: absent.
    """
    given: dict[str, Any] = {}
    images: list[tuple[str, Any]] = []
    violations: list[Violation] = []
    for part in parts:
        if part.filename == b"" and not part.data:
            continue
        try:
            found = _PICTURE.fullmatch(part.name)
            name = "mask" if found and found["mask"] else part.name
            if found and not found["mask"]:
                images.append((found["index"] or "", _picture(part, found, longest)))
            elif name not in BY_NAME:
                given[name] = ""  # whatever it is: its name is refused
            elif name in given:
                raise Wrong(name, "is given more than once")
            else:
                given[name] = _picture(part, found, longest) if found else _value(part)
        except Wrong as wrong:
            violations.append((wrong.field, wrong.text))
    if images:
        try:
            given["images"] = _in_order(images)
        except Wrong as wrong:
            violations.append((wrong.field, wrong.text))
    return given, violations


def _in_order(images: list[tuple[str, Any]]) -> list[Any]:
    indices = [int(index) for index, _ in images if index]
    if not indices:
        return [image for _, image in images]
    if len(indices) < len(images):
        raise Wrong("images", "must all have an index, or none")
    if len(set(indices)) < len(images):
        raise Wrong("images", "must each have an index of its own")
    return [image for _, image in sorted(images, key=lambda indexed: int(indexed[0]))]


def _picture(part: Part, found: re.Match[str], longest: int) -> Any:
    """A file as bytes. What is not called one may be a file all the same: a few clients name none."""
    data = part.take()
    if part.filename is not None or is_image(data) or len(data) > longest:
        return data
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    return {"file_id": text} if found["file_id"] else text


def _value(part: Part) -> Any:
    if len(part.data) > LONG:
        raise Wrong(part.name, "is too long")
    try:
        return BY_NAME[part.name].from_text(part.take().decode())
    except UnicodeDecodeError:
        raise Wrong(part.name, "is not UTF-8") from None
