"""The routes, end to end over sockets: HTTP in, gRPC out, and back."""

from __future__ import annotations

import asyncio
import time

import pybase64
import pytest

from retouch_gateway.hosting import Hosting
from tests.gateway.conftest import Live, StartGateway, Upstream, error_of

PNG = pybase64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ONE = pybase64.b64encode(PNG).decode()


async def test_an_edit_by_url_opens(gateway: Live) -> None:
    response = await gateway.edit(images=[ONE], seed=5, n=2)
    assert response.status_code == 200
    body = response.json()
    assert abs(body["created"] - time.time()) < 5
    assert body["model"] == "acme/echo"
    used = body["usage"]
    assert (used["input_images"], used["output_images"], used["steps"]) == (1, 2, 40)
    assert [item["seed"] for item in body["data"]] == [5, 6]
    assert "warning" not in body
    for item in body["data"]:
        assert set(item) == {"url", "expires_at", "revised_prompt", "seed"}
        assert item["revised_prompt"] == "warmer"
        assert item["url"].startswith(f"http://127.0.0.1:{gateway.port}/images/")
        assert abs(item["expires_at"] - time.time() - 3600) < 5
        picture = await gateway.client.get(item["url"])
        assert picture.content == PNG
        assert picture.headers["content-type"] == "image/png"


async def test_an_edit_inline(gateway: Live) -> None:
    response = await gateway.edit(images=[ONE], response_format="b64_json")
    (item,) = response.json()["data"]
    assert set(item) == {"b64_json", "revised_prompt", "seed"}
    assert pybase64.b64decode(item["b64_json"]) == PNG


async def test_every_field_arrives(gateway: Live, upstream: Upstream) -> None:
    response = await gateway.edit(
        images=[ONE, f"data:image/png;base64,{ONE}"],
        mask=ONE,
        prompt="sepia",
        model="acme/echo",
        n=3,
        size="512x256",
        response_format="b64_json",
        strength=0.5,
        guidance_scale=7,
        num_inference_steps=30,
        seed=2**64 - 1,
        kontext_max_mode="ON",
    )
    assert response.status_code == 200, response.text
    (request,) = upstream.echo.requests
    assert list(request.images) == [PNG, PNG]
    assert request.mask == PNG
    assert (request.prompt, request.model, request.n) == ("sepia", "acme/echo", 3)
    assert (request.size.width, request.size.height) == (512, 256)
    assert (request.strength, request.guidance_scale) == (0.5, 7.0)
    assert (request.num_inference_steps, request.seed) == (30, 2**64 - 1)
    assert request.kontext_max_mode
    assert [item["seed"] for item in response.json()["data"]] == [2**64 - 1, 0, 1]


async def test_what_is_absent_or_null_stays_unset(gateway: Live, upstream: Upstream) -> None:
    response = await gateway.edit(
        n=None, size="auto", strength=None, seed=None, mask=None, response_format=None
    )
    assert response.status_code == 200
    (request,) = upstream.echo.requests
    assert {field.name for field, _ in request.ListFields()} == {"images", "prompt"}


async def test_ids_and_time_are_on_every_answer(gateway: Live, upstream: Upstream) -> None:
    for path in (
        "/healthz",
        "/readyz",
        "/v1/models",
        "/nowhere",
        "/images/none",
        "/v1/images/edits",
    ):
        response = await gateway.client.get(path, headers={"x-request-id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        assert int(response.headers["openai-processing-ms"]) < 5000
    response = await gateway.client.get("/healthz", headers={"x-request-id": "in sane"})
    assert response.headers["x-request-id"].startswith("req_")


async def test_the_request_id_travels(gateway: Live, upstream: Upstream) -> None:
    response = await gateway.edit()
    assert upstream.echo.metadata[0]["x-request-id"] == response.headers["x-request-id"]


async def test_the_budget_is_the_deadline(start: StartGateway, upstream: Upstream) -> None:
    gateway = await start(timeout=2)
    upstream.echo.delay = 8
    began = time.monotonic()
    response = await gateway.edit()
    assert time.monotonic() - began < 5
    assert error_of(response, 504)["type"] == "api_error"
    assert response.headers["x-should-retry"] == "false"  # it would take as long again
    assert 0 < upstream.echo.seconds_left[0] < 2.1  # gRPC rounds it up
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)


async def test_models(gateway: Live) -> None:
    body = (await gateway.client.get("/v1/models")).json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert model["id"] == "acme/echo"
    assert (model["object"], model["owned_by"]) == ("model", "retouch")
    assert model["created"] == 1_700_000_000
    assert model["capabilities"]["mask"] is True
    assert model["defaults"] == {"strength": 0.8, "num_inference_steps": 20}
    assert model["limits"]["max_image_bytes"] == 2**22


@pytest.mark.parametrize("path", ["acme/echo", "acme%2Fecho"])
async def test_one_model(gateway: Live, path: str) -> None:
    assert (await gateway.client.get(f"/v1/models/{path}")).json()["id"] == "acme/echo"


async def test_no_such_model(gateway: Live) -> None:
    error = error_of(await gateway.client.get("/v1/models/gpt-9"), 404, "model")
    assert error["type"] == "invalid_request_error"
    error_of(await gateway.edit(model="gpt-9"), 404, "model")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1", 404),
        ("GET", "/v1/images/edits", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/healthz", 405),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/images/edits/", 404),
        ("GET", "/images/../etc/passwd", 404),
        ("GET", "/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
    ],
)
async def test_the_envelope_is_on_every_path(
    gateway: Live, method: str, path: str, status: int
) -> None:
    response = await gateway.client.request(method, path)
    param = "model" if path == "/v1/models/" else None
    assert error_of(response, status, param)["type"] == "invalid_request_error"
    if status == 405:
        assert response.headers["allow"]


async def test_public_url_wins(start: StartGateway) -> None:
    gateway = await start(public_url="https://pictures.example/retouch/")
    (item,) = (await gateway.edit()).json()["data"]
    assert item["url"].startswith("https://pictures.example/retouch/images/")


async def test_without_it_the_request_decides(gateway: Live) -> None:
    body = {"images": [ONE], "prompt": "x"}
    response = await gateway.client.post(
        "/v1/images/edits", json=body, headers={"host": "edits.example:81"}
    )
    assert response.json()["data"][0]["url"].startswith("http://edits.example:81/images/")
    for host in ("a b", "x:99999999", '"<>', ""):
        response = await gateway.client.post("/v1/images/edits", json=body, headers={"host": host})
        assert response.status_code == 200, host


async def test_what_nobody_foresaw_is_a_500_without_internals(
    gateway: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Hosting, "serve", broken)
    response = await gateway.client.get("/images/any")
    assert "secret" not in response.text
    assert error_of(response, 500)["type"] == "api_error"
    assert (await gateway.client.get("/healthz")).status_code == 200
