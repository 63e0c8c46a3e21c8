"""Bodies parsed without their long strings: what comes of them is what any parser would make."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retouch_gateway import json_body
from retouch_gateway.errors import BadRequest

STRINGS = st.text() | st.text('\\"u/ab,[{:}]', max_size=12) | st.text("ab/+=", min_size=5)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | STRINGS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(STRINGS, inner), max_leaves=8
)


def whole(value: Any) -> Any:
    """`value` with text for its memoryviews."""
    if isinstance(value, memoryview):
        return json_body.text(value)
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    return value


def parsed(body: bytes) -> Any:
    try:
        return whole(json_body.parse(body))
    except BadRequest:
        return BadRequest


def parsed_by_the_library(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return BadRequest


@pytest.fixture(params=[0, 4])
def long(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short strings are long ones."""
    monkeypatch.setattr(json_body, "LONG", request.param)
    monkeypatch.setattr(json_body, "DEPTH", 100)
    monkeypatch.setattr(json_body, "_start", json_body.text)  # else a long name is cut


any_examples = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
@any_examples
def test_any_value(long: None, value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    body = text.encode("utf-8", "surrogatepass")
    assert parsed(body) == parsed_by_the_library(body)


@given(
    VALUES, st.integers(0, 100), st.sampled_from([b"", b'"', b"\\", b"\\\\", b"\n", b"\xff", b","])
)
@any_examples
def test_any_broken_value(long: None, value: Any, at: int, wrong: bytes) -> None:
    body = json.dumps(value).encode()
    body = body[:at] + wrong + body[at + 1 :]
    assert parsed(body) == parsed_by_the_library(body)


@given(st.text('ab"\\,[]{}: ').map(str.encode))
@any_examples
def test_any_text(long: None, body: bytes) -> None:
    assert parsed(body) == parsed_by_the_library(body)


def test_a_long_string_is_not_copied() -> None:
    body = bytearray(b'{"images": ["%b", "short"], "n": 1}' % (b"A" * 100_000))
    value = json_body.parse(body)
    view = value["images"][0]
    assert isinstance(view, memoryview)
    assert view.obj is body
    assert bytes(view) == b"A" * 100_000
    assert (value["images"][1], value["n"]) == ("short", 1)


@pytest.mark.parametrize(
    "before",
    [
        '"' * 3998,
        '[{"a": "',
        "\\" * 31,
        "\\" * 32,
        "\\" * 4000,
        '\\"' * 3000,
        "\\" * 63 + "n",
        "x" * 99,
    ],
)
def test_whatever_comes_before_it(before: str) -> None:
    given = {"prompt": before, "images": ["B" * 100_000], "user": before, "mask": "/" * 100_000}
    body = json.dumps(given).replace("/", "\\/").encode()
    assert parsed(body) == given
    assert all(isinstance(json_body.parse(body)[name], memoryview) for name in ["mask"])


@pytest.mark.parametrize("unit", ["😀", "\\", "\n", '"'])
def test_no_text_that_is_allowed_is_long(unit: str) -> None:
    text = unit * 4000
    assert json_body.parse(json.dumps({"prompt": text}).encode()) == {"prompt": text}
    assert json_body.parse(json.dumps({"prompt": text + "x" * 50_000}).encode()) != {"prompt": text}


@pytest.mark.parametrize(
    "body",
    [
        b"{}," * 10_000,
        b"[" * 10_001,
        b"[" + b"1," * 10_001 + b"1]",
        b'"' * 10_001,
        b'["' + b'\\"' * 10_001 + b'"]',
        b'["' + b"\\" * 50_000 + b'"]',
        b"{" + b" " * 2**21 + b"}",
        b'{"n": ' + b"1" * 2**21 + b"}",
        b'{"prompt": "' + b"x" * 2**21,
        b'{"images": ["%b"], "n": ' % (b"A" * 100_000) + b"1" * 2**21 + b"}",
    ],
)
def test_a_crowd_is_refused_unparsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orjson, "loads", None)
    with pytest.raises(BadRequest, match="too much to be an edit"):
        json_body.parse(body)


def test_a_long_name_is_cut() -> None:
    body = b'{"%b": 1}' % (b"\xff" + b"n" * 100_000)
    assert json_body.parse(body) == {"\ufffd" + "n" * 255: 1}


def test_what_looks_like_a_crowd_within_a_long_string_is_none() -> None:
    assert parsed(b'["%b"]' % (b"[," * 30_000)) == ["[," * 30_000]
