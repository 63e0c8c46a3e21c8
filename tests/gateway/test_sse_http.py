"""Streamed edits through the whole gateway."""

from __future__ import annotations

import asyncio

import grpc

from tests.gateway.conftest import Live, Refusal, Upstream, b64, busy, error_of, picture
from tests.gateway.test_sse import read

PHOTO = picture()


async def test_a_stream_of_two_images(gateway: Live, upstream: Upstream) -> None:
    upstream.echo.ahead = 4
    response = await gateway.edit(stream=True, partial_images=1, n=2, quality="high")
    assert response.status_code == 200
    assert response.headers["x-request-id"]
    said = read(response.content)
    assert said[0] == (": queued", {"position": 4})
    assert [name for name, _ in said[1:]] == [
        *[": step", "image_edit.partial_image", ": step"] * 2,
        *["image_edit.completed"] * 2,
    ]
    assert [data["b64_json"] for _, data in said[-2:]] == [b64(PHOTO)] * 2
    assert [data["ignored"] for _, data in said[-2:]] == [["quality"]] * 2


async def test_a_stream_asked_for_by_a_form(gateway: Live) -> None:
    form = {"prompt": "x", "stream": "true", "partial_images": "0", "output_format": "webp"}
    response = await gateway.client.post(
        "/v1/images/edits", data=form, files={"image": ("blob", PHOTO)}
    )
    name, completed = read(response.content)[-1]
    assert (name, completed["output_format"]) == ("image_edit.completed", "webp")
    assert "b64_json" in completed
    assert "url" not in completed


async def test_a_stream_whose_images_are_hosted(gateway: Live) -> None:
    response = await gateway.edit(stream=True, response_format="url")
    _, completed = read(response.content)[-1]
    assert "b64_json" not in completed
    assert (await gateway.client.get(completed["url"])).content == PHOTO


async def test_what_fails_before_the_first_event_is_no_stream(
    gateway: Live, upstream: Upstream
) -> None:
    error_of(await gateway.edit(stream=True, n=0), 400, "n")
    error_of(await gateway.edit(stream=True, model="none"), 404, "model")
    upstream.echo.refusals = [busy(7)]
    response = await gateway.edit(stream=True)
    error_of(response, 429)
    assert response.headers["retry-after"] == "7"


async def test_what_fails_after_it_ends_the_stream(gateway: Live, upstream: Upstream) -> None:
    upstream.echo.late = True
    upstream.echo.refusals = [Refusal(grpc.StatusCode.INTERNAL, "/secret/path")]
    labels = {"route": "/v1/images/edits", "method": "POST", "code": "500"}
    failed = gateway.value("requests_total", **labels)
    response = await gateway.edit(stream=True)
    assert response.status_code == 200
    said = read(response.content)
    assert [name for name, _ in said] == [": queued", "error"]
    assert said[1][1]["error"]["code"] == 500
    assert "secret" not in response.text
    await gateway.eventually("requests_total", failed + 1, **labels)


async def test_an_upstream_that_goes_away_in_the_middle_is_not_tried_again(
    gateway: Live, upstream: Upstream
) -> None:
    upstream.echo.late = True
    upstream.echo.refusals = [Refusal(grpc.StatusCode.UNAVAILABLE)]
    response = await gateway.edit(stream=True)
    assert read(response.content)[-1][1]["error"]["code"] == 502
    assert len(upstream.echo.requests) == 1


async def test_who_hangs_up_on_the_gateway_cancels_the_edit(
    gateway: Live, upstream: Upstream
) -> None:
    upstream.echo.delay = 60
    labels = {"route": "/v1/images/edits", "method": "POST", "code": "499"}
    left = gateway.value("requests_total", **labels)
    body = {"images": [b64(PHOTO)], "prompt": "x", "stream": True}
    async with gateway.client.stream("POST", "/v1/images/edits", json=body) as response:
        async for chunk in response.aiter_bytes():
            assert chunk.startswith(b": queued")
            break
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)
    await gateway.eventually("requests_total", left + 1, **labels)
