"""Any body at all: never a 5xx, always the envelope. And a form means what the same JSON does."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retouch_gateway.dialects import Edit, from_form, from_json
from retouch_gateway.errors import BadRequest
from retouch_gateway.fields import BY_NAME, FORMATS
from retouch_gateway.multipart import Form
from retouch_gateway.values import SWITCH
from tests.gateway.conftest import Live, b64, picture

GOOD = b64(picture())
ROUTE = "/v1/images/edits"
LIMIT = 2**22
WORDS = ["", "auto", "512x512", "0x0", "url", "b64_json", "on", "true", "1", "2", "0.5", "webp"]
ADDRESSES = ["data:,", "https://example.com/a", "https://[", "http://x", "https://x:999999/\x00"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text()
    | st.sampled_from([*WORDS, *ADDRESSES, GOOD])
)
KEYS = st.text() | st.sampled_from(["image_url", "url", "file_id"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=6
)
GOOD_BODIES = st.fixed_dictionaries({"images": st.just([GOOD]), "prompt": st.text()})
NAMES = st.sampled_from(list(BY_NAME))
BODIES = st.builds(
    lambda good, wild: good | wild,
    GOOD_BODIES | st.just({}),
    st.dictionaries(NAMES | st.text(), VALUES, max_size=4),
)
over_the_wire = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@given(BODIES | VALUES)
@settings(max_examples=300, deadline=None)
def test_a_body_is_understood_or_refused(body: Any) -> None:
    with contextlib.suppress(BadRequest):
        edit = from_json(json.dumps(body).encode("utf-8", "surrogatepass"), LIMIT)
        assert edit.request.images
        assert edit.request.SerializeToString()
        assert edit.hosted or edit.inline


@given(st.binary() | st.text().map(str.encode))
@settings(max_examples=200, deadline=None)
def test_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        from_json(body, LIMIT)


# A JSON body's values, none of which is of a wrong type.
TEXT = st.text(st.characters(codec="utf-8"))
INTEGERS = st.integers(-(2**70), 2**70)
TYPED: dict[str, st.SearchStrategy[Any]] = {
    name: TEXT
    for name in BY_NAME
    if name not in ("images", "image", "mask", "size", "output_format", "stream")
} | {
    "size": st.sampled_from(["auto", "512x512", "0x0"]) | TEXT,
    "output_format": st.sampled_from([*FORMATS, "PNG"]),
    "response_format": st.sampled_from(["url", "b64_json", ""]),
    "kontext_max_mode": st.booleans() | st.sampled_from([*SWITCH, "ON", "no"]),
    "stream": st.booleans(),
    "strength": st.floats(allow_nan=False, allow_infinity=False) | INTEGERS,
    "guidance_scale": st.floats(allow_nan=False, allow_infinity=False) | INTEGERS,
    **dict.fromkeys(
        ("n", "num_inference_steps", "seed", "output_compression", "partial_images"),
        INTEGERS | st.integers(0, 5) | st.floats(0, 5),
    ),
}
IMAGE = st.sampled_from([GOOD, "data:;base64," + GOOD, "https://example.com/a"])


def form_of(body: dict[str, Any]) -> httpx.Request:
    """`body` as an SDK sends it in a form: values as text, lists as `name[]`."""
    parts = [("images[]", image) for image in body["images"]]
    parts += [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in body.items()
        if name != "images"
    ]
    files = [(name, (None, value.encode())) for name, value in parts]
    return httpx.Request("POST", "http://x", files=files)


def outcome(read: Any, *given: Any) -> Any:
    try:
        edit: Edit = read(*given, LIMIT)
    except BadRequest as error:
        return error.param, error.message
    return edit.request, edit.links, edit.stream, edit.ignored


@given(
    st.fixed_dictionaries(
        {"images": st.lists(IMAGE, min_size=1, max_size=3)},
        optional={"mask": IMAGE, **TYPED},
    )
)
@settings(max_examples=300, deadline=None)
def test_both_bodies_mean_the_same(body: dict[str, Any]) -> None:
    sent = form_of(body)
    form = Form(sent.headers["content-type"])
    form.feed(sent.read())
    of_json = outcome(from_json, json.dumps(body).encode())
    assert outcome(from_form, form.parts()) == of_json


def quoted(name: str) -> str:
    """What a part's header may hold between quotes."""
    return name.encode().decode("latin-1").translate(dict.fromkeys(b'\r\n"\\'))


SUFFIXES = st.sampled_from(["", "[]", "[0]", "[1]", "[x]", "[][image_url]", "[file_id]"])
DATA = st.binary() | st.sampled_from([*WORDS, *ADDRESSES, GOOD]).map(str.encode)
PARTS = st.builds(
    'Content-Disposition: form-data; name="{}{}"{}\r\n\r\n'.format,
    NAMES | TEXT.map(quoted),
    SUFFIXES,
    st.sampled_from(["", '; filename="blob"', "; x", "\r\nContent-Type: text/x", "\r\nx"]),
).flatmap(lambda head: DATA.map(lambda data: head.encode("latin-1") + data))
FORMS = st.lists(PARTS, max_size=8).map(
    lambda parts: b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
)
CHANGED = st.tuples(FORMS, st.integers(0, 400), st.binary(max_size=4)).map(
    lambda given: given[0][: given[1]] + given[2] + given[0][given[1] + 1 :]
)


@given(FORMS | CHANGED | st.binary())
@settings(max_examples=500, deadline=None)
def test_a_form_is_understood_or_refused(body: bytes) -> None:
    form = Form("multipart/form-data; boundary=b")
    with contextlib.suppress(BadRequest):
        form.feed(body)
        edit = from_form(form.parts(), LIMIT)
        assert edit.request.images
        assert edit.request.SerializeToString()
        assert edit.hosted or edit.inline


def held(response: httpx.Response) -> None:
    """An edit, or a refusal in the envelope."""
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.content.endswith(b"\n\n")
        return
    answer = orjson.loads(response.content)
    if response.status_code == 200:
        assert answer["data"]
    else:
        assert response.status_code in (400, 404)
        assert set(answer["error"]) == {"message", "type", "param", "code"}


@given(BODIES)
@over_the_wire
async def test_json_over_the_wire(gateway: Live, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    headers = {"content-type": "application/json"}
    held(await gateway.client.post(ROUTE, content=content, headers=headers))


@given(FORMS | CHANGED)
@over_the_wire
async def test_forms_over_the_wire(gateway: Live, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    held(await gateway.client.post(ROUTE, content=body, headers=headers))
