"""GET and HEAD of bytes that never change: validators and one range, as RFC 9110 has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import Response

from retouch_gateway.errors import NotTheSame, OutOfRange

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", re.IGNORECASE)


def answer(
    method: str,
    asked: Headers,
    data: bytes,
    media_type: str,
    etag: str,
    headers: Mapping[str, str],
) -> Response:
    """200 with all of `data`, 206 with the part `asked` for, or 304. Raises NotTheSame, OutOfRange.

    `etag`: a strong one, with its quotes. `headers`: what every answer carries.
    """
    if not meant(asked, etag):
        raise NotTheSame
    said = {**headers, "etag": etag, "accept-ranges": "bytes"}
    if _known(asked, etag):
        return Response(status_code=304, headers=said)
    part = _part(asked, len(data)) if method == "GET" and _unchanged(asked, etag) else None
    if not part:
        return Response(data, headers=said, media_type=media_type)
    said["content-range"] = f"bytes {part.start}-{part.stop - 1}/{len(data)}"
    return Response(data[part.start : part.stop], 206, said, media_type)


def meant(asked: Headers, etag: str) -> bool:
    """Whether it is what the caller wants, if it says (If-Match, compared strongly)."""
    tags = _tags(asked, "if-match")
    return not tags or "*" in tags or etag in tags


def _known(asked: Headers, etag: str) -> bool:
    """Whether the caller has it already (If-None-Match, compared weakly)."""
    tags = _tags(asked, "if-none-match")
    return "*" in tags or etag in (tag.removeprefix("W/") for tag in tags)


def _tags(asked: Headers, name: str) -> list[str]:
    return [tag.strip() for given in asked.getlist(name) for tag in given.split(",")]


def _unchanged(asked: Headers, etag: str) -> bool:
    """Whether a range of it is what the caller means (If-Range); a date never is, for want of ours."""
    return asked.get("if-range", etag).strip() == etag


def _part(asked: Headers, size: int) -> range | None:
    """The one range asked for; None for all of it, where several are asked for or none is said well."""
    found = _RANGE.fullmatch(asked.get("range", "").strip())
    if not found:
        return None
    first, last, suffix = (int(digits) if digits else None for digits in found.groups())
    if first is None:
        part = range(max(0, size - (suffix or 0)), size)
    elif last is not None and last < first:
        return None
    else:
        part = range(first, size if last is None else min(last + 1, size))
    if not part:
        raise OutOfRange(headers={"content-range": f"bytes */{size}"})
    return part
