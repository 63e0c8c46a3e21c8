"""`Idempotency-Key`: one edit for one key, however often it is sent.

The finished reply is kept in the store, so that any replica replays it. Before, the store holds a
claim, made there by whoever came first, that ends by itself in case that replica dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response

from retouch_gateway import stores
from retouch_gateway.errors import SOON, BadRequest, Conflict, KeyReused
from retouch_gateway.stores import Entry, Store

log = logging.getLogger(__name__)

HEADER, REPLAYED = "idempotency-key", "idempotent-replayed"
# How much longer than its request a claim lives: for clocks that differ.
MARGIN_SECONDS = 5.0

_KEY = re.compile(r"[ -~]{1,255}")
_DIGITS = 64
_NAME = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{32})?\.reply")


def key_of(headers: Headers) -> str | None:
    """The request's Idempotency-Key, None if it has none. Raises BadRequest."""
    given = headers.getlist(HEADER)
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise BadRequest("Idempotency-Key: must be one, of 1 to 255 printable ASCII characters")
    return given[0]


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer."""

    status: int
    headers: dict[str, str]
    body: bytes | memoryview

    def response(self) -> Response:
        """The same again, byte for byte, saying so in a header."""
        return Response(self.body, self.status, self.headers | {REPLAYED: "true"})


@dataclass(slots=True, eq=False)
class Claim:
    """What a request with a key has: the reply kept from before, else the right to make one."""

    digest: bytes
    # Unix seconds: when it was made, and from when on another may succeed it.
    made: float = field(default_factory=time.time)
    until: float = 0
    reply: Reply | None = None
    # Whether it is the store's record of its name.
    held: bool = False
    # What the store would hold, and by which name, where it failed to say whether it does.
    mine: bytes = b""
    unsure: str = ""
    # Set once no more comes of it, with or without a reply; then once the store knows, too.
    done: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def finish(self, status: int, headers: Mapping[str, str], body: bytes | memoryview) -> None:
        """This is the reply, kept from now on. Without it the claim is given up at its end."""
        self.reply = Reply(status, dict(headers), body)
        self.done.set()


class Idempotency:
    """The claims and replies of one store.

    `keys` name the records (the first does; what another named is found), so that what is kept does
    not tell the keys that callers sent. `ttl`: seconds that a reply is kept, counted from before
    its images were hosted: it never outlives their URLs. `timeout`: the most that a claim is asked
    for.
    """

    def __init__(self, store: Store, keys: Sequence[bytes], ttl: float, timeout: float) -> None:
        self.store = store
        self.keys = keys
        self.ttl = ttl
        self.timeout = timeout
        self._under_way: dict[tuple[str, str], Claim] = {}
        self._endings: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def claim(
        self, owner: str, key: str, digest: bytes, seconds: float
    ) -> AsyncIterator[Claim]:
        """The claim of `owner`'s `key` for the edit with that `digest`, for `seconds` at most.

        Waits for the same edit under way in this process. Raises KeyReused where the key belongs
        to another edit; Conflict where the same is under way in another replica, or still is here
        after `seconds`. If the store fails the edit goes ahead, and is only known here.
        """
        if reply := await self._other((owner, key), digest, seconds):
            yield Claim(digest, reply=reply)
            return
        names = self._names(owner, key)
        claim = self._under_way[owner, key] = Claim(digest)
        taking = asyncio.ensure_future(self._take(names, claim, seconds))
        ending = asyncio.create_task(self._end((owner, key), names[0], claim, taking))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        try:
            await asyncio.shield(taking)
        except BaseException:  # whoever has left waits no longer for a store that does not answer
            claim.done.set()
            raise
        try:
            yield claim
        finally:
            claim.done.set()
            if not claim.unsure:  # else the store may hang once more, for which nobody need wait
                await asyncio.shield(ending)

    async def close(self) -> None:
        """Wait until the store knows how all claims ended, for as long as it may take to answer."""
        if self._endings:
            await asyncio.wait(self._endings, timeout=stores.SECONDS)

    def expired(self, entry: Entry) -> bool:
        """Whether it is a record that has had its time, for the sweep."""
        found = _NAME.fullmatch(entry.name)
        if not found:
            return False
        longest = self.timeout if found[1] else max(self.ttl, self.timeout)
        return entry.modified + longest + MARGIN_SECONDS < time.time()

    def _names(self, owner: str, key: str) -> list[str]:
        """The record's by each of the keys: it may have been made when another was the first."""
        said = f"idempotency {len(owner)} {owner} {key}".encode()
        return [f"{hmac.digest(each, said, 'sha256').hex()}.reply" for each in self.keys]

    async def _other(self, asked: tuple[str, str], digest: bytes, seconds: float) -> Reply | None:
        """The reply of the edit under way here, once it has one; None when there is none (left)."""
        try:
            async with asyncio.timeout(seconds):
                while other := self._under_way.get(asked):
                    given_up = other.done.is_set() and not other.reply
                    if other.digest != digest and not given_up:
                        raise KeyReused
                    await other.done.wait()
                    if other.reply:
                        return other.reply
                    await other.over.wait()
        except TimeoutError:
            raise _conflict() from None
        return None

    async def _take(self, names: Sequence[str], claim: Claim, seconds: float) -> None:
        """Put the claim into the store, by the first name; or take the reply that is there by any."""
        name, *others = names
        claim.until = time.time() + seconds + MARGIN_SECONDS
        mine = claim.mine = _Record(claim.digest, claim.until).packed()
        asked = ""
        try:
            for other in others:
                with contextlib.suppress(FileNotFoundError):
                    theirs = _Record.of(await self.store.get(other))
                    if theirs.until > time.time():
                        claim.reply = theirs.answer(claim.digest)
                        return
            asked = name
            kept = await self.store.create(asked, mine)
            if kept == mine:
                claim.held = True
                return
            theirs = _Record.of(kept)
            if theirs.until > time.time():
                claim.reply = theirs.answer(claim.digest)
                return
            # Of all who find it over, the one that makes this name succeeds it.
            asked = f"{name[:_DIGITS]}-{theirs.tag}.reply"
            if await self.store.create(asked, mine) != mine:
                raise _conflict()
            claim.held = True
            await self.store.put(name, mine)
        except FileNotFoundError:
            raise _conflict() from None  # another replica gave up just now
        except OSError as error:
            log.warning("idempotency: %s", error.strerror or error)
            claim.unsure = "" if claim.held else asked

    async def _end(
        self, asked: tuple[str, str], name: str, claim: Claim, taking: asyncio.Task[None]
    ) -> None:
        """Tell the store of the reply as soon as there is one, while it is sent; else of its end."""
        try:
            await asyncio.gather(taking, return_exceptions=True)  # the caller hears, if it is there
            await claim.done.wait()
            if claim.unsure:
                with contextlib.suppress(OSError):
                    claim.held = await self.store.get(claim.unsure) == claim.mine
            if claim.held and claim.reply:
                record = _Record(claim.digest, claim.made + self.ttl, claim.reply)
                packed = await asyncio.to_thread(record.packed)
                await self._tell(claim, partial(self.store.put, name, packed))
            elif claim.held:
                await self._tell(claim, partial(self.store.delete, name))
        finally:
            del self._under_way[asked]
            claim.over.set()

    async def _tell(self, claim: Claim, tell: Callable[[], Awaitable[object]]) -> None:
        """Twice if need be: until it is heard, all others are told of an edit under way."""
        for _ in range(2):
            if claim.until <= time.time():  # the record may be its successor's
                return
            try:
                await tell()
                return
            except OSError as error:
                log.warning("idempotency: %s", error.strerror or error)


