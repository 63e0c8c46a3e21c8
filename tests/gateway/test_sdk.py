"""The official Python SDK, by its own form and in the two ways that can carry a JSON body.

Other versions and clients: tests/conformance.
"""

from __future__ import annotations

import asyncio
import inspect
import io
from collections.abc import AsyncIterator
from typing import Any, Literal

import grpc
import httpx2
import pybase64
import pytest
import pytest_asyncio
from openai import (
    APIError,
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    NotFoundError,
    RateLimitError,
)
from openai.resources.images import AsyncImages
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent, ImagesResponse
from PIL import Image

from retouch_gateway.fields import BY_NAME
from tests.gateway.conftest import (
    MODEL,
    Live,
    Refusal,
    StartGateway,
    Upstream,
    b64,
    busy,
    picture,
)

PNG = picture()
POST = {"route": "/v1/images/edits", "method": "POST"}


def address(live: Live) -> str:
    return f"http://127.0.0.1:{live.port}/v1"


@pytest_asyncio.fixture(loop_scope="session")
async def sdk(gateway: Live) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="none", base_url=address(gateway), max_retries=0) as client:
        yield client


async def test_post(sdk: AsyncOpenAI, gateway: Live, upstream: Upstream) -> None:
    body = {"images": [b64(PNG)], "prompt": "sepia", "n": 2, "seed": 3, "strength": 0.7}
    result = await sdk.post("/images/edits", cast_to=ImagesResponse, body=body)
    assert result.created
    assert result.data
    assert [item.revised_prompt for item in result.data] == ["sepia"] * 2
    for item in result.data:
        assert item.url
        assert (await gateway.client.get(item.url)).content == PNG
    assert upstream.echo.requests[0].seed == 3


async def test_images_edit_with_an_extra_body(sdk: AsyncOpenAI, upstream: Upstream) -> None:
    result = await sdk.images.edit(
        image=[],
        prompt="sepia",
        n=1,
        size="512x512",
        response_format="b64_json",
        extra_headers={"Content-Type": "application/json"},
        extra_body={"images": [b64(PNG)], "seed": 9, "guidance_scale": 7.5},
    )
    assert result.data
    assert pybase64.b64decode(result.data[0].b64_json or "") == PNG
    (request,) = upstream.echo.requests
    assert (request.size.width, request.seed, request.guidance_scale) == (512, 9, 7.5)


async def test_its_form(sdk: AsyncOpenAI, upstream: Upstream) -> None:
    jpeg = picture((32, 32), "JPEG")
    result = await sdk.images.edit(
        image=[PNG, jpeg], prompt="sepia", size="512x512", extra_body={"strength": 0.25}
    )
    assert result.data
    assert result.usage
    assert result.usage.total_tokens == 0
    assert pybase64.b64decode(result.data[0].b64_json or "") == PNG
    assert result.data[0].url
    (request,) = upstream.echo.requests
    assert (list(request.images), request.strength) == ([PNG, jpeg], 0.25)


async def test_its_own_images_cannot_leave_it(sdk: AsyncOpenAI) -> None:
    """Resellers' sample. Should it ever pass, the docs need no other ways to send JSON."""
    edit: Any = sdk.images.edit
    with pytest.raises(TypeError, match="Missing required arguments"):
        await edit(images=[b64(PNG)], prompt="sepia")


def test_every_field_that_it_has_is_known() -> None:
    """All that it can send, but for what would change the result here if it had its effect."""
    options = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    sent = set(inspect.signature(AsyncImages.edit).parameters) - options
    assert sent - set(BY_NAME) == {"markup", "frame_count", "frame_duration_ms", "svg"} & sent


