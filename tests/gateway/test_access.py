"""What every request gets: ids that are sane, a trace that goes on, headers, a line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import grpc
import pytest
from starlette.datastructures import Headers

from retouch_gateway.access import Visit
from tests.gateway.conftest import (
    Live,
    Refusal,
    StartGateway,
    Upstream,
    b64,
    busy,
    picture,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.mark.parametrize("given", ["r", "mine-1", "A:b.c_d-9", "x" * 128])
def test_a_sane_id_is_kept(given: str) -> None:
    assert Visit.of(Headers({"x-request-id": given})).id == given


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "ü", 'a"b', "a\tb", "../x", "a\n"])
def test_another_is_replaced(given: str) -> None:
    made = Visit.of(Headers({"x-request-id": given})).id
    assert made.startswith("req_")
    assert made != Visit.of(Headers()).id


@pytest.mark.parametrize(
    "given",
    [
        "",
        TRACE,
        PARENT[:-1],
        PARENT + "-extra",
        PARENT.upper(),
        PARENT.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-00f067aa0ba902b7-zz",
    ],
)
def test_a_trace_that_is_none_ends_here(given: str) -> None:
    visit = Visit.of(Headers({"traceparent": given, "tracestate": "a=1"}))
    assert (visit.traceparent, visit.tracestate, visit.trace_id) == ("", "", "")
    assert visit.metadata == (("x-request-id", visit.id),)


def test_two_parents_are_none() -> None:
    twice = [(b"traceparent", PARENT.encode())] * 2
    assert Visit.of(Headers(raw=twice)).traceparent == ""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["a=1"], "a=1"),
        (["a=1", "b=2"], "a=1,b=2"),
        (["x" * 512], "x" * 512),
        (["x" * 513], ""),
        (["ü"], ""),
        ([], ""),
    ],
)
def test_the_state_goes_along_within_bounds(given: list[str], kept: str) -> None:
    state = [(b"tracestate", each.encode("latin-1")) for each in given]
    visit = Visit.of(Headers(raw=[(b"traceparent", PARENT.encode()), *state]))
    assert visit.trace_id == TRACE
    assert dict(visit.metadata).get("tracestate", "") == kept


async def test_they_travel_to_the_server(gateway: Live, upstream: Upstream) -> None:
    sent = {"x-request-id": "mine-1", "traceparent": PARENT, "tracestate": "a=1"}
    body = {"images": [b64(picture())], "prompt": "warmer"}
    for stream in (False, True):
        answer = await gateway.client.post(
            "/v1/images/edits", json=body | {"stream": stream}, headers=sent
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-request-id"] == "mine-1"
        assert upstream.echo.metadata.pop().items() >= sent.items()


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The requests' records, by their fields."""
    return [vars(record) for record in caplog.records if record.name == "retouch_gateway.access"]


async def logged(caplog: pytest.LogCaptureFixture, count: int = 1) -> list[dict[str, Any]]:
    """The same, once there are so many: a line may come a moment after its answer."""
    async with asyncio.timeout(10):
        while len(lines(caplog)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return lines(caplog)


async def test_the_log_has_a_line_a_request(
    gateway: Live, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    body = {"images": [b64(picture())], "prompt": "warmer", "n": 2}
    answer = await gateway.client.post(
        "/v1/images/edits", json=body, headers={"x-request-id": "mine-2", "traceparent": PARENT}
    )
    (line,) = await logged(caplog)
    expected = {
        "message": "request",
        "method": "POST",
        "route": "/v1/images/edits",
        "status": 200,
        "request_id": "mine-2",
        "trace_id": TRACE,
        "model": "acme/echo",
        "images": 2,
        "bytes_out": len(answer.content),
    }
    assert line.items() >= expected.items()
    assert line["bytes_in"] == int(answer.request.headers["content-length"])
    assert 0 <= line["ms"] < 2000
    assert "key" not in line
    assert "error" not in line


async def test_of_what_failed_it_has_the_kind(
    gateway: Live, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "retouch_gateway.access")
    upstream.echo.refusals += [busy(1), Refusal(grpc.StatusCode.INTERNAL)]
    upstream.echo.late = True  # of the stream
    await gateway.edit()
    await gateway.edit(stream=True)
    await gateway.edit(n="my secret")
    full, failed, wrong = await logged(caplog, 3)
    assert (full["status"], full["error"]) == (429, "Busy")
    assert (failed["status"], failed["error"]) == (500, "GatewayError")
    assert (wrong["status"], wrong["error"]) == (400, "BadRequest")


async def test_what_is_secret_is_not_in_it(
    start: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    gateway = await start()
    secret = {"authorization": "Bearer sk-very-secret", "traceparent": "sk-very-secret"}
    body = {"images": [b64(picture())], "prompt": "my secret wish", "user": "sk-very-secret"}
    answer = await gateway.client.post("/v1/images/edits", json=body, headers=secret)
    (item,) = answer.json()["data"]
    await gateway.client.get(item["url"])
    await gateway.client.get("/nowhere/sk-very-secret?q=sk-very-secret")
    edit, image, nowhere = await logged(caplog, 3)
    assert (edit["route"], image["route"]) == ("/v1/images/edits", "/images/{name}")
    assert (nowhere["route"], nowhere["status"]) == ("other", 404)
    ours = [vars(record) for record in caplog.records if record.name.startswith("retouch")]
    said = json.dumps(ours, default=str)
    for secret_text in ("wish", "sk-very", item["url"].rsplit("/", 1)[1], b64(picture())[:40]):
        assert secret_text not in said


async def test_probes_are_quiet_unless_they_fail(
    start: StartGateway, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    gateway = await start()
    await gateway.client.get("/healthz")
    await upstream.serving(False)
    await gateway.client.get("/readyz")
    await upstream.serving(True)
    alive, unready = await logged(caplog, 2)
    assert (alive["levelno"], unready["levelno"]) == (logging.DEBUG, logging.INFO)
    assert unready["status"] == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_leaves_is_a_499(
    gateway: Live, upstream: Upstream, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    """Also when its answer had begun, with 200, as a stream's has."""
    caplog.set_level("INFO")
    upstream.echo.delay = 30
    before = gateway.value("disconnects_total")
    body = {"images": [b64(picture())], "prompt": "warmer", "stream": stream}
    leaves = asyncio.ensure_future(gateway.client.post("/v1/images/edits", json=body))
    await asyncio.wait_for(upstream.echo.started.wait(), 10)
    await asyncio.sleep(0.1)
    leaves.cancel()
    await asyncio.wait({leaves})
    (line,) = await logged(caplog)
    assert line["status"] == 499
    assert gateway.value("disconnects_total") == before + 1
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)
