"""Upstreams that are down, draining, full, slow to come or wrong; what each becomes over HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from bench.local import free_port
from retouch.v1 import image_edit_pb2 as pb
from tests.gateway.conftest import (
    Live,
    Refusal,
    StartGateway,
    Upstream,
    b64,
    busy,
    error_of,
    invalid,
    picture,
    start_upstream,
)
from tests.gateway.several import several, until

C = grpc.StatusCode
# Half a second is waited for a server, 0.6 for its health; a connection alone has 5 s, an edit 300.
SOON = 3.0


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (C.INVALID_ARGUMENT, 400, "invalid_request_error"),
        (C.OUT_OF_RANGE, 400, "invalid_request_error"),
        (C.FAILED_PRECONDITION, 400, "invalid_request_error"),
        (C.RESOURCE_EXHAUSTED, 413, "invalid_request_error"),
        (C.CANCELLED, 503, "api_error"),
        (C.ABORTED, 503, "api_error"),
        (C.DEADLINE_EXCEEDED, 504, "api_error"),
        (C.INTERNAL, 500, "api_error"),
        (C.UNKNOWN, 500, "api_error"),
        (C.DATA_LOSS, 500, "api_error"),
        (C.UNIMPLEMENTED, 502, "api_error"),
        (C.ALREADY_EXISTS, 502, "api_error"),
        (C.UNAUTHENTICATED, 502, "api_error"),
        (C.PERMISSION_DENIED, 502, "api_error"),
    ],
)
async def test_each_status_has_its_answer(
    gateway: Live, upstream: Upstream, code: grpc.StatusCode, status: int, kind: str
) -> None:
    upstream.echo.refusals = [Refusal(code, "Traceback: /srv/secret.py")]
    response = await gateway.edit()
    assert error_of(response, status)["type"] == kind
    if status >= 500:
        assert "secret" not in response.text
    assert gateway.value("upstream_requests_total", rpc="Edit", code=code.name) >= 1
    assert (await gateway.edit()).status_code == 200


@pytest.mark.parametrize(
    ("code", "accepts", "status", "tries"),
    [
        (C.UNAVAILABLE, False, 503, 3),
        (C.UNAVAILABLE, True, 502, 1),
        (C.INTERNAL, False, 500, 1),
        (C.INTERNAL, True, 500, 1),
    ],
)
async def test_work_that_had_started_is_not_done_twice(
    gateway: Live,
    upstream: Upstream,
    code: grpc.StatusCode,
    accepts: bool,
    status: int,
    tries: int,
) -> None:
    """An edit that ends a server must not be sent on to the next, by gRPC nor by an SDK."""
    upstream.echo.accepts = accepts
    upstream.echo.refusals = [Refusal(code) for _ in range(5)]
    response = await gateway.edit()
    error_of(response, status)
    assert len(upstream.echo.requests) == tries
    assert response.headers.get("x-should-retry") == ("false" if accepts else None)


async def test_not_found_is_the_model(gateway: Live, upstream: Upstream) -> None:
    upstream.echo.refusals = [Refusal(C.NOT_FOUND, "no model 'x'")]
    assert error_of(await gateway.edit(), 404, "model")["message"] == "no model 'x'"


@pytest.mark.parametrize(
    ("seconds", "header"), [(0, "1"), (0.2, "1"), (3, "3"), (3.2, "4"), (600, "60")]
)
async def test_a_full_queue_says_when(
    gateway: Live, upstream: Upstream, seconds: float, header: str
) -> None:
    upstream.echo.refusals = [busy(seconds)]
    response = await gateway.edit()
    assert error_of(response, 429)["type"] == "rate_limit_error"
    assert response.headers["retry-after"] == header
    assert len(upstream.echo.requests) == 1  # it is for the caller to try again


async def test_violations_are_all_told(gateway: Live, upstream: Upstream) -> None:
    upstream.echo.refusals = [
        invalid(("size.height", "must be even"), ("images[2]", "is odd"), ("n", "must be 1..10"))
    ]
    error = error_of(await gateway.edit(), 400, "size")
    assert error["message"] == "size.height: must be even; images[2]: is odd; n: must be 1..10"


@pytest.mark.parametrize(
    "detail", [error_details_pb2.ErrorInfo(reason="x"), error_details_pb2.BadRequest()]
)
async def test_details_that_say_nothing(gateway: Live, upstream: Upstream, detail: Message) -> None:
    upstream.echo.refusals = [Refusal(C.INVALID_ARGUMENT, "wrong somehow", detail)]
    assert error_of(await gateway.edit(), 400)["message"] == "wrong somehow"


@pytest.mark.parametrize(
    "response",
    [
        pb.EditResponse(model="x"),
        pb.EditResponse(images=[pb.EditedImage(data=b"x")]),
        pb.EditResponse(images=[pb.EditedImage(data=b"x", format=99)]),  # type: ignore[arg-type]
    ],
)
async def test_an_answer_that_makes_no_sense(
    gateway: Live, upstream: Upstream, response: pb.EditResponse
) -> None:
    upstream.echo.response = response
    answer = await gateway.edit()
    error_of(answer, 502)
    assert answer.headers["x-should-retry"] == "false"  # the edit is done


async def test_nobody_there(start: StartGateway) -> None:
    gateway = await start(upstream=f"127.0.0.1:{free_port()}")
    for path in ("/readyz", "/v1/models", "/v1/models/x"):
        began = time.monotonic()
        error_of(await gateway.client.get(path), 503)
        assert time.monotonic() - began < SOON
    began = time.monotonic()
    assert error_of(await gateway.edit(), 503)["type"] == "api_error"
    assert time.monotonic() - began < SOON
    assert (await gateway.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("backlog", [5, 0])
async def test_somebody_who_never_answers(start: StartGateway, backlog: int) -> None:
    """A listener that takes the connection and says nothing, and one that does not even take it."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener:
        address = listener.getsockname()
        # With no backlog, two wait in the kernel; whoever comes then hears nothing.
        queued = [socket.socket() for _ in range(0 if backlog else 2)]
        for each in queued:
            each.setblocking(False)
            each.connect_ex(address)
        gateway = await start(upstream=f"127.0.0.1:{address[1]}")
        for path in ("/readyz", "/v1/models"):
            began = time.monotonic()
            error_of(await gateway.client.get(path), 503)
            assert time.monotonic() - began < SOON
        began = time.monotonic()
        response = await gateway.edit()
        error_of(response, 503)
        assert response.headers["retry-after"] == "1"
        assert time.monotonic() - began < SOON
        for each in queued:
            each.close()


