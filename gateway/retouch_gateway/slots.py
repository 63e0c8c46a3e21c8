"""Edits at once: each holds a slot of its caller's, by a token that nobody else has.

To free a slot is to strike out its token. That can be done twice, and where nobody knows whether it
was taken at all. And slots expire: a gateway that dies gives back what it held once its edits would
be over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

# Tokens by when they expire, in milliseconds. It goes by Redis's clock: gateways' may differ.
# A token that is there already is in: the client may have sent this twice.
TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1])
        and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
    return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""


class Slots(Protocol):
    """Who holds which. Each method may raise what its store does."""

    async def take(self, who: str, token: str, most: int) -> bool:
        """A slot for `token`, unless `who` holds `most` others."""

    async def free(self, who: str, token: str) -> None:
        """Give it back; one that is not held is none to give."""


class SlotsHere:
    """Held in this process. `seconds`: until one expires."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.held: dict[str, dict[str, float]] = {}  # who: token: until when

    async def take(self, who: str, token: str, most: int) -> bool:
        """As Slots."""
        now = time.monotonic()
        held = {each: until for each, until in self.held.get(who, {}).items() if until > now}
        self.held[who] = held
        if token not in held and len(held) >= most:
            return False
        held[token] = now + self.seconds
        return True

    async def free(self, who: str, token: str) -> None:
        """As Slots."""
        held = self.held.get(who, {})
        held.pop(token, None)
        if not held:
            self.held.pop(who, None)


class SlotsInRedis:
    """Held in Redis, in `prefix` and the caller's name; to take one is one round trip, as is to free it."""

    def __init__(self, pool: ConnectionPool, prefix: str, seconds: int) -> None:
        from redis.asyncio import Redis  # an extra

        self.prefix = prefix
        self.seconds = seconds
        self._redis = Redis(connection_pool=pool)
        self._take = self._redis.register_script(TAKE)

    async def take(self, who: str, token: str, most: int) -> bool:
        """As Slots."""
        return bool(await self._take([self._name(who)], [token, most, self.seconds * 1000]))

    async def free(self, who: str, token: str) -> None:
        """As Slots."""
        await self._redis.zrem(self._name(who), token)

    def _name(self, who: str) -> str:
        return f"{self.prefix}:{who}/slots"
