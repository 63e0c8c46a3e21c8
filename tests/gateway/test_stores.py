"""A folder and a bucket keep the same promises: whole or not at all, in seconds or an OSError."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from retouch_gateway import stores
from retouch_gateway.stores import Folder, Store, kept_key, open_store
from tests.gateway.stores import (
    Forgetful,
    Open,
    bucket,
    forgetful,
    object_store,
    open_again,
    store,
)

__all__ = ["bucket", "forgetful", "object_store", "open_again", "store"]


async def names(store: Store) -> set[str]:
    return {entry.name for entry in await store.entries()}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_what_is_put_is_there_until_deleted(store: Store) -> None:
    data = os.urandom(3_000_000)
    await store.put("a.png", data, "image/png")
    await store.put("b", b"")
    assert await store.get("a.png") == data
    assert await store.get("b") == b""
    await store.put("b", b"2")
    assert await store.get("b") == b"2"
    assert await names(store) == {"a.png", "b"}
    await store.delete("a.png", "b", "never")
    await store.delete("a.png")
    await store.delete()
    assert await names(store) == set()
    with pytest.raises(FileNotFoundError):
        await store.get("a.png")


async def test_its_clock(store: Store) -> None:
    await store.put("a", b"1")
    (entry,) = await store.entries()
    assert entry.name == "a"
    assert entry.modified == pytest.approx(time.time(), abs=2)


async def test_one_alone_creates(open_again: Open) -> None:
    replicas = [open_again() for _ in range(4)]
    said = [str(i).encode() for i in range(4)]
    kept = await asyncio.gather(
        *(each.create("one", data) for each, data in zip(replicas, said, strict=True))
    )
    assert len(set(kept)) == 1
    assert kept[0] in said
    assert await replicas[0].get("one") == kept[0]
    assert await names(replicas[0]) == {"one"}


@pytest.mark.parametrize("status", [500, 503, 0])
async def test_who_creates_learns_it_though_the_answer_is_lost(
    forgetful: Forgetful, status: int
) -> None:
    """obstore asks again, and is told that the name is taken."""
    forgetful.status = status
    assert await open_store("s3://bucket/prefix").create("one", b"mine") == b"mine"
    assert forgetful.refused == 1
    assert await open_store("s3://bucket/prefix").create("one", b"theirs") == b"mine"
    assert len(await kept_key(open_store("s3://bucket/prefix"))) == 64


async def test_what_lies_deeper_is_not_listed(store: Store, open_again: Open) -> None:
    await store.put("a", b"1")
    if isinstance(store, Folder):
        (store.folder / "sub").mkdir()
        (store.folder / "sub" / "b").write_bytes(b"2")
        (store.folder / "link").symlink_to(store.folder / "a")
    else:
        await store.put("sub/b", b"2")
    assert await names(store) == {"a"}


async def test_replicas_keep_one_key(open_again: Open) -> None:
    kept = await asyncio.gather(*(kept_key(open_again()) for _ in range(4)))
    assert len(set(kept)) == 1
    assert len(kept[0]) == 64
    assert await kept_key(open_again()) == kept[0]
    await open_again().put(stores.KEY, b"short")
    with pytest.raises(OSError, match="too short"):
        await kept_key(open_again())


async def test_a_folders_files_are_its_owners(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    await Folder(folder).put("x", b"1")
    await kept_key(Folder(folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


async def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    store = Folder(tmp_path)
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        await store.put("x", b"1")
    assert files(tmp_path) == set()


async def test_what_a_crash_left_half_written_goes_after_an_hour(tmp_path: Path) -> None:
    old, new, other = (f".part-{'a' * 32}", f".part-{'b' * 32}", ".part-mine")
    for name in (old, new, other):
        (tmp_path / name).write_bytes(b"1")
    hours_ago = time.time() - 4000
    for name in (old, other):
        os.utime(tmp_path / name, (hours_ago, hours_ago))
    assert await names(Folder(tmp_path)) == {other}
    assert files(tmp_path) == {new, other}


async def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = Folder(tmp_path / "file")
    for work in (store.put("x", b"1"), store.get("x"), store.entries()):
        with pytest.raises(OSError, match="directory") as raised:
            await work
        assert not isinstance(raised.value, FileNotFoundError)
    assert await Folder(tmp_path / "absent").entries() == []


async def test_a_store_that_hangs_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "SECONDS", 0.1)
    store = Folder(tmp_path)
    os.mkfifo(tmp_path / "x")  # nobody writes: to open it waits
    started = time.monotonic()
    outcomes = await asyncio.gather(
        *(store.get("x") for _ in range(stores.THREADS + 5)), return_exceptions=True
    )
    assert time.monotonic() - started < 10  # to open it takes for ever
    assert {type(each) for each in outcomes} == {TimeoutError}
    assert await asyncio.to_thread(len, "others' threads are free") == 24
    os.close(os.open(tmp_path / "x", os.O_RDWR))  # lets its threads go


class Stuck(Folder):
    """Hangs until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go = threading.Event()

    def _put(self, name: str, data: bytes, media_type: str, create: bool) -> None:
        self.go.wait()


