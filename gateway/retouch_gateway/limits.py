"""How much a caller may do: edits per time, and edits at once.

Counted in this process, or in Redis for several gateways. While Redis is away, counting goes on
here, so that no caller is refused for it and none goes unlimited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from functools import partial
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, TypeVar

from limits.aio.storage import RedisStorage

from retouch_gateway.counts import Counts, Memory, Quota, Slot, Window, duration
from retouch_gateway.errors import ONCE, OverLimit
from retouch_gateway.keys import Key, rates
from retouch_gateway.metrics import Metrics
from retouch_gateway.slots import SlotsHere, SlotsInRedis

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

log = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY = "memory://"
# Of all names in Redis. They hold keys' ids and callers' addresses as they are.
PREFIX = "retouch"
# What a Redis that hangs costs, once; after that it is asked again, and nobody waits for it.
REDIS_SECONDS, RECOVER_SECONDS = 0.5, 1.0
# At once in Redis, so that a crowd at the door is not taken for a Redis that hangs.
REDIS_AT_ONCE = 32
# Retry-After: no SDK waits longer than a minute, and an edit takes some seconds.
MAX_WAIT, SLOT_WAIT = 60, 5


class Lease:
    """Leave for one edit. `headers` are for its answer; release it once the edit is over."""

    def __init__(
        self, headers: Mapping[str, str], free: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.headers = dict(headers)
        self._free = free

    async def release(self) -> None:
        """Make room for the caller's next edit, once, even if this is cancelled."""
        free, self._free = self._free, None
        if free:
            await free()


class _Away(Exception):
    """Redis does not answer, or not as it should."""


class Limits:
    """Who may start an edit now.

    `store`: memory://, redis://… or rediss://… `rate_limit`, `concurrency`: for keys that have none
    of their own and, where nobody needs a key, for each address. `lease_seconds`: longer than any
    edit; after it an edit no longer counts as under way.
    """

    def __init__(
        self,
        store: str,
        rate_limit: str | None,
        concurrency: int | None,
        lease_seconds: float,
        metrics: Metrics,
    ) -> None:
        self.rates = rates(rate_limit) if rate_limit else ()
        self.concurrency = concurrency
        self.metrics = metrics
        seconds = math.ceil(lease_seconds)
        self._here = Counts(Memory(), SlotsHere(seconds))
        self._pool = None if store == MEMORY else _pool(store)
        self._redis = (
            Counts(_storage(store, self._pool), SlotsInRedis(self._pool, PREFIX, seconds))
            if self._pool
            else None
        )
        self._at_once = asyncio.Semaphore(REDIS_AT_ONCE)
        self._recovering: asyncio.Task[None] | None = None
        metrics.limits_degraded.set_function(lambda: self._recovering is not None)
        self._owed: list[Slot] = []  # to be freed once Redis is back
        self._tasks: set[asyncio.Task[Any]] = set()

    async def take(self, key: Key, client: str) -> Lease:
        """Leave for one edit of `key`, or, where nobody needs a key, of the address `client`.

        Raises OverLimit, whose headers say when to try again. What is refused does not count; what
        was let in does, whatever comes of it.
        """
        concurrency = self.concurrency if key.concurrency is None else key.concurrency
        quota = Quota(_who(key, client), key.rate_limit or self.rates, concurrency)
        if not quota.rates and not quota.concurrency:
            return Lease({})
        taking = self._spawn(self._take(quota))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._give_back)
            raise

    async def close(self) -> None:
        """Finish what is being given back, and leave Redis."""
        if self._recovering:
            self._recovering.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._pool:
            await self._pool.aclose()

    async def _take(self, quota: Quota) -> Lease:
        if self._redis:
            with contextlib.suppress(_Away):
                async with self._reaching(self._redis):
                    return await self._take_of(self._redis, quota)
        return await self._take_of(self._here, quota)

    async def _take_of(self, counts: Counts, quota: Quota) -> Lease:
        slot = None
        try:
            if quota.concurrency:
                slot = Slot(counts, quota.who)  # from here on it may be taken
                if not await counts.slots.take(slot.who, slot.token, quota.concurrency):
                    slot = None
                    raise self._full(quota, await counts.tightest(quota))
            allowed = await counts.hit(quota)
            window = await counts.tightest(quota)
            if window and not allowed:
                raise self._spent(quota, window)
        except BaseException:
            if slot:
                self._spawn(self._free(slot))
            raise
        return Lease(window.headers if window else {}, partial(self._release, slot))

    def _full(self, quota: Quota, window: Window | None) -> OverLimit:
        self.metrics.limited.labels("concurrency").inc()
        headers = window.headers if window else {}
        return OverLimit(
            f"This {quota.kind} may have {quota.concurrency} edits under way, and has; "
            "try again when one is done.",
            headers={**headers, "retry-after": str(SLOT_WAIT)},
        )

    def _spent(self, quota: Quota, window: Window) -> OverLimit:
        self.metrics.limited.labels("rate").inc()
        wait = max(1, math.ceil(window.seconds))
        headers = {**window.headers, "retry-after": str(min(wait, MAX_WAIT))}
        if wait > MAX_WAIT:
            headers |= ONCE  # it would be in vain
        return OverLimit(
            f"This {quota.kind} has used up its {window.rate.amount} edits per "
            f"{window.rate.GRANULARITY.name}; the next is free in {duration(wait)}.",
            headers=headers,
        )

    def _give_back(self, taking: asyncio.Task[Lease]) -> None:
        """What was taken for a caller who no longer waits for it."""
        if not taking.cancelled() and not taking.exception():
            self._spawn(taking.result().release())

    async def _release(self, slot: Slot | None) -> None:
        if slot:
            await asyncio.shield(self._spawn(self._free(slot)))

    async def _free(self, slot: Slot) -> None:
        try:
            async with self._reaching(slot.counts):
                await slot.counts.slots.free(slot.who, slot.token)
        except _Away:
            self._owed.append(slot)

    @contextlib.asynccontextmanager
    async def _reaching(self, counts: Counts) -> AsyncIterator[None]:
        """Whatever Redis fails at in here is _Away; so is everything, at once, until it is back."""
        if counts is self._here:
            yield
            return
        async with self._at_once:
            if self._recovering:
                raise _Away
            try:
                async with asyncio.timeout(REDIS_SECONDS):
                    yield
            except OverLimit:
                raise
            except Exception as error:  # the library's, the loop's, or a parser's
                self._lost(counts, error)
                raise _Away from None

    def _lost(self, counts: Counts, error: Exception) -> None:
        if not self._recovering:  # else others said so
            log.warning("limits: counting in this process alone: %s", _why(error))
            self.metrics.limits_outages.inc()
            self._recovering = self._spawn(self._recover(counts))

    async def _recover(self, counts: Counts) -> None:
        while self._recovering:
            await asyncio.sleep(RECOVER_SECONDS)
            try:
                async with asyncio.timeout(REDIS_SECONDS):
                    await self._settle(counts)
            except Exception as error:  # whatever it is: nobody else would ask again
                log.debug("limits: still counting in this process alone: %s", _why(error))
            else:
                log.info("limits: counting in Redis again")
                self._recovering = None

    async def _settle(self, counts: Counts) -> None:
        """Free what could not be; before that any write, since a Redis that is full still reads."""
        await counts.storage.incr("probe", 1)
        while self._owed:
            slot = self._owed[0]
            await counts.slots.free(slot.who, slot.token)
            del self._owed[0]

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task


