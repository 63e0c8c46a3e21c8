"""What leaves the gateway: a finished edit, and the models, as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import orjson
import pybase64
from google.protobuf.message import Message
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from retouch.v1.image_edit_pb2 import EditedImage, EditResponse, Model, Usage
from retouch_gateway.dialects import Edit
from retouch_gateway.errors import ONCE, BadUpstream
from retouch_gateway.fields import FORMATS as _VALUES
from retouch_gateway.hosting import Hosted

P = ParamSpec("P")
T = TypeVar("T")

STORE_FAILED = "The image store failed, so images are inline (b64_json) instead of by URL."
FORMATS = {value: name for name, value in _VALUES.items()}
# Clients' types want OpenAI's counts; nothing here is counted in tokens.
_TOKENS = {"image_tokens": 0, "text_tokens": 0}
NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": _TOKENS,
    "output_tokens": 0,
    "output_tokens_details": _TOKENS,
    "total_tokens": 0,
}
# Bytes whose base64 and JSON take about a millisecond; more is not for the loop.
LARGE = 2 * 2**20


def json_response(
    body: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`body` as application/json."""
    return Response(orjson.dumps(body), status, headers, "application/json")


async def edited(
    response: EditResponse, edit: Edit, hosted: Sequence[Hosted | None], base_url: str
) -> Response:
    """The answer to an edit, `response` with images that check() let pass.

    `hosted` is empty unless the edit is to be hosted; then it says, image by image, where each
    is, None where the store failed: that one goes inline, and `warning` says why.
    """
    return await off_loop(response.ByteSize(), _edited, response, edit, hosted, base_url)


async def off_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` makes of its arguments, in a thread if they hold more than LARGE bytes."""
    if size > LARGE:
        return await run_in_threadpool(work, *args, **kwargs)
    return work(*args, **kwargs)


def check(images: Sequence[EditedImage]) -> None:
    """Raises BadUpstream unless there are some, each of a format that we know."""
    if not images or any(image.format not in FORMATS for image in images):
        raise BadUpstream(headers=ONCE)  # the edit is done


def _edited(
    response: EditResponse, edit: Edit, hosted: Sequence[Hosted | None], base_url: str
) -> Response:
    places = hosted or [None] * len(response.images)
    body = {
        "created": int(time.time()),
        "data": [
            picture(image, edit, place, base_url) | origin(image)
            for image, place in zip(response.images, places, strict=True)
        ],
        "model": response.model,
        **look(response.images[0]),
        "usage": usage(response.usage),
        **remarks(edit, hosted),
    }
    return json_response(body)


def picture(image: EditedImage, edit: Edit, place: Hosted | None, base_url: str) -> dict[str, Any]:
    """The image itself: by URL, inline, or both, as the edit wants it and the store allowed."""
    shown: dict[str, Any] = {}
    if place:
        shown = {"url": base_url + place.path, "expires_at": place.expires_at}
    if edit.inline or not place:
        shown["b64_json"] = pybase64.b64encode_as_string(image.data)
    return shown


def origin(image: EditedImage) -> dict[str, Any]:
    """What made the image."""
    return {"revised_prompt": image.revised_prompt, "seed": image.seed}


def look(image: EditedImage) -> dict[str, Any]:
    """Its size and format, in OpenAI's words."""
    return {"size": f"{image.width}x{image.height}", "output_format": FORMATS[image.format]}


def usage(spent: Usage) -> dict[str, Any]:
    """What was spent: images and steps, and OpenAI's tokens, all 0."""
    return fields(spent) | NO_TOKENS


def remarks(edit: Edit, hosted: Sequence[Hosted | None]) -> dict[str, Any]:
    """What the caller should know, if there is anything: fields without effect, a store that failed."""
    said: dict[str, Any] = {"ignored": list(edit.ignored)} if edit.ignored else {}
    if None in hosted:
        said["warning"] = STORE_FAILED
    return said


def model(model: Model) -> dict[str, Any]:
    """A model as `GET /v1/models` lists it: OpenAI's four keys, then what we know of it."""
    return {"object": "model", "owned_by": "retouch", **fields(model)}


def fields(message: Message) -> dict[str, Any]:
    """A message's fields by name, nested; an `optional` one that is unset is left out, a `repeated` one is a list.

    Not protobuf's own JSON, which turns 64-bit numbers into strings.
    """
    return {
        field.name: _plain(getattr(message, field.name), repeated=field.is_repeated)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _plain(value: Any, *, repeated: bool = False) -> Any:
    if repeated:
        return [_plain(each) for each in value]
    return fields(value) if isinstance(value, Message) else value
