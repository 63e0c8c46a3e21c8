"""Pictures in all their shapes: base64, data URLs, addresses and objects of those; short and long."""

from __future__ import annotations

import json
import re
from typing import Any

import pybase64
import pytest

from retouch.v1.image_edit_pb2 import EditRequest
from retouch_gateway import json_body
from retouch_gateway.dialects import Edit, from_json
from tests.gateway.conftest import b64, picture
from tests.gateway.edits import ADDRESS, LIMIT, PNG, form, read, refused

LARGE = PNG + bytes(100_000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "prefix", ["", "data:image/png;base64,", "DATA:;BASE64,", "data:a/b;x=y;base64,"]
)
def test_images_are_told_by_content(kind: str, prefix: str) -> None:
    data = picture(kind=kind)
    request = read(images=[prefix + b64(data)], mask=prefix + b64(data)).request
    assert list(request.images) == [data]
    assert request.mask == data
    text = form(image=prefix + b64(data), mask=prefix + b64(data)).request
    file = form(image=data, mask=data).request
    assert text == file == EditRequest(images=[data], mask=data)


@pytest.mark.parametrize("url", ["data:image/png,abc", "data:", "data:" + "x" * 5000])
def test_a_data_url_must_be_base64(url: str) -> None:
    assert "base64" in refused(read, images=[url]).message
    assert "base64" in refused(form, image=url).message


def shapes(text: str) -> list[Any]:
    """A picture in JSON, in each of its shapes."""
    return [
        text,
        {"image_url": text},
        {"image_url": {"url": text}},
        {"image_url": text, "file_id": None},
    ]


@pytest.mark.parametrize("shape", range(4))
@pytest.mark.parametrize("text", [b64(PNG), f"data:image/jpeg;base64,{b64(PNG)}"])
def test_the_shapes_of_a_picture(shape: int, text: str) -> None:
    edit = read(images=[shapes(text)[shape]], mask=shapes(text)[shape])
    assert edit.request == EditRequest(images=[PNG], mask=PNG, prompt="x")
    assert edit.links == {}


@pytest.mark.parametrize("shape", range(4))
def test_addresses_are_left_to_be_fetched(shape: int) -> None:
    edit = read(images=[b64(PNG), shapes(ADDRESS)[shape]], mask=shapes(ADDRESS)[shape])
    assert list(edit.request.images) == [PNG, b""]
    assert edit.request.mask == b""
    assert edit.links == {"images[1]": ADDRESS, "mask": ADDRESS}
    assert read(images=["HTTPS://example.com"]).links == {"images[0]": "HTTPS://example.com"}


@pytest.mark.parametrize(
    "address", ["http://example.com/a.png", "file:///etc/passwd", "gopher://x", "HTTP://x"]
)
def test_other_addresses_are_refused(address: str) -> None:
    for shape in shapes(address):
        error = refused(read, images=[b64(PNG), shape])
        assert (error.param, error.message) == (
            "images[1]",
            "images[1]: must be an https address, if it is one",
        )
    assert refused(form, image=PNG, mask=address).param == "mask"


def test_an_address_is_bounded() -> None:
    assert "more than 8192" in refused(read, images=["https://" + "x" * 8192]).message


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ({"file_id": "file-1"}, "files are not kept here"),
        ({"file_id": "file-1", "image_url": ADDRESS}, "files are not kept here"),
        ({}, "must be an object with image_url alone"),
        ({"image_url": None}, "must be an object with image_url alone"),
        ({"image_url": ADDRESS, "detail": "high"}, "must be an object with image_url alone"),
        ({"image_url": {"href": ADDRESS}}, "must be an object with url alone"),
        ({"image_url": {"url": {"url": ADDRESS}}}, "must be a string, not an object"),
        ({"image_url": [ADDRESS]}, "must be a string, not an array"),
        ([ADDRESS], "must be a string, not an array"),
        (None, "must be a string, not null"),
    ],
)
def test_objects_that_are_no_picture(shape: Any, text: str) -> None:
    error = refused(read, images=[b64(PNG), shape])
    assert error.param == "images[1]"
    assert text in error.message


