"""The official Python SDK, in the two ways that can carry this product's JSON body."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pybase64
import pytest
import pytest_asyncio
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, RateLimitError
from openai.types import ImagesResponse

from tests.gateway.conftest import Live, Upstream, b64, busy, picture

PNG = picture()


@pytest_asyncio.fixture(loop_scope="session")
async def sdk(gateway: Live) -> AsyncIterator[AsyncOpenAI]:
    address = f"http://127.0.0.1:{gateway.port}/v1"
    async with AsyncOpenAI(api_key="none", base_url=address, max_retries=0) as client:
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
