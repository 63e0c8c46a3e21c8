"""What each scenario must come to: for the user, who has `saw`, and for the server, which got `calls`.

`saw` has OpenAI's names: data, usage, events, error. What a client hides from its user is not asked for.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

import httpx

from retouch.v1 import image_edit_pb2 as pb
from tests.conformance.conftest import KEY, PICTURES, Call
from tests.gateway.conftest import MODEL

PHOTO, OTHER, MASK = PICTURES["photo.png"], PICTURES["other.jpg"], PICTURES["mask.png"]


@dataclass
class Seen:
    """One cell of the matrix: what both ends have to show."""

    client: str
    saw: dict[str, Any]
    calls: list[Call]

    @property
    def request(self) -> pb.EditRequest:
        """The only one that reached the server."""
        assert len(self.calls) == 1, self.saw
        return self.calls[0].request

    @property
    def ai(self) -> bool:
        """The AI SDK hides most of an answer, and downloads what comes by URL."""
        return self.client.startswith("ai")


def pictures(seen: Seen, *expected: bytes) -> list[dict[str, Any]]:
    """The images that the user got inline."""
    assert "error" not in seen.saw, seen.saw
    data: list[dict[str, Any]] = seen.saw["data"]
    assert tuple(b64decode(item["b64_json"]) for item in data) == expected
    return data


def error(seen: Seen, status: int, kind: str, param: str | None = None) -> dict[str, Any]:
    """The error, as every client shows it; and that it is its own exception."""
    told: dict[str, Any] = seen.saw["error"]
    assert told.get("status_code", status) == status
    assert (int(told["code"]), told["type"], told["param"]) == (status, kind, param)
    assert told["message"]
    if seen.client != "curl":
        ours = {400: "BadRequestError", 401: "AuthenticationError", 502: "InternalServerError"}
        assert told["class"] == ("APICallError" if seen.ai else ours[status])
    return told


async def fetched(url: str) -> bytes:
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).raise_for_status().content


async def one(seen: Seen) -> None:
    assert list(seen.request.images) == [PHOTO]
    (item,) = pictures(seen, PHOTO)
    if seen.ai:
        assert item["mediaType"] == "image/png"
        assert seen.saw["warnings"] == []
    else:
        assert await fetched(item["url"]) == PHOTO
        assert item["revised_prompt"] == seen.request.prompt
        assert {"seed", "expires_at"} < set(item)
        assert seen.saw["usage"]["input_images"] == 1
        assert seen.saw["request_id"].startswith("req_")
        assert seen.saw["created"] > 1_700_000_000
        assert (seen.saw["size"], seen.saw["output_format"]) == ("16x12", "png")


async def two(seen: Seen) -> None:
    assert list(seen.request.images) == [PHOTO, OTHER]
    pictures(seen, PHOTO)


async def mask(seen: Seen) -> None:
    assert (seen.request.mask, list(seen.request.images)) == (MASK, [PHOTO])
    pictures(seen, PHOTO)


async def several(seen: Seen) -> None:
    pictures(seen, PHOTO, PHOTO)
    # The AI SDK asks for one at a time.
    assert sum(call.request.n or 1 for call in seen.calls) == 2


async def url(seen: Seen) -> None:
    if seen.ai:
        pictures(seen, PHOTO)
    else:
        (item,) = seen.saw["data"]
        assert "b64_json" not in item
        assert await fetched(item["url"]) == PHOTO


async def inline(seen: Seen) -> None:
    (item,) = pictures(seen, PHOTO)
    assert "url" not in item


async def fields(seen: Seen) -> None:
    request = seen.request
    assert (request.strength, request.seed, request.kontext_max_mode) == (0.7, 2**64 - 1, True)
    assert (request.size.width, request.size.height) == (512, 512)
    pictures(seen, PHOTO)
    if not seen.ai:
        assert seen.saw["ignored"] == ["quality"]


async def dialect(seen: Seen) -> None:
    assert (list(seen.request.images), seen.request.seed) == ([PHOTO], 7)
    (item,) = seen.saw["data"]
    assert "b64_json" not in item
    assert item["seed"] == 7
    assert await fetched(item["url"]) == PHOTO


extra_body = dialect


async def stream(seen: Seen) -> None:
    events = seen.saw["events"]
    assert [event["type"] for event in events] == [
        "image_edit.partial_image",
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    assert [event["partial_image_index"] for event in events[:2]] == [0, 1]
    for event in events:
        assert b64decode(event["b64_json"]) == PHOTO
        assert (event["size"], event["output_format"]) == ("16x12", "png")
    assert events[2]["usage"]["output_images"] == 1
    if seen.client.startswith("python"):
        assert events[0]["class"] == "ImageEditPartialImageEvent"
        assert events[2]["class"] == "ImageEditCompletedEvent"


async def broken(seen: Seen) -> None:
    assert [event["type"] for event in seen.saw["events"]] == ["image_edit.partial_image"]
    told = seen.saw["error"]
    assert (int(told["code"]), told["type"], told["param"]) == (500, "api_error", None)
    assert "secret" not in str(seen.saw)
    if seen.client != "curl":
        assert told["class"] == "APIError"


async def hang_up(seen: Seen) -> None:
    assert seen.saw["events"][0]["type"] == "image_edit.partial_image"
    await cancelled(seen)


async def cancel(seen: Seen) -> None:
    assert seen.saw == {"cancelled": True}
    await cancelled(seen)


async def cancelled(seen: Seen) -> None:
    assert len(seen.calls) == 1
    async with asyncio.timeout(2):
        await seen.calls[0].cancelled.wait()


async def refused(seen: Seen) -> None:
    told = error(seen, 400, "invalid_request_error", "size")
    assert told["request_id"] == seen.calls[0].metadata["x-request-id"]
    assert "must be a multiple of 8" in told["message"]


async def unknown(seen: Seen) -> None:
    error(seen, 400, "invalid_request_error", "zoom")
    assert not seen.calls


async def key_unknown(seen: Seen) -> None:
    assert KEY not in error(seen, 401, "authentication_error")["message"]
    assert not seen.calls


async def busy(seen: Seen) -> None:
    pictures(seen, PHOTO)
    assert len({call.metadata["x-request-id"] for call in seen.calls}) == 2


unready = busy


async def lost(seen: Seen) -> None:
    error(seen, 502, "api_error")
    assert len(seen.calls) == 1


async def models(seen: Seen) -> None:
    assert seen.saw["ids"] == [MODEL.id]
    assert seen.saw.get("one", MODEL.id) == MODEL.id
    # What OpenAI's models have not comes through all the same.
    assert all(limits["max_images"] == MODEL.limits.max_images for limits in seen.saw["limits"])
