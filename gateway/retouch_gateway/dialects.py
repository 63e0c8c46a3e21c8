"""Request bodies -> one Edit: JSON and multipart forms, by the same declaration of the fields.

Images are told by their content and bounded in bytes here, which saves sending them on. Ranges are the server's to
judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from retouch.v1.image_edit_pb2 import EditRequest
from retouch_gateway import forms, json_body, pictures
from retouch_gateway.errors import BadRequest, Violation
from retouch_gateway.fields import BY_NAME, FIELDS, INLINE, URL, Field
from retouch_gateway.multipart import Part
from retouch_gateway.values import Wrong, shortened

MAX_VIOLATIONS = 20
BOTH = "both"  # what a form that says nothing gets: some of its senders read one alone, and do not say which
UNKNOWN = "unknown field"


@dataclass(slots=True)
class Edit:
    """One request as the gateway understood it."""

    # An image or mask that is still to be fetched is empty in it.
    request: EditRequest
    # Whether each image comes back by `url`, and whether as `b64_json`: at least one of them.
    hosted: bool
    inline: bool
    stream: bool
    # Fields given that have no effect here, in the order given.
    ignored: tuple[str, ...]
    # What is to be fetched: `images[0]` or `mask` -> https address.
    links: dict[str, str]

    def digest(self) -> bytes:
        """SHA-256 over what was asked, however it was written. Reads all images: not for the loop."""
        asked = hashlib.sha256()
        for declared, value in self.request.ListFields():
            # One image at a time: the message as a whole would be a second copy of them all.
            for item in value if declared.is_repeated else [value]:
                data = _bytes(item)
                asked.update(b"%s %d " % (declared.name.encode(), len(data)))
                asked.update(data)
        said = (
            self.hosted,
            self.inline,
            self.stream,
            sorted(self.ignored),
            sorted(self.links.items()),
        )
        asked.update(_bytes(said))
        return asked.digest()


def _bytes(item: Any) -> bytes:
    if isinstance(item, Message):
        return item.SerializeToString(deterministic=True)
    return item if isinstance(item, bytes) else repr(item).encode()


def from_json(body: bytes | bytearray, max_image_bytes: int) -> Edit:
    """A JSON body. Raises BadRequest, naming every field that is at fault."""
    given = json_body.parse(body)
    if not isinstance(given, dict):
        raise BadRequest("The body must be a JSON object.")
    return _Reader(max_image_bytes, []).edit(given, URL)


def from_form(parts: Iterable[Part], max_image_bytes: int) -> Edit:
    """The parts of a form, emptied. Raises BadRequest, naming every field that is at fault."""
    given, violations = forms.values(parts, pictures.TEXT * max_image_bytes)
    return _Reader(max_image_bytes, violations).edit(given, BOTH)


class _Reader:
    """Collects one request's fields, and every violation rather than the first."""

    def __init__(self, max_image_bytes: int, violations: list[Violation]) -> None:
        self.max_image_bytes = max_image_bytes
        self.violations = violations
        self.request = EditRequest()
        self.links: dict[str, str] = {}
        self.ignored: list[str] = []
        self.own: dict[str, Any] = {}  # what the contract has no field for

    def edit(self, given: dict[str, Any], response_format: str) -> Edit:
        """The fields `given` as an Edit; `response_format` where they say nothing of it."""
        for name, value in given.items():
            if len(self.violations) >= MAX_VIOLATIONS:
                self.violations.append((None, "and maybe more"))
                break
            if value is not None:  # null is the same as absent
                self._read(name, value)
        else:
            self._whole()
        if any(text == UNKNOWN for _, text in self.violations):
            self.violations.append((None, f"the fields are {', '.join(f.name for f in FIELDS)}"))
        if self.violations:
            raise BadRequest.of(self.violations)
        stream = self.own.get("stream", False)
        wanted = self.own.get("response_format", INLINE if stream else response_format)
        return Edit(
            self.request,
            hosted=wanted != INLINE,
            inline=wanted != URL,
            stream=stream,
            ignored=tuple(self.ignored),
            links=self.links,
        )

    def _whole(self) -> None:
        """What is to be said of the fields together."""
        wrong = {(field or "").partition("[")[0] for field, _ in self.violations}
        if not self.request.images and not wrong & {"images", "image"}:
            self.violations.insert(0, ("images", "is required"))
        if self.request.partial_images and not self.own.get("stream") and "stream" not in wrong:
            self.violations.append(("partial_images", "has an effect only with stream"))

    def _read(self, name: str, value: Any) -> None:
        try:
            declared = BY_NAME.get(name)
            if not declared:
                raise Wrong(shortened(name), UNKNOWN)
            self._put(declared, declared.read(name, value))
        except Wrong as wrong:
            self.violations.append((wrong.field, wrong.text))

    def _put(self, declared: Field, value: Any) -> None:
        name = declared.name
        if name == "mask":
            self.request.mask = self._picture(name, value)
        elif declared.picture:
            self._images(name, value)
        elif not declared.effect:
            self.ignored.append(name)
        elif name not in EditRequest.DESCRIPTOR.fields_by_name:
            self.own[name] = value
        elif isinstance(value, Message):
            getattr(self.request, name).CopyFrom(value)
        elif value is not None:
            setattr(self.request, name, value)

    def _images(self, name: str, given: list[Any]) -> None:
        if self.request.images:
            raise Wrong(name, "is another name of the images that are given already")
        given.reverse()
        while given:  # each is let go when it is decoded
            place = f"images[{len(self.request.images)}]"
            self.request.images.append(self._picture(place, given.pop()))

    def _picture(self, place: str, given: Any) -> bytes:
        picture = pictures.read(place, given, self.max_image_bytes)
        if isinstance(picture, bytes):
            return picture
        self.links[place] = picture
        return b""