@dataclass(frozen=True, slots=True)
class _Record:
    """What the store holds: a line of JSON, then the reply's body as it is."""

    digest: bytes
    # Unix seconds; from then on it is as good as absent.
    until: float
    reply: Reply | None = None
    # Of this record and no other that ever had its name.
    tag: str = ""

    def packed(self) -> bytes:
        head: dict[str, Any] = {"digest": self.digest.hex(), "until": self.until}
        head["nonce"] = secrets.token_hex(16)  # no two are the same
        if self.reply:
            head |= {"status": self.reply.status, "headers": self.reply.headers}
        return b"".join((orjson.dumps(head), b"\n", self.reply.body if self.reply else b""))

    @classmethod
    def of(cls, packed: bytes) -> _Record:
        """Unpacked; one that makes no sense is over."""
        end = max(packed.find(b"\n"), 0)
        tag = hashlib.sha256(packed[:end]).hexdigest()[:32]
        try:
            head = orjson.loads(packed[:end])
            reply = None
            if "status" in head:
                reply = Reply(head["status"], head["headers"], memoryview(packed)[end + 1 :])
            return cls(bytes.fromhex(head["digest"]), head["until"], reply, tag)
        except (ValueError, KeyError, TypeError):
            return cls(b"", 0, None, tag)

    def answer(self, digest: bytes) -> Reply:
        """The reply to the edit with that digest. Raises KeyReused, or Conflict if there is none."""
        if self.digest != digest:
            raise KeyReused
        if not self.reply:
            raise _conflict()
        return self.reply


def _conflict() -> Conflict:
    return Conflict(headers=SOON)
