"""docs/api.md tells every route, field, key and status there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from retouch.v1 import image_edit_pb2 as pb
from retouch_gateway import errors
from retouch_gateway.app import create_app
from retouch_gateway.dialects import FIELDS
from retouch_gateway.hosting import Store
from retouch_gateway.metrics import STARTING, Metrics
from retouch_gateway.replies import model
from retouch_gateway.settings import Settings
from tests.gateway.conftest import Live

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def starlette_of(app: Any) -> Starlette:
    while not isinstance(app, Starlette):
        app = app.app
    return app


def routes(tmp_path: Path) -> list[str]:
    metrics = Metrics()
    app = create_app(Settings(store=tmp_path), Store(tmp_path, 1, [b"k"], metrics), metrics)
    found = [route for route in starlette_of(app).routes if isinstance(route, Route)]
    return [re.sub(r":\w+\}", "}", route.path) for route in found]


def test_every_route_is_told_and_counted(tmp_path: Path) -> None:
    found = routes(tmp_path)
    assert len(found) == 6
    for path in found:
        assert re.search(rf"`(GET|POST) {re.escape(path)}`", API), path
    assert {path for path, _ in STARTING} == {*found, "other"}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_told(field: str) -> None:
    assert f"| `{field}` |" in API


def keys(value: Any) -> set[str]:
    """All keys in a JSON value."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set()


async def test_every_key_of_an_answer_is_told(gateway: Live) -> None:
    by_url = (await gateway.edit()).json()
    inline = (await gateway.edit(response_format="b64_json")).json()
    for key in keys(by_url) | keys(inline) | {"warning"}:
        assert f"`{key}`" in API, key


def test_every_key_of_a_model_is_told() -> None:
    full = pb.Model(
        capabilities=pb.Capabilities(),
        defaults=pb.Defaults(strength=1, guidance_scale=1),
        limits=pb.Limits(),
    )
    for key in keys(model(full)):
        assert f'"{key}"' in API, key


def test_every_status_is_told() -> None:
    kinds: list[type[errors.GatewayError]] = [errors.GatewayError]
    for kind in kinds + errors.GatewayError.__subclasses__():
        if kind is not errors.ClientGone:
            assert f"| {kind.status} | `{errors.error_type(kind.status)}` |" in API


def test_its_examples_are_json() -> None:
    examples = re.findall(r"```json\n(.*?)```", API, re.S)
    assert len(examples) == 3
    for example in examples:
        json.loads(example)
