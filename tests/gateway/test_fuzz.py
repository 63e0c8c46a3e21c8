"""Any JSON at all: never a 5xx, always the envelope."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retouch_gateway.dialects import FIELDS, from_json
from retouch_gateway.errors import BadRequest
from tests.gateway.conftest import Live, b64, picture

GOOD = b64(picture())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text()
    | st.sampled_from(["", "auto", "512x512", "0x0", "url", "b64_json", "on", GOOD, "data:,"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
)
GOOD_BODIES = st.fixed_dictionaries({"images": st.just([GOOD]), "prompt": st.text()})
BODIES = st.builds(
    lambda good, wild: good | wild,
    GOOD_BODIES | st.just({}),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(), VALUES, max_size=4),
)


@given(BODIES | VALUES)
@settings(max_examples=300, deadline=None)
def test_a_body_is_understood_or_refused(body: Any) -> None:
    with contextlib.suppress(BadRequest):
        edit = from_json(json.dumps(body).encode("utf-8", "surrogatepass"), 2**22)
        assert edit.request.images
        assert edit.request.SerializeToString()


@given(st.binary() | st.text().map(str.encode))
@settings(max_examples=200, deadline=None)
def test_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        from_json(body, 2**22)


@given(BODIES)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_over_the_wire(gateway: Live, body: dict[str, Any]) -> None:
    response = await gateway.client.post(
        "/v1/images/edits",
        content=json.dumps(body).encode("utf-8", "surrogatepass"),
        headers={"content-type": "application/json"},
    )
    answer = orjson.loads(response.content)
    if response.status_code == 200:
        assert answer["data"]
    else:
        assert response.status_code in (400, 404)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
