"""Who comes in, how often, and that an edit gives back what it held, however it ends."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest

from tests.gateway.conftest import Live, StartGateway, Upstream, b64, busy, error_of, picture

SECRETS = {"ada": "rt_" + "a" * 43, "bob": "rt_" + "b" * 43}
GOOD = {"images": [b64(picture())], "prompt": "warmer"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(
        "\n".join(
            f'[[keys]]\nid = "{name}"\nhash = "sha256:{hashlib.sha256(secret.encode()).hexdigest()}"'
            for name, secret in SECRETS.items()
        )
    )
    return file


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {SECRETS[name]}"}


async def edit(gateway: Live, **headers: str) -> httpx.Response:
    return await gateway.client.post("/v1/images/edits", json=GOOD, headers=headers)


async def until_free(gateway: Live) -> None:
    """Until no body is held, which is when the last edit has given back what it had."""
    async with asyncio.timeout(3):
        while gateway.value("body_bytes") or gateway.value("in_flight"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_no_edit_without_a_key(start: StartGateway, keys: Path, upstream: Upstream) -> None:
    gateway = await start(keys=keys)
    for headers in ({}, {"authorization": "Bearer rt_no"}, {"x-api-key": "no"}):
        for request in (
            edit(gateway, **headers),
            gateway.client.get("/v1/models", headers=headers),
            gateway.client.get("/v1/models/acme/echo", headers=headers),
        ):
            response = await request
            assert error_of(response, 401)["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
    assert not upstream.echo.requests
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
        assert (await gateway.client.get(path)).status_code == 200, path


async def test_a_key_opens(start: StartGateway, keys: Path) -> None:
    gateway = await start(keys=keys)
    assert (await edit(gateway, **bearer("ada"))).status_code == 200
    assert (await edit(gateway, **{"x-api-key": SECRETS["bob"]})).status_code == 200
    assert (await gateway.client.get("/v1/models", headers=bearer("ada"))).status_code == 200


async def test_a_url_is_deleted_by_its_key_alone(start: StartGateway, keys: Path) -> None:
    gateway = await start(keys=keys)
    url = (await edit(gateway, **bearer("ada"))).json()["data"][0]["url"]
    assert (await gateway.client.get(url)).status_code == 200  # whoever has the URL may look
    error_of(await gateway.client.delete(url), 401)
    error_of(await gateway.client.delete(url, headers=bearer("bob")), 403)
    assert (await gateway.client.delete(url, headers=bearer("ada"))).status_code == 204
    error_of(await gateway.client.get(url), 404)


async def test_a_rate_is_kept_by_key(start: StartGateway, keys: Path) -> None:
    gateway = await start(keys=keys, rate_limit="2/minute")
    for left in ("1", "0"):
        response = await edit(gateway, **bearer("ada"))
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-requests"] == "2"
        assert response.headers["x-ratelimit-remaining-requests"] == left
    refused = await edit(gateway, **bearer("ada"))
    assert error_of(refused, 429)["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await edit(gateway, **bearer("bob"))).status_code == 200


async def test_a_slot_is_given_back_however_the_edit_ends(
    start: StartGateway, upstream: Upstream
) -> None:
    gateway = await start(concurrency=1)
    upstream.echo.refusals = [busy(1)]
    error_of(await edit(gateway), 429)
    error_of(await gateway.edit(n="x"), 400, "n")
    upstream.echo.delay = 30
    for stream in (False, True):
        upstream.echo.started.clear()
        upstream.echo.cancelled.clear()
        running = asyncio.create_task(gateway.edit(stream=stream))
        await asyncio.wait_for(upstream.echo.started.wait(), 10)
        error_of(await edit(gateway), 429)
        running.cancel()
        await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)
        await until_free(gateway)
    upstream.echo.delay = 0
    for body in ({}, {"stream": True}, {}):
        assert (await gateway.edit(**body)).status_code == 200
        await until_free(gateway)


async def test_a_key_sent_twice_edits_once(gateway: Live, upstream: Upstream) -> None:
    upstream.echo.delay = 0.2
    first, second = await asyncio.gather(
        *(edit(gateway, **{"idempotency-key": "order-1"}) for _ in range(2))
    )
    third = await edit(gateway, **{"idempotency-key": "order-1"})
    assert first.content == second.content == third.content
    assert third.headers["idempotent-replayed"] == "true"
    assert third.headers["content-type"] == "application/json"
    assert len(upstream.echo.requests) == 1
    other = await gateway.client.post(
        "/v1/images/edits", json=GOOD | {"seed": 1}, headers={"idempotency-key": "order-1"}
    )
    error_of(other, 422)


async def test_a_failed_edit_leaves_its_key_free(gateway: Live, upstream: Upstream) -> None:
    upstream.echo.refusals = [busy(1)]
    error_of(await edit(gateway, **{"idempotency-key": "order-2"}), 429)
    await until_free(gateway)
    assert (await edit(gateway, **{"idempotency-key": "order-2"})).status_code == 200
    error_of(await edit(gateway, **{"idempotency-key": "x" * 256}), 400)


async def test_a_stream_sent_twice_ends_the_same(gateway: Live, upstream: Upstream) -> None:
    ends = []
    for _ in range(2):
        response = await gateway.client.post(
            "/v1/images/edits",
            json=GOOD | {"stream": True, "n": 2},
            headers={"idempotency-key": "order-3"},
        )
        assert response.headers["content-type"].startswith("text/event-stream")
        ends.append(response.text[response.text.index("event: image_edit.completed") :])
    assert ends[0] == ends[1]
    assert ends[0].count("event: image_edit.completed") == 2
    assert len(upstream.echo.requests) == 1


async def test_one_edit_after_another_never_meets_its_own_slot(start: StartGateway) -> None:
    gateway = await start(concurrency=1)
    for i in range(20):
        assert (await edit(gateway, **{"idempotency-key": f"order-{i}"})).status_code == 200
