"""Files that change while a process runs: whatever a look meets, it is not the last, and the metrics say so."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from retouch_gateway import watched
from retouch_gateway.metrics import Metrics
from retouch_gateway.watched import Contents, Unusable, Watched
from tests.gateway.several import until as soon
from tests.gateway.test_keys import becomes


async def until(look: Callable[[], bool]) -> None:
    await soon(look, 10)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.02)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("old")
    return path


def read(contents: Contents) -> str:
    """What these tests make of a file."""
    assert isinstance(contents, bytes)
    if contents == b"unusable":
        raise Unusable(["it says so"])
    if contents == b"odd":
        raise RuntimeError("what a library raises, of a secret")
    return contents.decode()


class Seen:
    """A file that is watched, what came of it, and what the metrics say."""

    def __init__(self, path: Path, make: Callable[..., str] = read) -> None:
        self.metrics = Metrics()
        self.watched = Watched("keys", [path], make, self.metrics)
        self.values: list[str] = []

    async def follow(self) -> None:
        async for value in self.watched.changes():
            self.values.append(value)

    @property
    def outdated(self) -> float | None:
        return self._sample("outdated")

    def reloads(self, result: str) -> float | None:
        return self._sample("reloads_total", result=result)

    def _sample(self, name: str, **labels: str) -> float | None:
        given = {"file": "keys", **labels}
        return self.metrics.registry.get_sample_value(f"retouch_gateway_file_{name}", given)


@contextlib.asynccontextmanager
async def watching(path: Path, make: Callable[..., str] = read) -> AsyncIterator[Seen]:
    seen = Seen(path, make)
    following = asyncio.create_task(seen.follow())
    yield seen
    assert not following.done()
    following.cancel()


@pytest.mark.parametrize("starts", [0, 1, 2, 3])
def test_a_thread_that_cannot_start_hides_no_change(
    file: Path, starts: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a loop of its own, whose threads are still to be started: the next one that is, is the last for now."""
    start, asked = threading.Thread.start, 0

    def scarce(thread: threading.Thread) -> None:
        nonlocal asked
        asked += 1
        if starts < asked < starts + 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    async def main() -> None:
        # Each look gets a thread of its own, which is what a pool that is in use does.
        executor = Busy()
        asyncio.get_running_loop().set_default_executor(executor)
        async with watching(file) as seen:
            becomes(file, "new")
            await until(lambda: seen.watched.value == "new")
            becomes(file, "newer")
            await until(lambda: seen.watched.value == "newer")
            await until(lambda: seen.outdated == 0)
            assert seen.values == ["new", "newer"]
            assert seen.reloads("ok") == 2

    monkeypatch.setattr(threading.Thread, "start", scarce)
    asyncio.run(main())
    assert caplog.messages == ["keys: cannot be looked at"]  # once, until it can


class Busy(ThreadPoolExecutor):
    """A pool in which no thread idles."""

    def submit(self, *work: Any, **more: Any) -> Any:
        self._idle_semaphore = threading.Semaphore(0)
        return super().submit(*work, **more)


def test_while_it_cannot_be_looked_at_it_may_be_outdated(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a loop of its own: on the tests' other gateways watch, and would say the same."""
    real = asyncio.to_thread

    async def none(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        async with watching(file) as seen:
            for times in (1, 2):
                monkeypatch.setattr(asyncio, "to_thread", none)
                await until(lambda: seen.outdated == 1)
                await asyncio.sleep(0.1)
                assert caplog.messages == ["keys: cannot be looked at"] * times
                monkeypatch.setattr(asyncio, "to_thread", real)
                await until(lambda: seen.outdated == 0)
            assert seen.values == []
            assert seen.reloads("failed") == 0

    asyncio.run(main())


async def test_what_nobody_foresaw_leaves_the_value_as_it_was(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(file) as seen:
        becomes(file, "odd")
        await until(lambda: seen.reloads("failed") == 1)
        assert (seen.watched.value, seen.outdated) == ("old", 1)
        await asyncio.sleep(0.2)
        assert seen.reloads("failed") == 1
        assert caplog.messages == ["keys: the file is not taken up"]
        assert caplog.records[0].exc_info
        becomes(file, "new")
        await until(lambda: seen.values == ["new"])
        assert seen.outdated == 0


async def test_what_was_refused_once_is_tried_once_more(file: Path) -> None:
    """`make` may read the files itself, while they are being copied over by the same."""
    made = 0

    def reads_again(contents: Contents) -> str:
        nonlocal made
        made += contents == b"new"
        if made == 1:
            raise Unusable(["is empty"])
        return read(contents)

    async with watching(file, reads_again) as seen:
        becomes(file, "new")
        await until(lambda: seen.values == ["new"])
        assert (seen.reloads("ok"), seen.reloads("failed")) == (1, 0)


async def test_it_is_outdated_for_each_reason_and_no_longer(file: Path) -> None:
    async with watching(file) as seen:
        becomes(file, "new")
        await until(lambda: seen.values == ["new"])
        seen.watched.late(True)  # as where servers are still to take it
        assert seen.outdated == 1
        await asyncio.sleep(0.1)
        assert seen.outdated == 1
        becomes(file, "unusable")
        await until(lambda: seen.reloads("failed") == 1)
        seen.watched.late(False)
        assert seen.outdated == 1
        becomes(file, "newer")
        await until(lambda: seen.values == ["new", "newer"])
        assert seen.outdated == 0
