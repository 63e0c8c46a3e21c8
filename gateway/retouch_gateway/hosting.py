"""Images by URL: put, signed path, expiry, sweep.

The path carries all that is needed to judge it: an id, the second it expires, and a MAC over both
and the file's extension. So any replica with the key and the folder answers any URL, before and
after a restart. The file's name carries the same second, so a sweep needs no index.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import os
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response

from retouch_gateway.errors import Gone, NotFound
from retouch_gateway.metrics import Metrics

log = logging.getLogger(__name__)

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
PREFIX = "/images/"

_ID, _EXPIRY, _MAC = 16, 5, 24  # bytes: 45 in all, which base64 writes without padding
_TOKEN = re.compile(r"([A-Za-z0-9_-]{60})\.(png|jpg|webp)")
# Ours alone, a half-written one included; whatever else is in the folder is never touched.
_FILE = re.compile(r"(?:[0-9a-f]{32}|\.part-[0-9a-f]{32})-([0-9]{10,13})\.(?:png|jpg|webp)")
KEY_FILE = ".signing-key"


@dataclass(frozen=True, slots=True)
class Hosted:
    """A stored image."""

    # From the server's root, signed.
    path: str
    # Unix seconds.
    expires_at: int


class Store:
    """A folder of images that expire.

    `keys`: the first signs, all verify, so a key is rotated by putting the new one in front.
    """

    def __init__(self, folder: Path, ttl: int, keys: Sequence[bytes], metrics: Metrics) -> None:
        self.folder = folder
        self.ttl = ttl
        self.keys = keys
        self.metrics = metrics

    async def put(self, data: bytes, extension: str) -> Hosted | None:
        """Store one image for `ttl` seconds. None if the store fails: logged and counted."""
        image_id, expires_at = secrets.token_bytes(_ID), math.ceil(time.time() + self.ttl)
        name = f"{image_id.hex()}-{expires_at}.{extension}"
        try:
            await asyncio.to_thread(self._write, name, data)
        except OSError as error:
            log.warning("store: %s", error.strerror)
            self.metrics.store_failures.inc()
            return None
        self.metrics.stored_images.inc()
        self.metrics.stored_bytes.inc(len(data))
        claim = image_id + expires_at.to_bytes(_EXPIRY, "big")
        token = urlsafe_b64encode(claim + _mac(self.keys[0], claim, extension)).decode()
        return Hosted(f"{PREFIX}{token}.{extension}", expires_at)

    async def serve(self, name: str) -> Response:
        """The image behind a hosted path's last part. Raises Gone once expired, or NotFound."""
        try:
            response = await self._open(name)
        except (Gone, NotFound) as error:
            self.metrics.served_images.labels(
                "expired" if isinstance(error, Gone) else "unknown"
            ).inc()
            raise
        self.metrics.served_images.labels("ok").inc()
        return response

    async def _open(self, name: str) -> Response:
        image_id, expires_at, extension = self._verify(name)
        left = expires_at - time.time()
        if left <= 0:
            raise Gone
        path = self.folder / f"{image_id}-{expires_at}.{extension}"
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise NotFound from None
        headers = {
            "cache-control": f"private, max-age={int(left)}",
            "x-content-type-options": "nosniff",
            "access-control-allow-origin": "*",
            "content-disposition": f'inline; filename="edit.{extension}"',
        }
        return Response(data, headers=headers, media_type=MEDIA_TYPES[extension])

    def _verify(self, name: str) -> tuple[str, int, str]:
        found = _TOKEN.fullmatch(name)
        if not found:
            raise NotFound
        token, extension = urlsafe_b64decode(found[1]), found[2]
        claim, mac = token[:-_MAC], token[-_MAC:]
        # All keys are tried, whichever fits: the time taken says nothing.
        fits = [hmac.compare_digest(mac, _mac(key, claim, extension)) for key in self.keys]
        if not any(fits):
            raise NotFound
        return claim[:_ID].hex(), int.from_bytes(claim[_ID:], "big"), extension

    def _write(self, name: str, data: bytes) -> None:
        part = self.folder / f".part-{name}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_private(part, data)
            part.rename(self.folder / name)  # whole or not at all
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    async def sweep_forever(self) -> None:
        """Delete what has expired: now, then four times a lifetime, at least once a minute."""
        while True:
            try:
                swept = await asyncio.to_thread(self.sweep)
                self.metrics.swept_images.inc(swept)
            except OSError as error:
                log.warning("sweep: %s", error.strerror)
            await asyncio.sleep(min(self.ttl / 4, 60))

    def sweep(self) -> int:
        """Delete expired images; how many there were. Blocks on the disk."""
        swept = 0
        for path in list(self._expired(time.time())):
            with contextlib.suppress(FileNotFoundError):  # another replica's sweep was first
                path.unlink()
                swept += 1
        return swept

    def _expired(self, now: float) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                found = _FILE.fullmatch(entry.name)
                if found and int(found[1]) <= now and entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def _mac(key: bytes, claim: bytes, extension: str) -> bytes:
    return hmac.digest(key, claim + extension.encode(), "sha256")[:_MAC]


def _write_private(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)


def kept_key(folder: Path) -> bytes:
    """The random key kept in `folder` for its owner's eyes, made if there is none yet.

    Raises OSError if it can be neither read nor made, or is too short to have been made here.
    """
    path = folder / KEY_FILE
    if not path.exists():
        _make_key(path)
    key = path.read_bytes()
    if len(key) < 32:
        raise OSError(f"{path} is too short for a key")
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{KEY_FILE}-{secrets.token_hex(8)}")
    try:
        _write_private(part, secrets.token_hex(32).encode())
        with contextlib.suppress(FileExistsError):  # another replica made one just now
            path.hardlink_to(part)
    finally:
        part.unlink(missing_ok=True)
