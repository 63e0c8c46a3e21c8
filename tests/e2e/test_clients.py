"""The clients of tests/conformance, before both tiers and a real model."""

from __future__ import annotations

import asyncio
import io
import json
import re
from base64 import b64decode
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from PIL import Image

from tests.conformance import matrix
from tests.conformance.conftest import PICTURES, need, run
from tests.conformance.test_clients import API
from tests.e2e.conftest import Tiers


def picture(item: dict[str, Any]) -> Image.Image:
    image = Image.open(io.BytesIO(b64decode(item["b64_json"])))
    image.load()
    return image


@pytest.fixture(scope="module")
def saw(tiers: Tiers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each client that is here saw, all of them at once, by client and scenario."""
    here = [client for client, tool in matrix.CLIENTS.items() if tool.installed]

    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *(
                run(
                    client,
                    [name for name in ("one", "stream") if (client, name) in matrix.CELLS],
                    f"{tiers.url}/v1",
                    tmp_path_factory.mktemp(client),
                    "pocket",
                )
                for client in here
            )
        )

    return dict(zip(here, asyncio.run(all_of_them()), strict=True))


@pytest.mark.parametrize("client", matrix.CLIENTS)
def test_an_edit(saw: dict[str, dict[str, Any]], client: str) -> None:
    need(client)
    (item,) = saw[client]["one"]["data"]
    assert picture(item).format == "PNG"


def test_the_docs_example_of_models_is_this_one(tiers: Tiers) -> None:
    (told,) = re.findall(r'^```json\n(\{\n  "object": "list".*?)```$', API.read_text(), re.S | re.M)
    listed = tiers.rest.get("/v1/models").json()
    made = {"created": listed["data"][0]["created"]}
    assert listed["data"] == [model | made for model in json.loads(told)["data"]]


@pytest.mark.parametrize("size", ["1536x1024", "1024x1536"])
def test_openais_sizes_that_are_too_large_here(tiers: Tiers, size: str) -> None:
    with OpenAI(base_url=f"{tiers.url}/v1", api_key="none") as sdk:
        edit: Any = sdk.images.edit
        with pytest.raises(BadRequestError, match=f"not {size}") as refused:
            edit(image=PICTURES["photo.png"], prompt="sepia", size=size)
    assert refused.value.param == "size"


@pytest.mark.parametrize("client", [c for c in matrix.CLIENTS if (c, "stream") in matrix.CELLS])
def test_a_stream(saw: dict[str, dict[str, Any]], client: str) -> None:
    need(client)
    *previews, completed = saw[client]["stream"]["events"]
    assert {event["type"] for event in previews} == {"image_edit.partial_image"}
    assert completed["type"] == "image_edit.completed"
    assert picture(completed).size == picture(previews[0]).size
    assert completed["usage"]["steps"] > 1
