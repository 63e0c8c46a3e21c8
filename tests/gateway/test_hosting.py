"""Images by URL: signed, expiring, swept, and never a reason to lose an edit."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from retouch_gateway.hosting import MEDIA_TYPES, Store, kept_key
from retouch_gateway.metrics import Metrics
from tests.gateway.conftest import Live, StartGateway, error_of

KEY = b"k" * 32


def store_in(folder: Path, ttl: int = 60, keys: tuple[bytes, ...] = (KEY,)) -> Store:
    return Store(folder, ttl, keys, Metrics())


async def path_of(gateway: Live) -> str:
    """The path of a freshly hosted image."""
    (item,) = (await gateway.edit()).json()["data"]
    return str(urlsplit(item["url"]).path)


async def test_its_headers(gateway: Live) -> None:
    path = await path_of(gateway)
    for method in ("GET", "HEAD"):
        response = await gateway.client.request(method, path)
        assert response.status_code == 200
        headers = response.headers
        assert headers["content-type"] == "image/png"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["access-control-allow-origin"] == "*"
        assert headers["content-disposition"].startswith("inline")
        scope, age = headers["cache-control"].split(", max-age=")
        assert scope == "private"
        assert 3590 < int(age) <= 3600
        assert int(headers["content-length"]) > 0
        assert bool(response.content) == (method == "GET")


@pytest.mark.parametrize("extension", MEDIA_TYPES)
async def test_its_type_is_its_format(gateway: Live, extension: str) -> None:
    hosted = await gateway.store.put(b"<html>", extension)
    assert hosted
    assert hosted.path.endswith(f".{extension}")
    response = await gateway.client.get(hosted.path)
    assert response.headers["content-type"] == MEDIA_TYPES[extension]


async def test_a_forged_path_is_not_found(gateway: Live) -> None:
    path = await path_of(gateway)
    head, token, extension = path[:8], path[8:68], path[69:]
    assert (head, extension) == ("/images/", "png")
    later = bytearray(base64.urlsafe_b64decode(token))
    later[20] += 1  # a longer life
    forged = [
        token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :] for i in (0, 25, 40, 59)
    ]
    forged += [base64.urlsafe_b64encode(later).decode(), token[:-1], token + "A", "", "é" * 60]
    for name in [*(f"{t}.png" for t in forged), f"{token}.webp", f"{token}.html", token]:
        error_of(await gateway.client.get(head + name), 404)
    assert (await gateway.client.get(path)).status_code == 200


async def test_another_gateways_path_is_not_found(gateway: Live, start: StartGateway) -> None:
    other = await start(keys=(b"o" * 32,), store=gateway.settings.store)
    path = await path_of(gateway)
    error_of(await other.client.get(path), 404)


async def test_a_key_is_rotated_without_losing_urls(start: StartGateway) -> None:
    old, new = b"old" * 10, b"new" * 10
    before = await path_of(await start(keys=(old,)))
    rotated = await start(keys=(new, old))
    after = await path_of(rotated)
    for path in (before, after):
        assert (await rotated.client.get(path)).status_code == 200
    done = await start(keys=(new,))
    assert (await done.client.get(after)).status_code == 200
    error_of(await done.client.get(before), 404)


async def test_an_expired_image_is_gone_and_swept(start: StartGateway) -> None:
    gateway = await start(ttl=1)
    path = await path_of(gateway)
    assert (await gateway.client.get(path)).status_code == 200
    await asyncio.sleep(2.1)  # the second it expires in is its last
    assert error_of(await gateway.client.get(path), 410)["type"] == "invalid_request_error"
    await gateway.eventually("swept_images_total", 1)
    assert list(gateway.settings.store.iterdir()) == []
    assert gateway.value("served_images_total", result="expired") == 1


async def test_expiry_is_enforced_on_read(tmp_path: Path, gateway: Live) -> None:
    """Whether or not the sweep has been."""
    store = store_in(gateway.settings.store, ttl=-10)
    hosted = await store.put(b"x", "png")
    assert hosted
    error_of(await gateway.client.get(hosted.path), 410)


async def test_a_restart_keeps_urls(start: StartGateway, tmp_path: Path) -> None:
    first = await start(keys=(kept_key(tmp_path),))
    path = await path_of(first)
    second = await start(keys=(kept_key(tmp_path),))
    assert (await second.client.get(path)).content == (await first.client.get(path)).content


def test_the_kept_key(tmp_path: Path) -> None:
    key = kept_key(tmp_path / "a" / "b")
    assert len(key) == 64
    assert kept_key(tmp_path / "a" / "b") == key
    assert kept_key(tmp_path / "other") != key
    (file,) = (tmp_path / "a" / "b").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"")
    with pytest.raises(OSError, match="too short"):
        kept_key(tmp_path / "a" / "b")


def test_sweep_takes_only_its_own(tmp_path: Path) -> None:
    past, future = int(time.time()) - 5, int(time.time()) + 500
    ours = [f"{'a' * 32}-{past}.png", f"{'b' * 32}-{past}.jpg", f".part-{'c' * 32}-{past}.webp"]
    others = [
        f"{'d' * 32}-{future}.png",
        f".part-{'e' * 32}-{future}.png",
        f"holiday-{past}.png",
        f"{'f' * 32}-{past}.gif",
        f"{'A' * 32}-{past}.png",
        ".signing-key",
        "notes.txt",
    ]
    for name in ours + others:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / f"{'0' * 32}-{past}.png").mkdir()
    (tmp_path / f"{'1' * 32}-{past}.png").symlink_to(tmp_path / "notes.txt")
    assert store_in(tmp_path).sweep() == 3
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= set(others)
    assert not left & set(ours)
    assert len(left) == len(others) + 2


async def test_a_restart_sweeps_what_expired_meanwhile(start: StartGateway, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    old = store_in(folder, ttl=-10)
    for _ in range(3):
        await old.put(b"x", "png")
    gateway = await start()
    await gateway.eventually("swept_images_total", 3)
    assert not any(folder.iterdir())


async def test_files_are_private_and_whole(gateway: Live) -> None:
    await path_of(gateway)
    names = [path.name for path in gateway.settings.store.iterdir()]
    assert not [name for name in names if ".part" in name]
    for name in names:
        assert (gateway.settings.store / name).stat().st_mode & 0o077 == 0


async def test_a_missing_file_is_not_found(gateway: Live) -> None:
    hosted = await gateway.store.put(b"x", "png")
    assert hosted
    for path in gateway.settings.store.glob("*"):
        path.unlink()
    error_of(await gateway.client.get(hosted.path), 404)


async def test_a_failing_store_does_not_lose_the_edit(
    start: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    gateway = await start(store=folder)
    folder.rmdir()
    folder.write_text("not a folder any more")
    response = await gateway.edit(n=2)
    assert response.status_code == 200
    body = response.json()
    assert "store failed" in body["warning"]
    assert len(body["data"]) == 2
    for item in body["data"]:
        assert set(item) == {"b64_json", "revised_prompt", "seed"}
    assert gateway.value("store_failures_total") == 2
    assert str(folder) not in response.text
    assert "store:" in caplog.text


async def test_a_full_store_leaves_no_pieces(
    gateway: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(gateway.settings.store.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "rename", full)
    response = await gateway.edit()
    assert "warning" in response.json()
    assert set(gateway.settings.store.iterdir()) == before
