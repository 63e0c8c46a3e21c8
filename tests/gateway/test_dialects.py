"""One JSON body in, one EditRequest out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retouch.v1.image_edit_pb2 import EditRequest
from retouch_gateway.dialects import INLINE, URL, Edit, from_json
from retouch_gateway.errors import BadRequest
from tests.gateway.conftest import b64, picture

PNG = picture()
LIMIT = 2**22


def read(**body: Any) -> Edit:
    given = {"images": [b64(PNG)], "prompt": "x"} | body
    return from_json(json.dumps(given).encode(), LIMIT)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *((yes, True) for yes in (True, "true", "On", "1")),
        *((no, False) for no in (False, "FALSE", "off", "0")),
    ],
)
def test_kontext_max_mode(given: object, meant: bool) -> None:
    request = read(kontext_max_mode=given).request
    assert request.HasField("kontext_max_mode")
    assert request.kontext_max_mode is meant


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "prefix", ["", "data:image/png;base64,", "DATA:;BASE64,", "data:a/b;x=y;base64,"]
)
def test_images_are_told_by_content(kind: str, prefix: str) -> None:
    data = picture(kind=kind)
    request = read(images=[prefix + b64(data)], mask=prefix + b64(data)).request
    assert list(request.images) == [data]
    assert request.mask == data


@pytest.mark.parametrize("url", ["data:image/png,abc", "data:", "data:" + "x" * 5000])
def test_a_data_url_must_be_base64(url: str) -> None:
    with pytest.raises(BadRequest, match="base64"):
        read(images=[url])


def test_zero_is_a_value() -> None:
    request = read(n=0, strength=0, guidance_scale=0.0, seed=0, num_inference_steps=0).request
    for field in ("n", "strength", "guidance_scale", "seed", "num_inference_steps"):
        assert request.HasField(field)


def test_sizes() -> None:
    assert not read(size="auto").request.HasField("size")
    size = read(size="1024x768").request.size
    assert (size.width, size.height) == (1024, 768)
    for wrong in ("1024", "1024X768", "1e3x5", " 8x8", "8x8\n", "٨x٨", "999999x1", ""):
        with pytest.raises(BadRequest, match="size: must be"):
            read(size=wrong)


def test_how_images_come_back() -> None:
    assert read().response_format == URL
    assert read(response_format="b64_json").response_format == INLINE


def test_nothing_else_is_set() -> None:
    assert read().request == EditRequest(images=[PNG], prompt="x")
