"""docs/api.md says what the OpenAPI document says: every route, field, answer, event, header and status."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from retouch_gateway import errors, metrics, openapi, schemas
from retouch_gateway.fields import BY_NAME
from retouch_gateway.settings import Settings
from tests.gateway.test_openapi import fields_of, routes_of

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
DOCUMENT = openapi.document(Settings.model_construct())
SCHEMAS = DOCUMENT["components"]["schemas"]
PROPERTIES = SCHEMAS["EditRequest"]["properties"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)```$", API, re.DOTALL | re.MULTILINE)


def rows(*head: str) -> dict[str, list[str]]:
    """The table with that head: first cell of each row, without its backticks -> the other cells."""
    line = re.escape(f"| {' | '.join(head)} |".replace("|  |", "| |"))
    (table,) = re.findall(rf"^{line}\n\|[-|]+\n((?:\|.*\n)+)", API, re.MULTILINE)
    cells = [row.strip("| ").split(" | ") for row in table.splitlines()]
    return {first.strip("`"): others for first, *others in cells}


FIELD_ROWS = rows("field", "value", "meaning", "absent")
NO_EFFECT = rows("field", "what it is to OpenAI")


def test_every_route_is_told_and_no_other() -> None:
    told = {row.split(" ")[1] for row in rows("route", "")}
    assert told == set(DOCUMENT["paths"])
    assert {path for path, _ in metrics.STARTING} == {*told, metrics.OTHER}


def test_every_method_of_an_image_is_told() -> None:
    told = {word for row in rows("method", "") for word in re.findall(r"[A-Z]+", row)}
    assert told == {method.upper() for path, method in routes_of(DOCUMENT) if "images/{" in path}


def test_every_field_is_told_and_no_other() -> None:
    assert {**FIELD_ROWS, **NO_EFFECT}.keys() == PROPERTIES.keys()
    assert not FIELD_ROWS.keys() & NO_EFFECT.keys()
    assert [name for name, field in BY_NAME.items() if not field.effect] == list(NO_EFFECT)


@pytest.mark.parametrize("name", FIELD_ROWS)
def test_what_a_field_may_be(name: str) -> None:
    """Kinds, ranges, choices and lengths are the schema's."""
    schema = PROPERTIES[name]
    schema = schema["anyOf"][0] if name != "prompt" else schema
    told, *_ = FIELD_ROWS[name]
    for choice in schema.get("enum", ()):
        assert f"`{choice}`" in told
    for of in ("imum", "Length", "Items"):
        if f"max{of}" in schema:
            high = "2^64-1" if schema[f"max{of}"] == 2**64 - 1 else schema[f"max{of}"]
            assert f"{schema.get(f'min{of}', 0)}..{high}" in told
    for kind in ("integer", "number", "boolean"):
        assert told.startswith(kind) == (
            schema.get("type") == kind or ('`"on"`' in told and kind == "boolean")
        )


@pytest.mark.parametrize(
    "schema", ["Edited", "Image", "Usage", "PartialImage", "Completed", "Error"]
)
def test_every_field_of_an_answer_is_told(schema: str) -> None:
    for name in fields_of(SCHEMAS[schema]):
        assert re.search(rf"[`\"]{name}[`\"]", API), name


def test_every_event_is_told() -> None:
    assert set(rows("event", "")) == set(schemas.EVENTS)


@pytest.mark.parametrize("header", sorted(openapi.HEADERS))
def test_every_header_is_told(header: str) -> None:
    assert re.search(rf"`{header}[`:]", API, re.IGNORECASE)


def test_every_request_header_is_told() -> None:
    parameters = json.dumps(DOCUMENT["paths"])
    for name in set(re.findall(r'"name": "([\w-]+)", "in": "header"', parameters)):
        assert re.search(rf"`{name}[`:]", API), name


def test_every_status_is_told_with_its_type_and_meaning() -> None:
    assert rows("status", "`type`", "when") == {
        str(status): [f"`{errors.error_type(status)}`", meaning]
        for status, meaning in openapi.ERRORS.items()
    }


def test_the_example_of_models_has_every_key() -> None:
    example = json.loads(blocks("json")[1])
    assert fields_of(SCHEMAS["Model"]) == set(_keys(example["data"][0]))
    assert set(example) == set(SCHEMAS["Models"]["properties"])


def _keys(value: dict[str, Any]) -> list[str]:
    inner = [_keys(field) for field in value.values() if isinstance(field, dict)]
    return sum(inner, list(value))


def test_its_json_is_json() -> None:
    examples = [json.loads(example) for example in blocks("json")]
    assert [next(iter(example)) for example in examples] == [
        *("created", "object", "error", "error")
    ]


def test_its_events_are_events() -> None:
    (stream,) = blocks("text")
    seen = [block.split("\n") for block in stream.strip().split("\n\n")]
    for lines in seen[2:]:
        event = lines[0].removeprefix("event: ")
        data = json.loads(lines[1].removeprefix("data: "))
        schema = SCHEMAS[schemas.EVENTS[event]]
        assert data["type"] == event
        assert set(schema["required"]) <= set(data) <= set(schema["properties"])
        assert data["size"] == "512x512"  # previews have the output's
    for (comment,) in seen[:2]:
        assert json.loads(comment.lstrip(": ").split(" ", 1)[1])


def test_its_programs_parse() -> None:
    python, sh = blocks("python"), blocks("sh")
    assert (len(python), len(sh), len(blocks("js"))) == (2, 2, 2)
    for program in python:
        ast.parse(program)
    for program in sh:
        subprocess.run(["bash", "-nc", program], check=True, capture_output=True)


@pytest.mark.parametrize("i", range(2))
def test_its_node_programs_parse(tmp_path: Path, i: int) -> None:
    if not shutil.which("node"):
        pytest.skip("node is not installed: scripts/client-tools installs it")
    path = tmp_path / "program.mjs"
    path.write_text(blocks("js")[i])
    subprocess.run(["node", "--check", path], check=True, capture_output=True)
