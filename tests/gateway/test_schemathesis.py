"""schemathesis over the document that a running gateway serves: never a 5xx, every answer as the document has it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.conftest import MODEL, Live, b64, picture
from tests.gateway.test_openapi import closed, routes_of

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
Improve = Callable[[Any], None]
# What each operation must have answered at least once, so that more than refusals was seen.
WANTED = {
    ("/v1/models", "GET"): {200},
    ("/v1/models/{id}", "GET"): {200, 404},
    ("/images/{name}", "GET"): {200, 404},
    ("/images/{name}", "HEAD"): {200, 404},
    ("/images/{name}", "DELETE"): {204, 404},
    ("/images/{name}", "OPTIONS"): {204},
    ("/healthz", "GET"): {200},
    ("/readyz", "GET"): {200},
    ("/openapi.json", "GET"): {200},
    ("/docs", "GET"): {200},
    ("/", "GET"): {200},
    ("/playground/{name}", "GET"): {200, 404},
}


def explore(operation: Any, url: str, negative: bool, improve: Improve, count: int) -> Counter[int]:
    """Send `count` generated requests, about half of them improved; how often each status came. Blocks.

    `negative`: such as break the schema, which are all to be refused.
    """
    seen: Counter[int] = Counter()
    mode = GenerationMode.NEGATIVE if negative else GenerationMode.POSITIVE
    checks = [*CHECKS, negative_data_rejection] if negative else CHECKS

    with requests.Session() as session:

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode), st.booleans())
        def trying(case: Any, improved: bool) -> None:
            if improved:
                improve(case)
            response = case.call_and_validate(url, session, checks=checks, timeout=10)
            assert response.headers["x-request-id"]
            seen[response.status_code] += 1

        trying()
    return seen


async def operation(gateway: Live, path: str, method: str) -> Any:
    """An operation of the document as it is served, but that answers may have no field that it does not tell of."""
    document = closed((await gateway.client.get("/openapi.json")).json())
    return schemathesis.openapi.from_dict(document)[path][method]


def in_good_part(case: Any) -> None:
    """Make an edit one that is likely to be done: of a picture, by a model that there is."""
    for name in ("image", "mask", "model", "size"):
        case.body.pop(name, None)
    form = case.media_type == "multipart/form-data"
    case.body["images"] = [picture() if form else b64(picture())]


async def test_edits(gateway: Live) -> None:
    post = await operation(gateway, "/v1/images/edits", "POST")
    url = str(gateway.client.base_url)
    seen = await asyncio.to_thread(explore, post, url, False, in_good_part, 150)
    assert set(seen) <= {200, 400, 404, 422}  # 422: it tells one Idempotency-Key again
    assert seen[200] > 20


async def test_edits_that_break_the_schema(gateway: Live) -> None:
    post = await operation(gateway, "/v1/images/edits", "POST")
    url = str(gateway.client.base_url)
    seen = await asyncio.to_thread(explore, post, url, True, lambda case: None, 100)
    assert set(seen) <= {400, 415}


async def test_no_operation_is_left_out(gateway: Live) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    told = {(path, method.upper()) for path, method in routes_of(document)}
    assert told == {*WANTED, ("/v1/images/edits", "POST")}


@pytest.mark.parametrize(("path", "method"), WANTED)
async def test_every_other_operation(gateway: Live, path: str, method: str) -> None:
    url = (await gateway.edit()).json()["data"][0]["url"]

    def improve(case: Any) -> None:
        if "name" in case.path_parameters:
            is_image = path.startswith("/images/")
            case.path_parameters["name"] = url.rpartition("/")[2] if is_image else "app.js"
        if "id" in case.path_parameters:
            case.path_parameters["id"] = MODEL.id

    found = await operation(gateway, path, method)
    seen = await asyncio.to_thread(explore, found, str(gateway.client.base_url), False, improve, 30)
    assert WANTED[path, method] <= set(seen)