async def test_readiness_follows_the_upstream(start: StartGateway, upstream: Upstream) -> None:
    gateway = await start()
    assert (await gateway.client.get("/readyz")).json() == {"status": "ready"}
    await upstream.serving(False)
    try:
        error_of(await gateway.client.get("/readyz"), 503)
        began = time.monotonic()
        error_of(await gateway.edit(), 503)  # left out by the channel's own health check
        assert time.monotonic() - began < SOON
        assert upstream.echo.requests == []
    finally:
        await upstream.serving(True)
    assert (await gateway.edit()).status_code == 200


async def test_a_model_whose_server_is_down_is_not_unknown(start: StartGateway) -> None:
    async with several("a", "b") as (_, a, b):
        gateway = await start(upstream=f"{a.target},{b.target}")
        path = "/v1/models/b"
        assert (await gateway.client.get(path)).json()["id"] == "b"
        await b.serving(False)
        await until(lambda: not gateway.value("upstream_ready", target=b.target))
        response = await gateway.client.get(path)
        error_of(response, 503)
        assert response.headers["retry-after"] == "1"
        error_of(await gateway.edit(model="b"), 503)
        error_of(await gateway.client.get("/v1/models/c"), 404, "model")


async def test_it_is_found_when_it_comes(start: StartGateway) -> None:
    port = free_port()
    gateway = await start(upstream=f"127.0.0.1:{port}")
    error_of(await gateway.edit(), 503)
    upstream = await start_upstream(port)
    try:
        began = time.monotonic()
        while (await gateway.client.get("/readyz")).status_code != 200:
            assert time.monotonic() - began < 5
        assert (await gateway.edit()).status_code == 200
    finally:
        await upstream.server.stop(0)


@pytest.mark.parametrize("size", [100, 3_000_000])
async def test_unavailable_is_tried_again(
    start: StartGateway, upstream: Upstream, size: int
) -> None:
    """Large requests as well, which gRPC by default forgets once they are sent."""
    gateway = await start()
    upstream.echo.refusals = [Refusal(C.UNAVAILABLE), Refusal(C.UNAVAILABLE)]
    response = await gateway.edit(images=[b64(picture() + os.urandom(size))])
    assert response.status_code == 200
    assert len(upstream.echo.requests) == 3
    upstream.echo.reset()
    upstream.echo.refusals = [Refusal(C.UNAVAILABLE)] * 5
    error_of(await gateway.edit(), 503)
    assert len(upstream.echo.requests) == 3


async def test_the_end_of_one_server_takes_nobody_elses_retries(start: StartGateway) -> None:
    """gRPC counts what may not be retried too: a server that dies has 8 edits under way and 64 in its queue."""
    upstream = await start_upstream()
    try:
        gateway = await start(upstream=upstream.target)
        echo = upstream.echo
        echo.accepts, echo.refusals = True, [Refusal(C.UNAVAILABLE)] * 72
        ended = await asyncio.gather(*(gateway.edit() for _ in range(72)))
        assert {response.status_code for response in ended} == {502}
        echo.reset()
        echo.refusals = [Refusal(C.UNAVAILABLE)]
        assert (await gateway.edit()).status_code == 200
        assert len(echo.requests) == 2
    finally:
        await upstream.server.stop(0)


async def test_where_all_is_refused_retries_come_to_an_end(start: StartGateway) -> None:
    """Each is a body sent again, to servers that have enough of them."""
    upstream = await start_upstream()
    try:
        gateway, edits = await start(upstream=upstream.target), 150
        upstream.echo.refusals = [Refusal(C.UNAVAILABLE)] * (3 * edits)
        ended = await asyncio.gather(*(gateway.edit() for _ in range(edits)))
        assert {response.status_code for response in ended} == {503}
        assert len(upstream.echo.requests) < 2 * edits
    finally:
        await upstream.server.stop(0)


async def test_sixteen_images_and_a_mask_of_4_mib(gateway: Live, upstream: Upstream) -> None:
    whole = b64(picture() + bytes(4 * 2**20 - len(picture())))
    response = await gateway.edit(images=[whole] * 16, mask=whole)
    assert response.status_code == 200, response.text
    assert len(upstream.echo.requests[0].images) == 16