def _who(key: Key, client: str) -> str:
    """In names: `key/ada`, or the address, of IPv6 its /64: a household has that many by itself."""
    if key.id:
        return f"key/{key.id}"
    try:
        address = ip_address(client)
    except ValueError:  # a socket without addresses
        return f"address/{client}"
    if isinstance(address, IPv6Address):
        return f"address/{address.ipv4_mapped or IPv6Network((int(address), 64), strict=False)}"
    return f"address/{address}"


def check(store: str) -> None:
    """Raises ValueError unless `store` is memory://, or a Redis that could be asked. None is."""
    if store == MEMORY:
        return
    try:
        pool = _pool(store)
        _storage(store, pool)
        # It knows which options there are.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except Exception:  # of each library its own; and they cite what may be the password
        raise ValueError("must be memory://, or redis:// or rediss:// and host:port") from None


def _pool(url: str) -> ConnectionPool:
    from redis.asyncio import ConnectionPool  # an extra
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as Lost

    # A connection that was closed while it idled is no Redis that is away: what fails is sent once more, by a new one.
    # Where only the answer was lost, a slot is taken or freed no second time, but an edit counts twice in its rates.
    # RuntimeError is uvloop's word for a connection that was reset.
    lost: Any = (Lost, RuntimeError)
    return ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 1, lost))


def _storage(url: str, pool: ConnectionPool) -> RedisStorage:
    options: dict[str, Any] = {"connection_pool": pool}
    return RedisStorage(url, implementation="redispy", key_prefix=PREFIX, **options)


def _why(error: Exception) -> str:
    """Redis' words, or the system's; of an error that nobody foresaw its kind and place."""
    from redis.exceptions import RedisError

    if isinstance(error, RedisError | OSError):
        return str(error) or "no answer in time"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {place.filename}:{place.lineno}"
