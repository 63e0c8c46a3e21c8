"""Images by URL: signed, expiring, swept, deleted by who made them, and never a reason to lose an edit."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from retouch_gateway.errors import Forbidden, GatewayError, Gone, NotFound, error_response
from retouch_gateway.hosting import MEDIA_TYPES, Hosting
from retouch_gateway.metrics import Metrics
from retouch_gateway.stores import Entry, Folder, Store
from tests.gateway.conftest import Live, StartGateway, error_of
from tests.gateway.several import until
from tests.gateway.stores import Open, bucket, object_store, open_again, store

__all__ = ["bucket", "object_store", "open_again", "store"]

KEY = b"k" * 32
DATA = bytes(range(256)) * 8


class Broken(Store):
    """A store that fails."""

    def _fail(self, *_: object) -> None:
        raise OSError(5, os.strerror(5))

    _put = _get = _delete_one = _entries = _fail  # type: ignore[assignment]


def hosting_in(store: Store, ttl: int = 60, *keys: bytes) -> Hosting:
    return Hosting(store, ttl, keys or (KEY,), Metrics())


async def path_in(hosting: Hosting, extension: str = "png", owner: str = "") -> str:
    """The path of a picture freshly put there."""
    hosted = await hosting.put(DATA, extension, owner)
    assert hosted
    return hosted.path


def forged(path: str) -> str:
    """Another path, which nobody signed."""
    token, extension = path.rsplit(".", 1)
    return f"{token[:-1]}{'y' if token[-1] == 'x' else 'x'}.{extension}"


async def hosted_by(gateway: Live) -> str:
    """The path of a freshly edited image."""
    (item,) = (await gateway.edit()).json()["data"]
    return str(urlsplit(item["url"]).path)


def served(hosting: Hosting, result: str) -> float | None:
    return hosting.metrics.registry.get_sample_value(
        "retouch_gateway_served_images_total", {"result": result}
    )


def counted(hosting: Hosting, name: str) -> float | None:
    return hosting.metrics.registry.get_sample_value(f"retouch_gateway_{name}_total")


@dataclass
class Site:
    """One replica, as a client sees it."""

    hosting: Hosting
    client: httpx.AsyncClient

    @classmethod
    def of(cls, hosting: Hosting) -> Site:
        async def image(request: Request) -> Response:
            name = request.path_params["name"]
            if request.method != "DELETE":
                return await hosting.serve(request, name)
            await hosting.delete(name, request.headers.get("owner", ""), request.headers)
            return Response(status_code=204)

        async def refused(_request: Request, error: Exception) -> Response:
            assert isinstance(error, GatewayError)
            return error_response(error)

        route = Route("/images/{name}", image, methods=["GET", "OPTIONS", "DELETE"])
        app = Starlette(routes=[route], exception_handlers={GatewayError: refused})
        transport = httpx.ASGITransport(app)
        return cls(hosting, httpx.AsyncClient(transport=transport, base_url="http://gateway"))

    async def get(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.request(method, path, headers=named)


@pytest_asyncio.fixture(loop_scope="session")
async def site(store: Store) -> AsyncIterator[Site]:
    site = Site.of(hosting_in(store))
    async with site.client:
        yield site


# What is served


@pytest.mark.parametrize("extension", MEDIA_TYPES)
async def test_a_picture(site: Site, extension: str) -> None:
    found = await site.get(await path_in(site.hosting, extension))
    assert found.status_code == 200
    assert found.content == DATA
    headers = found.headers
    assert headers["content-type"] == MEDIA_TYPES[extension]
    assert headers["content-disposition"] == f'inline; filename="edit.{extension}"'
    assert headers["x-content-type-options"] == "nosniff"
    assert (
        headers["content-security-policy"]
        == "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    )
    assert headers["accept-ranges"] == "bytes"
    scope, age = headers["cache-control"].split(", max-age=")
    assert scope == "private"
    assert 58 <= int(age) <= 60
    assert served(site.hosting, "ok") == 1


async def test_over_a_socket(gateway: Live) -> None:
    path = await hosted_by(gateway)
    whole = await gateway.client.get(path)
    head = await gateway.client.head(path)
    assert head.status_code == 200
    assert head.content == b""
    assert int(head.headers["content-length"]) == len(whole.content) > 0
    assert head.headers["etag"] == whole.headers["etag"]
    part = await gateway.client.get(path, headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, whole.content[1:4])
    known = await gateway.client.get(path, headers={"if-none-match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    beyond = await gateway.client.get(path, headers={"range": "bytes=999999-"})
    error_of(beyond, 416)
    assert beyond.headers["content-range"] == f"bytes */{len(whole.content)}"
    asked = await gateway.client.options(path)
    assert asked.status_code == 204


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("BYTES=5-9", 5, 10),
        ("bytes=2000-", 2000, 2048),
        ("bytes=2000-999999999", 2000, 2048),
        ("bytes=-7", 2041, 2048),
        ("bytes=-99999", 0, 2048),
        ("bytes=0-", 0, 2048),
    ],
)
async def test_a_range(site: Site, asked: str, start: int, stop: int) -> None:
    found = await site.get(await path_in(site.hosting), range=asked)
    assert found.status_code == 206
    assert found.content == DATA[start:stop]
    assert found.headers["content-range"] == f"bytes {start}-{stop - 1}/2048"
    assert found.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("*", 200),
        ("{etag}", 200),
        ('"x", {etag}', 200),
        ('"x"', 412),
        ("W/{etag}", 412),  # compared strongly
        ("", 412),
    ],
)
async def test_only_if_it_is_the_one_meant(site: Site, asked: str, status: int) -> None:
    path = await path_in(site.hosting)
    etag = (await site.get(path)).headers["etag"]
    for method in ("GET", "HEAD"):
        found = await site.get(path, method, if_match=asked.format(etag=etag))
        assert found.status_code == status
        assert found.headers["access-control-allow-origin"] == "*"
    # It comes before all else that is asked.
    more = {"if_none_match": etag, "range": "bytes=9999-"}
    found = await site.get(path, if_match=asked.format(etag=etag), **more)
    assert found.status_code == (304 if status == 200 else 412)
    gone = await site.get(forged(path), if_match='"x"')
    assert gone.status_code == 404
    # It tells nobody else whether the image is the one that they mean.
    foreign = await site.get(path, "DELETE", owner="bob", if_match=asked.format(etag=etag))
    assert foreign.status_code == 403
    deleted = await site.get(path, "DELETE", if_match=asked.format(etag=etag))
    assert deleted.status_code == (204 if status == 200 else 412)
    assert (await site.get(path)).status_code == (404 if status == 200 else 200)


@pytest.mark.parametrize("asked", ["bytes=2048-", "bytes=2048-9999", "bytes=-0"])
async def test_a_range_beyond_the_end(site: Site, asked: str) -> None:
    found = await site.get(await path_in(site.hosting), range=asked)
    assert found.status_code == 416
    assert found.headers["content-range"] == "bytes */2048"
    assert found.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-1,5-6", "bytes=9-5", "bytes=a-b", "bytes=-", "items=0-1", "", "bytes=" + "9" * 40],
)
async def test_no_range_that_we_serve_is_all_of_it(site: Site, asked: str) -> None:
    found = await site.get(await path_in(site.hosting), range=asked)
    assert (found.status_code, found.content) == (200, DATA)


async def test_a_range_of_another_picture_is_all_of_this_one(site: Site) -> None:
    path = await path_in(site.hosting)
    etag = (await site.get(path)).headers["etag"]
    assert (await site.get(path, range="bytes=0-1", if_range=etag)).status_code == 206
    for other in ('"other"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        found = await site.get(path, range="bytes=0-1", if_range=other)
        assert (found.status_code, found.content) == (200, DATA)
    head = await site.get(path, "HEAD", range="bytes=0-1")  # a range is of GET alone
    assert head.status_code == 200


async def test_what_the_caller_knows_is_not_sent_again(site: Site) -> None:
    path, other = await path_in(site.hosting), await path_in(site.hosting)
    etag = (await site.get(path)).headers["etag"]
    for known in (etag, f"W/{etag}", f'"a", {etag}', "*"):
        found = await site.get(path, if_none_match=known, range="bytes=0-1")
        assert (found.status_code, found.content) == (304, b"")
        assert found.headers["etag"] == etag
        assert "max-age" in found.headers["cache-control"]
    assert (await site.get(other, if_none_match=etag)).status_code == 200
    assert (await site.get(path, if_none_match='""')).status_code == 200


async def test_any_page_may_show_it(site: Site) -> None:
    path = await path_in(site.hosting)
    for found in (await site.get(path), await site.get(forged(path))):
        assert found.headers["access-control-allow-origin"] == "*"
        assert found.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "etag" in found.headers["access-control-expose-headers"]
    asked = await site.get(
        path, "OPTIONS", origin="https://shop.example", access_control_request_method="GET"
    )
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == "*"
    assert asked.headers["access-control-allow-methods"] == "GET, HEAD"  # and no page deletes it
    assert "range" in asked.headers["access-control-allow-headers"]


# Tokens


@given(data=st.data(), extension=st.sampled_from(sorted(MEDIA_TYPES)), owner=st.text(max_size=40))
async def test_a_path_is_as_we_signed_it_or_none(
    data: st.DataObject, extension: str, owner: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hosting = hosting_in(Folder(tmp_path_factory.getbasetemp() / "tokens"))
    name = (await path_in(hosting, extension, owner)).removeprefix("/images/")
    token = bytearray(base64.urlsafe_b64decode(name.partition(".")[0]))
    place = data.draw(st.integers(0, len(token) * 8 - 1))
    token[place // 8] ^= 1 << place % 8  # one bit: another id, a longer life, another owner
    flipped = base64.urlsafe_b64encode(token).decode()
    forged = [
        f"{flipped}.{extension}",
        *(f"{name.partition('.')[0]}.{each}" for each in {*MEDIA_TYPES, "svg"} - {extension}),
        name[: data.draw(st.integers(0, len(name) - 1))],
        name + data.draw(st.text(min_size=1, max_size=3)),
        data.draw(st.text(max_size=90)),
    ]
    for wrong in forged:
        with pytest.raises(NotFound):
            await hosting.delete(wrong, owner, Headers())
    other = data.draw(st.text(max_size=40).filter(lambda o: o != owner))
    with pytest.raises(Forbidden):
        await hosting.delete(name, other, Headers())
    await hosting.delete(name, owner, Headers())


async def test_one_keys_urls_do_not_show_that_they_are(store: Store) -> None:
    hosting, began = hosting_in(store), time.time()
    one, other = [
        base64.urlsafe_b64decode((await path_in(hosting, owner="ada"))[8:80]) for _ in range(2)
    ]
    for each in (one, other):  # the second; no other byte run is shared
        assert began + 60 <= int.from_bytes(each[16:21], "big") <= time.time() + 61
    assert one[21:30] != other[21:30]


async def test_all_keys_are_compared_in_constant_time_whichever_fits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [bytes([i]) * 32 for i in range(4)]
    site, compared = Site.of(hosting_in(store, 60, *keys)), list[int]()
    compare = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return compare(one, other)

    async with site.client:
        signed = [
            await path_in(hosting_in(store, 60, key)) for key in (keys[0], keys[3], b"o" * 32)
        ]
        monkeypatch.setattr(hmac, "compare_digest", spy)
        for path, status in zip(signed, (200, 200, 404), strict=True):
            compared.clear()
            assert (await site.get(path)).status_code == status
            assert compared == [24] * 4
        compared.clear()
        assert (await site.get(signed[0], "DELETE", owner="bob")).status_code == 403
        assert compared == [24] * 4 + [9]  # and whose it is


async def test_another_gateways_path_is_not_found(open_again: Open) -> None:
    path = await path_in(hosting_in(open_again(), 60, b"o" * 32))
    site = Site.of(hosting_in(open_again()))
    assert (await site.get(path)).status_code == 404
    assert served(site.hosting, "unknown") == 1


async def test_any_replica_answers_any_path(open_again: Open) -> None:
    one, other = Site.of(hosting_in(open_again())), Site.of(hosting_in(open_again()))
    for here, there in ((one, other), (other, one)):
        path = await path_in(here.hosting)
        assert (await there.get(path)).content == DATA
        assert (await there.get(path, "DELETE")).status_code == 204
        assert (await here.get(path)).status_code == 404


async def test_a_key_is_rotated_without_losing_urls(open_again: Open) -> None:
    old, new = b"old" * 10, b"new" * 10
    before = await path_in(hosting_in(open_again(), 60, old), owner="ada")
    rotated = Site.of(hosting_in(open_again(), 60, new, old))
    after = await path_in(rotated.hosting, owner="ada")
    for path in (before, after):
        assert (await rotated.get(path)).status_code == 200
    done = Site.of(hosting_in(open_again(), 60, new))
    assert (await done.get(after)).status_code == 200
    assert (await done.get(before)).status_code == 404
    for path in (before, after):
        assert (await rotated.get(path, "DELETE", owner="bob")).status_code == 403
        assert (await rotated.get(path, "DELETE", owner="ada")).status_code == 204


# Deletion


@pytest.mark.parametrize(("owner", "other"), [("ada", "bob"), ("ada", ""), ("", "ada")])
async def test_who_made_it_deletes_it(site: Site, owner: str, other: str) -> None:
    path = await path_in(site.hosting, owner=owner)
    assert (await site.get(path, "DELETE", owner=other)).status_code == 403
    assert (await site.get(path)).status_code == 200
    for _ in range(2):
        assert (await site.get(path, "DELETE", owner=owner)).status_code == 204
        assert (await site.get(path)).status_code == 404
    assert await site.hosting.store.entries() == []


# Time


async def test_an_expired_image_is_gone_and_swept(site: Site) -> None:
    site.hosting.ttl = 3
    hosted = await site.hosting.put(DATA, "png", "")
    assert hosted
    path = hosted.path
    sweeping = asyncio.create_task(site.hosting.sweep_forever())
    assert (await site.get(path)).status_code == 200
    await asyncio.sleep(hosted.expires_at - time.time() + 0.05)
    gone = await site.get(path)
    assert gone.status_code == 410
    assert gone.headers["cache-control"] == "no-store"
    assert (await site.get(path, "DELETE")).status_code == 410
    await until(lambda: counted(site.hosting, "swept_images") == 1, 10)
    assert await site.hosting.store.entries() == []
    assert served(site.hosting, "expired") == 1
    sweeping.cancel()


async def test_expiry_is_enforced_on_read(site: Site) -> None:
    """Whether or not the sweep has been."""
    path = await path_in(hosting_in(site.hosting.store, -10))
    assert (await site.get(path)).status_code == 410
    assert len(await site.hosting.store.entries()) == 1


async def test_sweep_takes_only_its_own(store: Store) -> None:
    past, future = int(time.time()) - 5, int(time.time()) + 500
    ours = {f"{'a' * 32}-{past}.png", f"{'b' * 32}-{past}.jpg", f"{'c' * 32}-{past}.webp"}
    others = {
        f"{'d' * 32}-{future}.png",
        f"holiday-{past}.png",
        f"{'f' * 32}-{past}.gif",
        f"{'A' * 32}-{past}.png",
        f"x{'a' * 32}-{past}.png",
        ".signing-key",
        "notes.txt",
    }
    for name in ours | others:
        await store.put(name, b"x")
    hosting = hosting_in(store)
    await hosting.sweep()
    assert {entry.name for entry in await store.entries()} == others
    assert counted(hosting, "swept_images") == 3
    await hosting.sweep(lambda entry: entry.name == "notes.txt")
    assert {entry.name for entry in await store.entries()} == others - {"notes.txt"}
    assert counted(hosting, "swept_images") == 3


async def test_one_that_cannot_be_deleted_stops_no_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retouch_gateway.hosting._SWEPT_AT_ONCE", 3)
    hosting = hosting_in(Folder(tmp_path), -10)
    await asyncio.gather(*(path_in(hosting) for _ in range(10)))
    stubborn = min(os.listdir(tmp_path))

    class Stubborn(Folder):
        def _delete_one(self, name: str) -> None:
            if name == stubborn:
                raise PermissionError(1, os.strerror(1))
            super()._delete_one(name)

    hosting = hosting_in(Stubborn(tmp_path))
    for _ in range(2):
        with pytest.raises(PermissionError):
            await hosting.sweep()
        assert os.listdir(tmp_path) == [stubborn]
    assert counted(hosting, "swept_images") in (7, 9)  # those deleted along with it are not counted


async def test_what_another_replica_swept_first_is_not_counted_again(tmp_path: Path) -> None:
    await asyncio.gather(*(path_in(hosting_in(Folder(tmp_path), -10)) for _ in range(5)))
    found = await Folder(tmp_path).entries()

    class AsItWas(Folder):
        def _entries(self) -> list[Entry]:
            return found

    for swept in (5, 0):
        hosting = hosting_in(AsItWas(tmp_path))
        await hosting.sweep()
        assert counted(hosting, "swept_images") == swept


async def test_deleted_twice_is_counted_once(tmp_path: Path) -> None:
    site = Site.of(hosting_in(Folder(tmp_path)))
    async with site.client:
        path = await path_in(site.hosting)
        for _ in range(2):
            assert (await site.get(path, "DELETE")).status_code == 204
    assert counted(site.hosting, "deleted_images") == 1


async def test_many_are_swept(store: Store) -> None:
    hosting = hosting_in(store, -10)
    await asyncio.gather(*(path_in(hosting) for _ in range(60)))
    await hosting.sweep()
    assert await store.entries() == []


# A store that fails


async def test_a_sweep_that_fails_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    sweeping = asyncio.create_task(hosting_in(Broken(), 1).sweep_forever())
    await until(lambda: caplog.messages.count("sweep: Input/output error") >= 2, 10)
    assert not sweeping.done()
    sweeping.cancel()


async def test_a_sweep_goes_on_whatever_it_meets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Folder):
        def _entries(self) -> list[Entry]:
            raise RuntimeError("can't start new thread")

    sweeping = asyncio.create_task(hosting_in(Odd(tmp_path), 1).sweep_forever())
    await until(lambda: caplog.messages.count("sweep") >= 2)
    assert not sweeping.done()
    sweeping.cancel()


async def test_a_failing_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hosting = hosting_in(Broken())
    assert await hosting.put(DATA, "png", "") is None
    assert counted(hosting, "store_failures") == 1
    assert "store: Input/output error" in caplog.text
    path = await path_in(hosting_in(Folder(tmp_path)))
    site = Site.of(hosting)
    for method in ("GET", "HEAD", "DELETE"):
        found = await site.get(path, method)
        assert found.status_code == 503
        assert found.headers["retry-after"] == "1"
    assert served(hosting, "failed") == 2
    error = json.loads((await site.get(path)).content)["error"]
    assert error["message"] == "The image store failed; try again."


async def test_a_failing_store_does_not_lose_the_edit(
    start: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    gateway = await start(store=str(folder), signing_key="k" * 32)
    folder.rmdir()
    folder.write_text("not a folder any more")
    response = await gateway.edit(n=2)
    assert response.status_code == 200
    body = response.json()
    assert "store failed" in body["warning"]
    assert len(body["data"]) == 2
    for item in body["data"]:
        assert "url" not in item
        assert base64.b64decode(item["b64_json"])
    assert gateway.value("store_failures_total") == 2
    assert str(folder) not in response.text
    assert "store:" in caplog.text


async def test_a_restart_keeps_urls(start: StartGateway) -> None:
    path = await hosted_by(await start())
    second = await start()
    assert (await second.client.get(path)).status_code == 200


async def test_an_expired_image_is_gone_whatever_the_store_says(tmp_path: Path) -> None:
    path = await path_in(hosting_in(Folder(tmp_path), -10))
    with pytest.raises(Gone):
        await hosting_in(Broken()).delete(path.removeprefix("/images/"), "", Headers())
