"""The parts of a form, as SDKs and people write them."""

from __future__ import annotations

import json
import re

import pytest

from retouch.v1.image_edit_pb2 import EditRequest
from retouch_gateway.dialects import from_form
from tests.gateway.conftest import b64, picture
from tests.gateway.edits import ADDRESS, LIMIT, OTHER, PNG, form, part, read, refused


@pytest.mark.parametrize(
    "name",
    ["image", "image[]", "images", "images[]", "image[0]", "images[7]", "image[][image_url]"],
)
def test_names_of_the_images_of_a_form(name: str) -> None:
    assert form((name, PNG)).request.images == [PNG]
    assert form((name, b64(PNG))).request.images == [PNG]
    assert form((name, ADDRESS)).links == {"images[0]": ADDRESS}


@pytest.mark.parametrize("name", ["images[][file_id]", "image[0][file_id]", "mask[file_id]"])
def test_a_form_with_a_file_id(name: str) -> None:
    assert "files are not kept here" in refused(form, (name, "file-1")).message


def test_the_order_of_images() -> None:
    given: list[tuple[str, bytes | str]] = [
        ("image[]", PNG),
        ("images", b64(OTHER)),
        ("image[][image_url]", ADDRESS),
    ]
    assert form(*given).request.images == [PNG, OTHER, b""]
    assert form(("image[2]", PNG), ("image[0]", OTHER)).request.images == [OTHER, PNG]
    assert "an index, or none" in refused(form, ("image[2]", PNG), ("image[]", OTHER)).message
    assert "of its own" in refused(form, ("image[2]", PNG), ("image[2]", OTHER)).message


def test_a_mask_in_a_form() -> None:
    for name in ("mask", "mask[image_url]", "mask[image_url][url]"):
        assert form((name, OTHER), image=PNG).request.mask == OTHER
    assert refused(form, ("mask[]", OTHER), image=PNG).param == "mask[]"
    assert "more than once" in refused(form, ("mask", PNG), ("mask", PNG), image=PNG).message


def test_a_file_that_is_not_called_one() -> None:
    """As openai-java's streams come: without a file name."""
    for data in (picture(kind=kind) for kind in ("PNG", "JPEG", "WEBP")):
        assert from_form([part("image", data)], LIMIT).request.images == [data]
    assert "not a PNG" in refused(from_form, [part("image", b"\xff\x00no picture")], LIMIT).message


def test_a_file_is_not_text() -> None:
    assert "not a PNG" in refused(form, image=ADDRESS.encode()).message
    assert "is empty" in refused(form, image=b"").message
    assert form(image=PNG, prompt=b"a text file").request.prompt == "a text file"


@pytest.mark.parametrize("count", [1, 16])
def test_how_many_images(count: int) -> None:
    assert len(form(*[("image[]", PNG)] * count).request.images) == count
    assert "not 17" in refused(form, *[("image[]", PNG)] * 17).message
    assert refused(form, prompt="x").param == "images"


def test_text_becomes_what_the_field_is() -> None:
    fields = {
        "n": "2",
        "strength": "0.7",
        "guidance_scale": "3",
        "num_inference_steps": "20",
        "seed": "18446744073709551615",
        "kontext_max_mode": "TRUE",
        "size": "512x256",
        "output_format": "webp",
        "output_compression": "80",
        "partial_images": "3",
        "stream": "on",
        "model": "5",
        "prompt": "true",
        "negative_prompt": "1e3",
    }
    edit = form(image=PNG, **fields)
    body = json.dumps(fields | {"n": 2, "strength": 0.7, "guidance_scale": 3, "stream": True})
    numbers = ("num_inference_steps", "seed", "output_compression", "partial_images")
    body = re.sub(rf'("(?:{"|".join(numbers)})": )"(\d+)"', r"\1\2", body)
    assert edit.request == read(**json.loads(body)).request
    assert (edit.request.seed, edit.request.strength) == (2**64 - 1, 0.7)
    assert edit.stream


@pytest.mark.parametrize("name", ["n", "strength", "seed"])
@pytest.mark.parametrize(
    "text", ["", "two", "0x2", "nan", "inf", "Infinity", "1e999", "true", "[1]", "١", "1" * 65]
)
def test_text_that_is_no_number(name: str, text: str) -> None:
    error = refused(form, image=PNG, **{name: text})
    shown = text if len(text) <= 64 else text[:64] + "…"
    assert (error.param, error.message) == (name, f'{name}: must be a number, not "{shown}"')


def test_other_text_that_a_form_may_not_have() -> None:
    assert "must be an integer" in refused(form, image=PNG, n="1.5").message
    assert "must be a boolean" in refused(form, image=PNG, stream="yes").message
    assert "must be a boolean" in refused(form, image=PNG, kontext_max_mode="2").message
    assert "not UTF-8" in refused(form, image=PNG, prompt=b"\xff").message
    assert "more than once" in refused(form, ("n", "1"), ("n", "1"), image=PNG).message
    assert refused(form, ("n[]", "1"), image=PNG).param == "n[]"


def test_a_file_that_was_not_chosen_is_absent() -> None:
    """As browsers send a form's file fields that were left empty."""
    none = [part("mask", b"", b""), part("image", b"", b""), part("prompt", "x")]
    assert refused(from_form, none, LIMIT).message == "images: is required"
    some = [part("image", PNG, b"a.png"), part("image", b"", b""), part("mask", b"", b"")]
    request = from_form(some, LIMIT).request
    assert request == EditRequest(images=[PNG])
    assert "is empty" in refused(from_form, [part("image", b"", b"a.png")], LIMIT).message
    assert from_form([part("image", PNG, b"")], LIMIT).request.images == [PNG]


def test_text_that_is_too_long() -> None:
    error = refused(form, image=PNG, prompt="x" * 50_000, zoom="x" * 50_000)
    assert "prompt: is too long" in error.message
    assert "zoom: unknown field" in error.message
    assert len(form(image=PNG, prompt="😀" * 4000).request.prompt) == 4000
    error = refused(form, image="A" * (2 * LIMIT + 4))
    assert error.message == f"images[0]: has {2 * LIMIT + 4} bytes; at most {LIMIT} are allowed"


def test_a_form_is_let_go_as_it_is_read() -> None:
    parts = [part("image", PNG, b"a.png")]
    from_form(parts, LIMIT)
    assert parts[0].data == b""
