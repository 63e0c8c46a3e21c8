"""One body in, one Edit out: the fields, in JSON and as a form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retouch.v1.image_edit_pb2 import EditRequest, OutputFormat
from retouch_gateway.dialects import from_json
from retouch_gateway.fields import FIELDS
from tests.gateway.conftest import b64
from tests.gateway.edits import ADDRESS, LIMIT, OTHER, PNG, form, read, refused

IGNORED = (
    "quality",
    "complexity",
    "background",
    "input_fidelity",
    "moderation",
    "user",
    "safety_identifier",
)


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


def test_image_is_another_name() -> None:
    both = EditRequest(images=[PNG, OTHER], prompt="x")
    assert read(images=None, image=[b64(PNG), b64(OTHER)]).request == both
    assert read(images=None, image={"image_url": b64(PNG)}).request.images == [PNG]
    assert read(images=None, image=b64(PNG)).request.images == [PNG]
    assert refused(read, image=b64(PNG)).param == "image"
    assert refused(read, images=None).message == "images: is required"


def test_a_boolean_is_one() -> None:
    assert read(stream=True).stream
    assert not read(stream=False).stream
    assert not read().stream
    wrongs: list[Any] = ["true", 1, "on", []]
    for wrong in wrongs:
        assert refused(read, stream=wrong).param == "stream"


def test_zero_is_a_value() -> None:
    zeros: dict[Any, float] = {"n": 0, "strength": 0, "guidance_scale": 0.0, "seed": 0}
    zeros |= {"num_inference_steps": 0, "output_compression": 0, "partial_images": 0}
    request = read(**zeros).request
    for field in zeros:
        assert request.HasField(field)


def test_sizes() -> None:
    assert not read(size="auto").request.HasField("size")
    size = read(size="1024x768").request.size
    assert (size.width, size.height) == (1024, 768)
    for wrong in ("1024", "1024X768", "1e3x5", " 8x8", "8x8\n", "٨x٨", "999999x1", ""):
        assert "size: must be" in refused(read, size=wrong).message


def test_output_formats() -> None:
    formats = {
        "png": OutputFormat.OUTPUT_FORMAT_PNG,
        "jpeg": OutputFormat.OUTPUT_FORMAT_JPEG,
        "webp": OutputFormat.OUTPUT_FORMAT_WEBP,
    }
    for name, meant in formats.items():
        assert read(output_format=name).request.output_format == meant
    for wrong in ("PNG", "jpg", "gif", ""):
        error = refused(read, output_format=wrong)
        assert error.message == "output_format: must be png, jpeg or webp"


def test_partial_images_need_a_stream() -> None:
    assert read(partial_images=2, stream=True).request.partial_images == 2
    assert read(partial_images=0).request.partial_images == 0
    for fields in ({}, {"stream": False}):
        assert refused(read, partial_images=1, **fields).param == "partial_images"
    assert refused(form, image=PNG, partial_images="1").param == "partial_images"


@pytest.mark.parametrize(
    ("wanted", "stream", "of_json", "of_form"),
    [
        (None, False, (True, False), (True, True)),
        ("url", False, (True, False), (True, False)),
        ("b64_json", False, (False, True), (False, True)),
        (None, True, (False, True), (False, True)),
        ("url", True, (True, False), (True, False)),
        ("b64_json", True, (False, True), (False, True)),
    ],
)
def test_how_images_come_back(
    wanted: str | None, stream: bool, of_json: tuple[bool, bool], of_form: tuple[bool, bool]
) -> None:
    edit = read(response_format=wanted, stream=stream)
    assert (edit.hosted, edit.inline) == of_json
    fields = {"response_format": wanted} if wanted else {}
    edit = form(image=PNG, stream=str(stream), **fields)
    assert (edit.hosted, edit.inline) == of_form


def test_what_has_no_effect_is_told() -> None:
    assert tuple(field.name for field in FIELDS if not field.effect) == IGNORED
    fields = dict.fromkeys(reversed(IGNORED), "high")
    for edit in (read(**fields), form(image=PNG, prompt="x", **fields)):
        assert edit.ignored == IGNORED[::-1]
        assert edit.request == read().request
    assert read(user=None).ignored == ()
    for name in IGNORED:
        assert refused(read, **{name: 1}).message == f"{name}: must be a string, not a number"


def test_nothing_else_is_set() -> None:
    edit = read()
    assert edit.request == EditRequest(images=[PNG], prompt="x")
    assert (edit.stream, edit.ignored, edit.links) == (False, (), {})


def test_a_digest_is_of_what_was_asked() -> None:
    text = f"data:image/png;base64,{b64(PNG)}"
    same = [
        read(n=1),
        read(n=1, images=[{"image_url": text}]),
        form(image=PNG, prompt="x", n="1", response_format="url"),
    ]
    assert len({edit.digest() for edit in same}) == 1
    told = [read(user="a", quality="b"), read(quality="b", user="a"), read(quality="c", user="d")]
    assert told[0].ignored != told[1].ignored
    assert (
        len({edit.digest() for edit in told}) == 1
    )  # what they are has no effect, nor their order
    assert len(same[0].digest()) == 32
    others = [
        read(),
        read(n=2),
        read(n=1, prompt="y"),
        read(n=1, images=[b64(OTHER)]),
        read(n=1, mask=b64(PNG)),
        read(n=1, images=[b64(PNG)] * 2),
        read(n=1, size="8x8"),
        read(n=1, response_format="b64_json"),
        read(n=1, stream=True),
        read(n=1, user="someone"),  # whose answer says that it has no effect
        read(n=1, stream=True, response_format="url"),
        read(n=1, images=[ADDRESS]),
        read(n=1, images=[ADDRESS + "x"]),
        form(image=PNG, prompt="x", n="1"),
    ]
    assert len({edit.digest() for edit in [same[0], *others]}) == len(others) + 1


def unknown(count: int) -> dict[str, Any]:
    return {f"u{i}": 1 for i in range(count)}


def test_what_was_not_read_is_not_judged() -> None:
    """Once there is enough to say."""
    body = {"partial_images": 1} | unknown(20) | {"stream": True, "images": ["x"]}
    for make in (body, unknown(20) | {"images": [b64(PNG)]}):
        message = refused(from_json, json.dumps(make).encode(), LIMIT).message
        assert "and maybe more; the fields are images, image" in message
        assert "is required" not in message
        assert "only with stream" not in message
    message = refused(from_json, json.dumps(unknown(20)).encode(), LIMIT).message
    assert message.startswith("images: is required; u0: unknown field; u1")
    assert "maybe more" not in message


def test_a_stream_that_is_wrong_is_no_reason_for_another_mistake() -> None:
    message = 'stream: must be a boolean, not "yes"'
    assert refused(read, stream="yes", partial_images=1).message == message
