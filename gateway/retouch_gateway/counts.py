"""The counting behind limits: who has done how much, in one place.

Edits per time go by the moving window of the `limits` library, one time stamp for each edit let in:
exact at every moment, and it knows when the next is free, which a fixed window and a sliding counter
do not. Edits at once hold slots.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import MovingWindowRateLimiter

from retouch_gateway.slots import Slots

SWEEP_SECONDS = 60.0
BACK_SECONDS = 5.0  # more than a clock is set back by while it is right


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
    """One of the edits at once of `who`: to be taken, held, or to be freed."""

    counts: Counts
    who: str
    token: str = field(default_factory=partial(secrets.token_hex, 8))


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


class Memory(MemoryStorage):
    """The library's, but for its sweep, which goes through all it knows with a thread's turn for each.

    That starts once in SWEEP_SECONDS at most, not at every edit. And what was counted is forgotten when the clock goes
    back: it would count until the clock is there again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next_sweep = 0.0
        self._latest = time.time()

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """As the library's."""
        now = time.time()
        if now < self._latest - BACK_SECONDS:
            await self.reset()
        self._latest = now
        return await super().acquire_entry(key, limit, expiry, amount)

    async def _MemoryStorage__schedule_expiry(self) -> None:
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            await super()._MemoryStorage__schedule_expiry()  # type: ignore[misc]


class Counts:
    """The counts in one place. Each method may raise what the storage does."""

    def __init__(self, storage: Storage, slots: Slots) -> None:
        self.storage = storage
        self.slots = slots
        self._limiter = MovingWindowRateLimiter(storage)

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
