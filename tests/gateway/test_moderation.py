"""What a server's safety checks refuse, told to callers: in an answer, in a stream, and again by an Idempotency-Key."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from tests.gateway.conftest import Live, Refusal, Upstream, b64, error_of, picture

C = grpc.StatusCode
WORDS = "Your request was rejected by the safety system. Not here."


def blocked(reason: str = "MODERATION_BLOCKED", domain: str = "retouch.v1") -> Refusal:
    info = ErrorInfo(reason=reason, domain=domain, metadata={"category": "private"})
    return Refusal(C.FAILED_PRECONDITION, WORDS, info)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("accepts", [False, True])
async def test_a_refusal_is_a_400_of_its_own_type(
    gateway: Live, upstream: Upstream, stream: bool, accepts: bool
) -> None:
    upstream.echo.accepts, upstream.echo.refusals = accepts, [blocked()]
    response = await gateway.edit(stream=stream)
    told = {"message": WORDS, "type": "moderation_blocked", "param": None, "code": 400}
    assert error_of(response, 400) == told
    assert response.headers["x-should-retry"] == "false"
    assert "private" not in response.text
    assert len(upstream.echo.requests) == 1


async def test_in_a_stream_that_has_begun_it_is_the_last_event(
    gateway: Live, upstream: Upstream
) -> None:
    upstream.echo.late, upstream.echo.refusals = True, [blocked()]
    response = await gateway.edit(stream=True)
    assert response.status_code == 200
    assert response.text.endswith(
        'event: error\ndata: {"error":{"message":"' + WORDS + '",'
        '"type":"moderation_blocked","param":null,"code":400}}\n\n'
    )


@pytest.mark.parametrize(
    "refusal",
    [
        blocked(reason="MODEL_BUSY"),
        blocked(domain="example.com"),
        Refusal(C.FAILED_PRECONDITION, WORDS),
        Refusal(C.FAILED_PRECONDITION, WORDS, RetryInfo()),
    ],
    ids=["another reason", "another domain", "no details", "other details"],
)
async def test_what_is_not_said_to_be_moderation_is_none(
    gateway: Live, upstream: Upstream, refusal: Refusal
) -> None:
    upstream.echo.refusals = [refusal]
    response = await gateway.edit()
    assert error_of(response, 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_replays_it_and_the_edit_runs_once(
    gateway: Live, upstream: Upstream, stream: bool, late: bool
) -> None:
    upstream.echo.late, upstream.echo.refusals = late, [blocked()]
    once = {"idempotency-key": f"refused-{stream}-{late}"}
    body = {"images": [b64(picture())], "prompt": "warmer", "stream": stream}
    first, again = [
        await gateway.client.post("/v1/images/edits", json=body, headers=once) for _ in range(2)
    ]
    assert again.status_code == first.status_code == (200 if stream and late else 400)
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers.get("x-should-retry") == first.headers.get("x-should-retry")
    assert first.text.endswith(again.text)
    assert "moderation_blocked" in again.text
    assert len(upstream.echo.requests) == 1
