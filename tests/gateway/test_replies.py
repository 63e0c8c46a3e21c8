"""The plain answer to an edit, byte by byte what its caller asked for."""

from __future__ import annotations

import threading
from typing import Any

import orjson
import pybase64
import pytest
from openai.types import ImagesResponse

from retouch.v1 import image_edit_pb2 as pb
from retouch_gateway import replies
from retouch_gateway.dialects import Edit
from retouch_gateway.errors import ONCE, BadUpstream
from retouch_gateway.hosting import Hosted

BASE = "https://pics.example"
JPEG = pb.OutputFormat.OUTPUT_FORMAT_JPEG


def edit(hosted: bool = False, inline: bool = True, ignored: tuple[str, ...] = ()) -> Edit:
    return Edit(pb.EditRequest(), hosted, inline, False, ignored, {})


def image(data: bytes = b"one", seed: int = 2**64 - 1, **given: Any) -> pb.EditedImage:
    shown: dict[str, Any] = {
        "format": JPEG,
        "width": 64,
        "height": 48,
        "revised_prompt": "sepia",
    } | given
    return pb.EditedImage(data=data, seed=seed, **shown)


def response(*images: pb.EditedImage) -> pb.EditResponse:
    spent = pb.Usage(input_images=2, output_images=len(images), steps=20 * len(images))
    return pb.EditResponse(images=images, usage=spent, model="acme/echo")


async def answer(asked: Edit, *images: pb.EditedImage, hosted: Any = ()) -> dict[str, Any]:
    answered = await replies.edited(response(*images), asked, hosted, BASE)
    assert answered.headers["content-type"] == "application/json"
    body: dict[str, Any] = orjson.loads(answered.body)
    return body


async def test_inline() -> None:
    body = await answer(edit(), image(), image(b"two", 0))
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "data": [
            {"b64_json": "b25l", "revised_prompt": "sepia", "seed": 2**64 - 1},
            {"b64_json": "dHdv", "revised_prompt": "sepia", "seed": 0},
        ],
        "model": "acme/echo",
        "size": "64x48",
        "output_format": "jpeg",
        "usage": {"input_images": 2, "output_images": 2, "steps": 40} | replies.NO_TOKENS,
    }


async def test_by_url() -> None:
    body = await answer(edit(hosted=True, inline=False), image(), hosted=[Hosted("/images/a", 9)])
    (item,) = body["data"]
    assert (item["url"], item["expires_at"]) == (BASE + "/images/a", 9)
    assert "b64_json" not in item
    assert "warning" not in body


async def test_both() -> None:
    body = await answer(edit(hosted=True), image(), hosted=[Hosted("/images/a", 9)])
    assert {"url", "expires_at", "b64_json"} < set(body["data"][0])


@pytest.mark.parametrize("inline", [True, False])
async def test_a_store_that_failed_on_one_of_two(inline: bool) -> None:
    asked = edit(hosted=True, inline=inline)
    body = await answer(asked, image(), image(b"two"), hosted=[Hosted("/images/a", 9), None])
    kept, failed = body["data"]
    assert ("b64_json" in kept) is inline
    assert "url" in kept
    assert failed["b64_json"] == "dHdv"
    assert "url" not in failed
    assert body["warning"] == replies.STORE_FAILED


async def test_what_was_ignored_is_told() -> None:
    assert "ignored" not in await answer(edit(), image())
    body = await answer(edit(ignored=("quality", "user")), image())
    assert body["ignored"] == ["quality", "user"]


async def test_it_is_what_the_official_sdk_declares() -> None:
    """Its own parser believes anything; here its types do the judging."""
    for asked, hosted in ((edit(), []), (edit(hosted=True), [Hosted("/images/a", 9)])):
        body = await answer(asked, image(), hosted=hosted)
        parsed = ImagesResponse.model_validate(body, strict=True)
        assert parsed.usage
        assert parsed.usage.total_tokens == 0


@pytest.mark.parametrize(
    "images", [[], [image(format=pb.OutputFormat.OUTPUT_FORMAT_UNSPECIFIED)], [image(format=99)]]
)
def test_images_that_make_no_sense(images: list[pb.EditedImage]) -> None:
    with pytest.raises(BadUpstream) as caught:
        replies.check(images)
    assert caught.value.headers == ONCE
    replies.check([image()])


async def test_megabytes_are_not_the_loops() -> None:
    here = threading.get_ident()
    assert await replies.off_loop(replies.LARGE, threading.get_ident) == here
    assert await replies.off_loop(replies.LARGE + 1, threading.get_ident) != here
    large = bytes(replies.LARGE + 1)
    body = await answer(edit(), image(large))
    assert pybase64.b64decode(body["data"][0]["b64_json"]) == large


def test_a_message_by_field() -> None:
    """64-bit numbers stay numbers, and what is unset stays out."""
    model = pb.Model(id="a", created=2**40, limits=pb.Limits(max_pixels=2**63))
    told = replies.model(model)
    assert told["created"] == 2**40
    assert told["limits"]["max_pixels"] == 2**63
    assert "defaults" not in told
    assert told["examples"] == []
    assert replies.fields(pb.Defaults(strength=0)) == {"strength": 0, "num_inference_steps": 0}


def test_what_is_repeated_is_a_list() -> None:
    listed = pb.ListModelsResponse(models=[pb.Model(id="a", examples=["one", "two"])])
    (told,) = orjson.loads(orjson.dumps(replies.fields(listed)))["models"]
    assert (told["id"], told["examples"]) == ("a", ["one", "two"])
