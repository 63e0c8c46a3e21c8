"""What is decoded at once, before the queue is asked."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch_server.admission import Decoding
from tests.server.test_admission import come_to


@dataclass
class Under:
    """What is being decoded: the pixels of each, what they came to at most, and in which order it began."""

    pixels: list[int] = field(default_factory=list)
    most: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    gate: threading.Event = field(default_factory=threading.Event)

    def work(self, name: int, pixels: int) -> int:
        with self.lock:
            self.order.append(name)
            self.pixels.append(pixels)
            self.most = max(self.most, list(self.pixels), key=sum)
        self.gate.wait(20)
        with self.lock:
            self.pixels.remove(pixels)
        return name


@given(st.lists(st.tuples(st.integers(0, 150), st.booleans()), min_size=1, max_size=12))
def test_what_is_decoded_together_has_at_most_so_many_pixels(jobs: list[tuple[int, bool]]) -> None:
    """Whoever leaves. All else is done; what is larger than all that may be goes alone."""

    async def check() -> None:
        under = Under()
        under.gate.set()
        with ThreadPoolExecutor(4) as pool:
            decoding = Decoding(pool, 100)
            tasks = [
                asyncio.ensure_future(decoding.run(pixels, under.work, name, pixels))
                for name, (pixels, _) in enumerate(jobs)
            ]
            await asyncio.sleep(0)
            for task, (_, leaves) in zip(tasks, jobs, strict=True):
                if leaves:
                    task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            await come_to(lambda: decoding.free == decoding.pixels)
        assert sum(under.most) <= 100 or len([each for each in under.most if each]) == 1
        for name, (answer, (_, leaves)) in enumerate(zip(done, jobs, strict=True)):
            assert isinstance(answer, asyncio.CancelledError) if leaves else answer == name

    asyncio.run(check())


async def test_who_leaves_before_its_turn_is_never_decoded() -> None:
    """Neither where pixels are waited for nor where a thread is; and a thread that is at it keeps what it holds."""
    under = Under()
    with ThreadPoolExecutor(1) as pool:
        decoding = Decoding(pool, 100)
        begun, for_a_thread, for_room, last = (
            asyncio.ensure_future(decoding.run(pixels, under.work, name, pixels))
            for name, pixels in enumerate((40, 60, 1, 100))
        )
        await come_to(lambda: bool(under.order))
        for task in (for_a_thread, for_room, begun):
            task.cancel()
        await asyncio.gather(for_a_thread, for_room, begun, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert decoding.free == 60
        assert under.order == [0]
        under.gate.set()
        assert await last == 3
        assert under.order == [0, 3]
        assert sum(under.most) == 100


async def test_small_ones_do_not_wait_for_all_the_large_ones() -> None:
    under = Under()
    under.gate.set()
    with ThreadPoolExecutor(4) as pool:
        decoding = Decoding(pool, 100)
        large = [decoding.run(100, under.work, name, 100) for name in range(8)]
        small = [decoding.run(1, under.work, name, 1) for name in (8, 9)]
        await asyncio.gather(*large, *small)
    assert under.order[0] == 0
    assert set(under.order[1:3]) == {8, 9}
    assert under.order[3:] == [1, 2, 3, 4, 5, 6, 7]


async def test_whoever_waits_longest_is_passed_over_so_many_times() -> None:
    under = Under()
    with ThreadPoolExecutor(1) as pool:
        decoding = Decoding(pool, 100)
        sizes = (1, 100, *[1] * (decoding.PASSED + 5))
        tasks = [decoding.run(size, under.work, name, size) for name, size in enumerate(sizes)]
        done = asyncio.gather(*tasks)
        await come_to(lambda: bool(under.order))
        under.gate.set()
        await done
    assert under.order.index(1) == 1 + decoding.PASSED


async def test_what_no_thread_can_be_had_for_holds_nothing() -> None:
    """As where the number of a pod's processes is bounded."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    decoding = Decoding(pool, 100)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await decoding.run(100, print)
    assert decoding.free == 100


async def test_an_error_of_the_work_is_its_callers_and_gives_back_what_it_held() -> None:
    def broken() -> None:
        raise MemoryError

    with ThreadPoolExecutor(1) as pool:
        decoding = Decoding(pool, 100)
        for _ in range(3):
            with pytest.raises(MemoryError):
                await decoding.run(100, broken)
