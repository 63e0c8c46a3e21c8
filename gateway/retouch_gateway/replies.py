"""What leaves the gateway: a finished edit, and the models, as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pybase64
from google.protobuf.message import Message
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from retouch.v1.image_edit_pb2 import EditedImage, EditResponse, Model
from retouch_gateway.hosting import Hosted

STORE_FAILED = "The image store failed, so images are inline (b64_json) instead of by URL."


def json_response(
    body: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`body` as application/json."""
    return Response(orjson.dumps(body), status, headers, "application/json")


async def edited(
    response: EditResponse, hosted: Sequence[Hosted | None], base_url: str
) -> Response:
    """The answer to an edit.

    `hosted` is empty when images are wanted inline; else it says, image by image, where each
    is, None where the store failed: that one goes inline, and `warning` says why.
    """
    # Megabytes of base64: a few milliseconds each, so not on the loop.
    return await run_in_threadpool(_edited, response, hosted, base_url)


def _edited(response: EditResponse, hosted: Sequence[Hosted | None], base_url: str) -> Response:
    places = hosted or [None] * len(response.images)
    body: dict[str, Any] = {
        "created": int(time.time()),
        "data": [
            _item(image, place, base_url)
            for image, place in zip(response.images, places, strict=True)
        ],
        "model": response.model,
        "usage": fields(response.usage),
    }
    if None in hosted:
        body["warning"] = STORE_FAILED
    return json_response(body)


def _item(image: EditedImage, place: Hosted | None, base_url: str) -> dict[str, Any]:
    picture: dict[str, Any]
    if place:
        picture = {"url": base_url + place.path, "expires_at": place.expires_at}
    else:
        picture = {"b64_json": pybase64.b64encode_as_string(image.data)}
    return picture | {"revised_prompt": image.revised_prompt, "seed": image.seed}


def model(model: Model) -> dict[str, Any]:
    """A model as `GET /v1/models` lists it: OpenAI's four keys, then what we know of it."""
    return {"object": "model", "owned_by": "retouch", **fields(model)}


def fields(message: Message) -> dict[str, Any]:
    """A message's fields by name, nested; an `optional` one that is unset is left out.

    Not protobuf's own JSON, which turns 64-bit numbers into strings.
    """
    return {
        field.name: fields(value) if isinstance(value, Message) else value
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
        for value in [getattr(message, field.name)]
    }