@pytest.mark.parametrize("field", ["markup", "frame_count", "frame_duration_ms", "svg"])
async def test_fields_that_are_refused(sdk: AsyncOpenAI, field: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        await sdk.images.edit(image=PNG, prompt="sepia", extra_body={field: 1})
    assert refused.value.param == field


@pytest.mark.parametrize("size", ["1536x1024", "1024x1536"])
async def test_its_own_sizes_are_the_models_to_judge(
    sdk: AsyncOpenAI, upstream: Upstream, size: Literal["1536x1024", "1024x1536"]
) -> None:
    await sdk.images.edit(image=PNG, prompt="sepia", size=size)
    (request,) = upstream.echo.requests
    assert f"{request.size.width}x{request.size.height}" == size


async def test_a_picture_of_megabytes_as_a_forms_text(sdk: AsyncOpenAI, upstream: Upstream) -> None:
    """Many servers take no more than 1 MiB in a part without a file name."""
    file = io.BytesIO()
    Image.effect_noise((1200, 1200), 100).save(file, "PNG")
    large = file.getvalue()
    assert len(large) > 2**20
    await sdk.images.edit(image=large, prompt="sepia", extra_body={"mask": b64(large)})
    (request,) = upstream.echo.requests
    assert (request.images[0], request.mask) == (large, large)


class Halting(httpx2.AsyncByteStream):
    """A body that stops halfway, for longer than it may."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body[:100]
        await asyncio.sleep(1)
        yield self.body[100:]


class SlowOnce(httpx2.AsyncHTTPTransport):
    """A line that is slow for the first request."""

    requests = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        if self.requests == 1:
            request.stream = Halting(await request.aread())
        return await super().handle_async_request(request)


async def test_it_comes_back_after_a_408(start: StartGateway) -> None:
    live = await start(body_timeout=0.3)
    transport = SlowOnce()
    async with (
        httpx2.AsyncClient(transport=transport) as line,
        AsyncOpenAI(api_key="none", base_url=address(live), http_client=line) as sdk,
    ):
        result = await sdk.images.edit(image=PNG, prompt="sepia")
    assert result.data
    assert transport.requests == 2
    assert live.value("requests_total", **POST, code="408") == 1


async def test_it_comes_back_after_a_409(start: StartGateway, upstream: Upstream) -> None:
    """The same edit sent to two replicas: the second says that it is under way, then gives its reply."""
    one, other = await start(), await start()
    upstream.echo.delay = 1
    images: list[ImagesResponse] = []

    async def edit(live: Live) -> None:
        async with AsyncOpenAI(api_key="none", base_url=address(live)) as sdk:
            images.append(
                await sdk.images.edit(
                    image=PNG, prompt="sepia", extra_headers={"Idempotency-Key": "once"}
                )
            )

    async with asyncio.TaskGroup() as group:
        group.create_task(edit(one))
        await upstream.echo.started.wait()
        group.create_task(edit(other))
    assert images[0].data == images[1].data
    assert len(upstream.echo.requests) == 1
    assert other.value("requests_total", **POST, code="409") >= 1


async def test_a_stream(sdk: AsyncOpenAI) -> None:
    """Its parser passes over the comments, and knows every event."""
    stream = await sdk.images.edit(
        image=PNG, prompt="sepia", n=2, stream=True, partial_images=1, model="acme/echo"
    )
    events = [event async for event in stream]
    assert [type(event) for event in events] == [
        *[ImageEditPartialImageEvent] * 2,
        *[ImageEditCompletedEvent] * 2,
    ]
    assert all(pybase64.b64decode(event.b64_json) == PNG for event in events)


async def test_a_stream_that_breaks(sdk: AsyncOpenAI, upstream: Upstream) -> None:
    upstream.echo.late = True
    upstream.echo.refusals = [Refusal(grpc.StatusCode.INTERNAL)]
    stream = await sdk.images.edit(image=PNG, prompt="sepia", stream=True)
    with pytest.raises(APIError, match="The edit failed") as broken:
        await anext(stream)
    assert broken.value.type == "api_error"


async def test_its_errors(sdk: AsyncOpenAI, upstream: Upstream) -> None:
    async def edit(**given: object) -> ImagesResponse:
        body = {"images": [b64(PNG)], "prompt": "x"} | given
        return await sdk.post("/images/edits", cast_to=ImagesResponse, body=body)

    with pytest.raises(BadRequestError) as bad:
        await edit(n=0)
    assert (bad.value.param, bad.value.type) == ("n", "invalid_request_error")
    assert bad.value.request_id
    with pytest.raises(NotFoundError):
        await edit(model="gpt-9")
    upstream.echo.refusals = [busy(3)]
    with pytest.raises(RateLimitError) as full:
        await edit()
    assert full.value.response.headers["retry-after"] == "3"
    with pytest.raises(APIStatusError):
        await edit(zoom=1)


async def test_models(sdk: AsyncOpenAI, gateway: Live) -> None:
    listed = await sdk.models.list()
    assert [model.id for model in listed.data] == ["acme/echo"]
    model = await sdk.models.retrieve("acme/echo")
    assert (model.id, model.owned_by) == ("acme/echo", "retouch")
    for shown in (listed.data[0], model):
        assert shown.to_dict()["limits"]["max_images"] == MODEL.limits.max_images  # type: ignore[index]
