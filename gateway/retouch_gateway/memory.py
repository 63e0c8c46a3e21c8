"""What glibc's allocator does with the megabytes that come and go.

By itself it maps each large block afresh, which the kernel must clear (7 ms of an edit's 14), or keeps what is freed in
per-thread heaps for ever. So: few heaps, whose blocks are used again, and what is free goes back once nothing is under
way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes

from retouch_gateway.intake import Intake

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
LOOK_SECONDS = 1.0

_libc = ctypes.CDLL(None)


def configure() -> None:
    """To be called before there are threads. Without glibc it does nothing."""
    if not hasattr(_libc, "mallopt"):
        return
    _libc.mallopt(_ARENA_MAX, 2)
    # Both, for one alone ends glibc's own adjusting of the other.
    _libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    _libc.mallopt(_TRIM_THRESHOLD, 256 * 2**20)


async def give_back_forever(intake: Intake) -> None:
    """Hand free memory back whenever bodies have come and gone: under load, it took up to 100 ms."""
    given = 0
    while hasattr(_libc, "malloc_trim"):
        await asyncio.sleep(LOOK_SECONDS)
        taken = intake.taken
        if taken != given and not intake.held:
            with contextlib.suppress(RuntimeError):  # no thread: at the next look, then
                await asyncio.to_thread(_libc.malloc_trim, 0)
                given = taken
