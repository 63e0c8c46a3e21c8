"""Images by URL: put, signed path, expiry, delete, sweep.

The path carries all that is needed to judge it: an id, the second it expires, who made it, and a
MAC over these and the file's extension. So any replica with the keys and the store answers any URL,
before and after a restart. The name in the store has the same second, so a sweep needs no index.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from retouch_gateway import ranges, stores
from retouch_gateway.errors import (
    Forbidden,
    GatewayError,
    Gone,
    NotFound,
    NotTheSame,
    OutOfRange,
    Unavailable,
)
from retouch_gateway.metrics import Metrics
from retouch_gateway.stores import Entry, Store

log = logging.getLogger(__name__)

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
PREFIX = "/images/"

_ID, _EXPIRY, _OWNER, _MAC = 16, 5, 9, 24  # bytes: 54 in all, which base64 writes without padding
_TOKEN = re.compile(r"([A-Za-z0-9_-]{72})\.(png|jpg|webp)")
# Ours alone; whatever else is in the store is never touched.
_NAME = re.compile(r"[0-9a-f]{32}-([0-9]{10,13})\.(?:png|jpg|webp)")
_SWEPT_AT_ONCE = 1000
# More than a clock is corrected by while it is right, less than any lifetime worth the name.
JUMP_SECONDS = 5.0

_CORS = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "content-length, content-range, etag, x-request-id",
    "cross-origin-resource-policy": "cross-origin",
}
_PREFLIGHT = {
    **_CORS,
    "access-control-allow-methods": "GET, HEAD",
    "access-control-allow-headers": "if-match, if-none-match, if-range, range",
    "access-control-max-age": "86400",
}
_RESULTS: dict[type[GatewayError], str] = {
    Gone: "expired",
    NotFound: "unknown",
    NotTheSame: "ok",  # as is
    OutOfRange: "ok",  # the image is there
    Unavailable: "failed",
}
# A picture runs nothing, whatever its bytes and whoever opens it; browsers' viewers want their own styles.
_SAFE = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
}


@dataclass(frozen=True, slots=True)
class Hosted:
    """A stored image."""

    # From the server's root, signed.
    path: str
    # Unix seconds.
    expires_at: int


@dataclass(frozen=True, slots=True)
class _Image:
    """What a path that we signed says."""

    id: bytes
    expires_at: int
    extension: str
    # Whose it is, as only a signing key can tell.
    owner: bytes
    # The key that it was signed with.
    key: bytes

    @property
    def name(self) -> str:
        return f"{self.id.hex()}-{self.expires_at}.{self.extension}"

    @property
    def path(self) -> str:
        claim = self.id + self.expires_at.to_bytes(_EXPIRY, "big") + self.owner
        token = urlsafe_b64encode(claim + _mac(self.key, claim, self.extension))
        return f"{PREFIX}{token.decode()}.{self.extension}"

    @property
    def etag(self) -> str:
        return f'"{self.id.hex()}"'  # what an id names never changes

    @property
    def seconds_left(self) -> float:
        return self.expires_at - time.time()


class Hosting:
    """Images in a store, each for `ttl` seconds.

    `keys`: the first signs, all verify, so a key is rotated by putting the new one in front.
    """

    def __init__(self, store: Store, ttl: int, keys: Sequence[bytes], metrics: Metrics) -> None:
        self.store = store
        self.ttl = ttl
        self.keys = keys
        self.metrics = metrics

    async def put(
        self, data: bytes, extension: str, owner: str, seconds: float = stores.SECONDS
    ) -> Hosted | None:
        """Store one image of `owner`'s: an API key's id, "" where callers have none.

        None if the store fails, or takes longer than `seconds`: logged and counted.
        """
        key, image_id = self.keys[0], secrets.token_bytes(_ID)
        expires_at = math.ceil(time.time() + self.ttl)
        image = _Image(image_id, expires_at, extension, _owner(key, image_id, owner), key)
        try:
            async with asyncio.timeout(seconds):
                await self.store.put(image.name, data, MEDIA_TYPES[extension])
        except OSError as error:
            log.warning("store: %s", error.strerror or str(error) or "no answer in time")
            self.metrics.store_failures.inc()
            return None
        self.metrics.stored_images.inc()
        self.metrics.stored_bytes.inc(len(data))
        return Hosted(image.path, expires_at)

    async def serve(self, request: Request, name: str) -> Response:
        """GET, HEAD and OPTIONS of a hosted path's last part.

        Raises Gone once expired, NotFound, NotTheSame, OutOfRange; Unavailable when the store fails.
        """
        if request.method == "OPTIONS":  # for any name: whether there is one is not its business
            return Response(status_code=204, headers=_PREFLIGHT)
        try:
            response = await self._open(request, name)
        except GatewayError as error:
            self.metrics.served_images.labels(_RESULTS[type(error)]).inc()
            error.headers |= {**_CORS, "cache-control": "no-store"}
            raise
        self.metrics.served_images.labels("ok").inc()
        return response

    async def _open(self, request: Request, name: str) -> Response:
        image = self._verify(name)
        try:
            data = await self.store.get(image.name)
        except FileNotFoundError:
            raise NotFound from None
        except OSError as error:
            raise _failed(error) from None
        headers = {
            **_CORS,
            **_SAFE,
            "cache-control": f"private, max-age={max(0, int(image.seconds_left))}",
            "content-disposition": f'inline; filename="edit.{image.extension}"',
        }
        media_type = MEDIA_TYPES[image.extension]
        return ranges.answer(request.method, request.headers, data, media_type, image.etag, headers)

    async def delete(self, name: str, owner: str, asked: Headers) -> None:
        """Delete the image, for whoever has its URL and is who made it.

        Deleted twice is deleted. `asked`: If-Match counts. Raises Forbidden, and what `serve` does.
        """
        image = self._verify(name)
        if not hmac.compare_digest(image.owner, _owner(image.key, image.id, owner)):
            raise Forbidden("This image was made with another key.")
        if not ranges.meant(asked, image.etag):
            raise NotTheSame
        try:
            self.metrics.deleted_images.inc(await self.store.delete(image.name))
        except OSError as error:
            raise _failed(error) from None

    def _verify(self, name: str) -> _Image:
        found = _TOKEN.fullmatch(name)
        if not found:
            raise NotFound
        token, extension = urlsafe_b64decode(found[1]), found[2]
        claim, mac = token[:-_MAC], token[-_MAC:]
        # All keys are tried, whichever fits: the time taken says nothing.
        fits = [key for key in self.keys if hmac.compare_digest(mac, _mac(key, claim, extension))]
        if not fits:
            raise NotFound
        expires_at = int.from_bytes(claim[_ID:-_OWNER], "big")
        image = _Image(claim[:_ID], expires_at, extension, claim[-_OWNER:], fits[0])
        if image.seconds_left <= 0:
            raise Gone
        return image

    async def sweep_forever(self, *others: Callable[[Entry], bool]) -> None:
        """Delete what has expired: now, then four times a lifetime, at least once a minute.

        `others` say what else has, of what is kept beside the images. What a clock says that has just jumped is not
        believed before the next time: it may jump back.
        """
        offset = time.time() - time.monotonic()
        while True:
            before, offset = offset, time.time() - time.monotonic()
            try:
                if abs(offset - before) < JUMP_SECONDS:
                    await self.sweep(*others)
                else:
                    log.warning("sweep: the clock has jumped by %.0f s", offset - before)
            except OSError as error:
                log.warning("sweep: %s", error.strerror or error)
            except Exception:  # whatever it is, the next one may go well
                log.exception("sweep")
            await asyncio.sleep(min(self.ttl / 4, 60))

    async def sweep(self, *others: Callable[[Entry], bool]) -> None:
        """Delete what has expired, once: all of it that can be, then raises OSError."""
        entries = await self.store.entries()
        swept, failed = await self._delete_all([e.name for e in entries if _expired(e)])
        self.metrics.swept_images.inc(swept)
        rest = [e.name for e in entries if any(expired(e) for expired in others)]
        _, failed_too = await self._delete_all(rest)
        if error := failed or failed_too:
            raise error

    async def _delete_all(self, names: Sequence[str]) -> tuple[int, OSError | None]:
        """How many were there still, which another replica may have swept; and the first failure."""
        deleted, failed = 0, None
        for i in range(0, len(names), _SWEPT_AT_ONCE):
            try:
                deleted += await self.store.delete(*names[i : i + _SWEPT_AT_ONCE])
            except OSError as error:
                failed = failed or error
        return deleted, failed


def _expired(entry: Entry) -> bool:
    found = _NAME.fullmatch(entry.name)
    return found is not None and int(found[1]) <= time.time()


def _mac(key: bytes, claim: bytes, extension: str) -> bytes:
    return hmac.digest(key, claim + extension.encode(), "sha256")[:_MAC]


def _owner(key: bytes, image_id: bytes, owner: str) -> bytes:
    """Of one image: two images' URLs do not tell that one key made both."""
    return hmac.digest(key, b"owner" + image_id + owner.encode(), "sha256")[:_OWNER]


def _failed(error: OSError) -> Unavailable:
    log.warning("store: %s", error.strerror or error)
    return Unavailable("The image store failed; try again.")
