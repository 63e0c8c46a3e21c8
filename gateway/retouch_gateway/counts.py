"""The counting behind limits: who has done how much, in one storage of the `limits` library.

Edits per time go by its moving window, one time stamp for each edit let in: exact at every moment,
and it knows when the next is free, which a fixed window and a sliding counter do not. Edits at once
are slots that expire: a gateway that dies gives back what it held once its edits would be over.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from limits import RateLimitItem
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter


@dataclass(frozen=True, slots=True)
class Quota:
    """Who may do how much; no rates or no concurrency: as much as they like of that."""

    who: str
    rates: Sequence[RateLimitItem]
    concurrency: int | None

    @property
    def kind(self) -> str:
        """In words: key or address."""
        return self.who.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Slot:
    """One of a caller's edits at once, taken until it is freed or until `until` (monotonic)."""

    counts: Counts
    name: str
    until: float


@dataclass(frozen=True, slots=True)
class Window:
    """How one rate stands: `seconds` until one more than `remaining` is free."""

    rate: RateLimitItem
    remaining: int
    seconds: float

    @property
    def headers(self) -> dict[str, str]:
        """As OpenAI names them."""
        return {
            "x-ratelimit-limit-requests": str(self.rate.amount),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": duration(self.seconds),
        }


class Counts:
    """The counts in one storage. Each method may raise what the storage does."""

    def __init__(self, storage: Storage, lease_seconds: int) -> None:
        self.storage = storage
        self.lease_seconds = lease_seconds
        self._limiter = MovingWindowRateLimiter(storage)

    async def occupy(self, who: str, most: int) -> Slot | None:
        """A free slot of `most`, or None if all are taken."""
        first = secrets.randbelow(most)  # likely a free one, while few are taken
        for i in range(most):
            name = f"{who}/slot/{(first + i) % most}"
            until = time.monotonic() + self.lease_seconds
            if await self.storage.incr(name, self.lease_seconds) == 1:
                return Slot(self, name, until)
        return None

    async def free(self, slot: Slot) -> None:
        """Give a slot back; one that has expired may be another's by now."""
        if time.monotonic() < slot.until:
            await self.storage.clear(slot.name)

    async def hit(self, quota: Quota) -> bool:
        """Count one edit in each rate, or, where one of them is used up, in none."""
        for rate in quota.rates[1:]:  # the first one's hit tells by itself
            if not await self._limiter.test(rate, quota.who):
                return False
        for rate in quota.rates:
            if not await self._limiter.hit(rate, quota.who):
                return False
        return True

    async def tightest(self, quota: Quota) -> Window | None:
        """The rate with the least remaining; of several such, the one that takes longest."""
        windows = [await self._window(rate, quota.who) for rate in quota.rates]
        return min(windows, key=lambda each: (each.remaining, -each.seconds), default=None)

    async def _window(self, rate: RateLimitItem, who: str) -> Window:
        reset, remaining = await self._limiter.get_window_stats(rate, who)
        seconds = reset - time.time() if remaining < rate.amount else 0
        return Window(rate, remaining, max(seconds, 0))


def duration(seconds: float) -> str:
    """Whole seconds, rounded up, as OpenAI's headers have them: `0s`, `12s`, `6m0s`, `24h0m0s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