@pytest.mark.parametrize("shape", range(4))
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("written", [str, lambda body: body.replace("/", "\\/")])
def test_large_images(shape: int, prefix: str, written: Any) -> None:
    """They are not parsed as JSON, unless an escape is in them."""
    image = shapes(prefix + b64(LARGE))[shape]
    for images in ({"images": [b64(PNG), image]}, {"image": [b64(PNG), image]}):
        body = written(json.dumps(images | {"mask": image, "prompt": 'say \\"hi"'}))
        request = from_json(bytearray(body.encode()), LIMIT).request
        assert request == EditRequest(
            images=[PNG, LARGE], mask=LARGE, prompt=json.loads(body)["prompt"]
        )


def test_a_large_image_alone() -> None:
    for image in shapes(b64(LARGE)):
        assert read(images=None, image=image).request.images == [LARGE]


def test_large_images_with_line_breaks() -> None:
    text = re.sub("(.{76})", r"\1\n", b64(LARGE))
    assert read(images=[text]).request.images == [LARGE]
    assert read(images=[text.replace("\n", " ")]).request.images == [LARGE]
    body = json.dumps({"images": [text]}).replace("\\n", "\n")
    assert "not JSON" in refused(from_json, body.encode(), LIMIT).message


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "&" * 100_000])
def test_other_long_strings(text: str) -> None:
    def made(**body: Any) -> Edit:
        given = {"images": [b64(PNG)]} | body
        return from_json(json.dumps(given, ensure_ascii=False).encode(), LIMIT)

    assert refused(made, prompt=text).message == "prompt: is too long"
    assert refused(made, user=text).message == "user: is too long"
    assert refused(made, **{text: 1}).param == text[:64] + "…"
    assert "must be a number, not a string" in refused(made, n=text).message
    assert "must be an array of images, not a string" in refused(made, images=text).message
    assert refused(made, images=[text]).param == "images[0]"
    assert refused(made, images=[{text: text}]).param == "images[0]"
    assert refused(made, unknown=[[[[[text]]]]]).param == "unknown"
    assert "more than 8192" in refused(made, mask="https://" + text).message


@pytest.mark.parametrize(
    "wrong", [b"\xff", b"\n", b"\x00", b"\\x", b"\\ud800", "é".encode(), b"\x7f", b","]
)
@pytest.mark.parametrize("place", ["data:image/%bpng;base64,", "data:image/png;base64,%b", "%b"])
def test_a_long_image_that_is_no_json(wrong: bytes, place: str) -> None:
    image = place.encode() % wrong + b64(LARGE).encode()
    body = b'{"images": ["%b"], "prompt": "x"}' % image
    assert re.search("not JSON|not whole base64", refused(from_json, body, LIMIT).message)


def test_what_is_overwritten_is_not_looked_at() -> None:
    """Where it is long: a shorter text must be JSON."""
    body = b'{"prompt": "%b", "prompt": "x", "images": ["%b"]}'
    image = b64(PNG).encode()
    assert from_json(body % (b"\xff" * 100_000, image), LIMIT).request.prompt == "x"
    assert "not JSON" in refused(from_json, body % (b"\xff", image), LIMIT).message


@pytest.mark.parametrize("unit", ["A", "A ", "A\n", "é", "&"])
def test_an_image_that_is_too_long_is_not_decoded(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_body, "text", None)
    monkeypatch.setattr(pybase64, "b64decode", None)
    text = unit * (2 * LIMIT // len(unit) + 8)
    error = refused(read, images=[text])
    assert "characters long; an image has at most 4194304 bytes" in error.message


def test_the_largest_image_may_have_line_breaks_and_escapes() -> None:
    largest = PNG + b"\xff" * (LIMIT - len(PNG))  # all slashes
    text = re.sub("(.{64})", "\\1\r\n", b64(largest))
    body = json.dumps({"images": [text]}).replace("////", "\\////").encode()
    assert from_json(body, LIMIT).request.images == [largest]