async def test_what_a_store_that_hangs_holds_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "SECONDS", 0.1)
    store, data = Stuck(tmp_path), os.urandom(100)
    held = []
    for _ in range(4):
        puts = [store.put("x", data) for _ in range(stores.THREADS + 20)]
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert {type(each) for each in outcomes} == {TimeoutError}
        del puts, outcomes
        gc.collect()
        held.append(sys.getrefcount(data))
    assert held[1] == held[-1]
    store.go.set()
    monkeypatch.undo()
    await asyncio.gather(*(store.put("x", data) for _ in range(stores.THREADS + 20)))


async def test_what_failed_is_not_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store, data = Folder(tmp_path / "file"), os.urandom(100)
    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(data)
        for _ in range(5):
            with contextlib.suppress(OSError):
                await store.put("x", data)
        await asyncio.sleep(0.1)  # for the last thread's end
        assert sys.getrefcount(data) == before
    finally:
        gc.enable()


async def test_one_that_cannot_be_deleted_keeps_no_other(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    (tmp_path / "b").mkdir()
    for name in ("a", "c"):
        await store.put(name, b"1")
    with pytest.raises(IsADirectoryError):
        await store.delete("a", "b", "never", "c")
    assert files(tmp_path) == {"b"}


def test_a_process_waits_for_what_is_nearly_done() -> None:
    """For a thread that comes back from a bucket while the interpreter ends may abort it."""
    script = (
        "import asyncio, time; from pathlib import Path; from retouch_gateway import stores\n"
        "class Slow(stores.Folder):\n"
        "  def _get(self, name): time.sleep(0.3); print('done')\n"
        "async def main():\n"
        "  task = asyncio.create_task(Slow(Path('x')).get('x')); await asyncio.sleep(0.1); task.cancel()\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert (ended.stdout, ended.stderr) == (b"done\n", b"")


def test_a_process_whose_store_hangs_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / stores.KEY)
    script = (
        "import asyncio, sys; from pathlib import Path; from retouch_gateway import stores\n"
        "stores.SECONDS = stores.LAST_SECONDS = 0.1\n"
        "try: asyncio.run(stores.kept_key(stores.Folder(Path(sys.argv[1]))))\n"
        "except TimeoutError: print('no answer')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, check=True, capture_output=True, timeout=20)
    assert (ended.stdout, ended.stderr) == (b"no answer\n", b"")


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://127.0.0.1:0x"])
async def test_a_bucket_that_is_not_there(
    bucket: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = open_store(bucket)
    for work in (store.put("x", b"1"), store.get("x"), store.delete("x"), store.entries()):
        started = time.monotonic()
        with pytest.raises(OSError, match=r"^[^\n]+$") as raised:
            await work
        assert time.monotonic() - started < 3
        assert not isinstance(raised.value, FileNotFoundError)


async def test_a_bucket_that_hangs(
    bucket: str, black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "")  # so that what is set below ends with this test
    monkeypatch.delenv("AWS_TIMEOUT")
    monkeypatch.setattr("retouch_gateway.bucket._BOUNDS", {"TIMEOUT": "500ms"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", black_hole)
    store = open_store(bucket)
    for work in (store.put("x", b"1"), store.get("x")):
        started = time.monotonic()
        with pytest.raises(OSError, match="error sending request"):
            await work
        assert time.monotonic() - started < 4


def test_a_bucket_that_its_variables_do_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(OSError, match="Account must be specified"):
        open_store("az://container/prefix")


async def test_a_bucket_says_what_its_pictures_are(bucket: str) -> None:
    await open_store(bucket).put("a.webp", b"1", "image/webp")
    kept = await asyncio.to_thread(obstore.get, from_url(bucket), "a.webp")
    assert kept.attributes == {"Content-Type": "image/webp"}


def test_a_process_with_a_bucket_ends_in_order(bucket: str) -> None:
    """obstore's asynchronous calls would abort one of three, and so would a thread left to itself."""
    script = (
        "import asyncio, sys; from retouch_gateway.stores import open_store\n"
        "async def main():\n"
        "  store = open_store(sys.argv[1]); await store.put('x', b'1')\n"
        "  task = asyncio.create_task(store.entries()); await asyncio.sleep(0.001); task.cancel()\n"
        "asyncio.run(main())\n"
    )
    for _ in range(8):
        subprocess.run([sys.executable, "-c", script, bucket], check=True, env=os.environ)
