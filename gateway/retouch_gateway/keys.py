"""API keys: a TOML file of their hashes, and which of them a request bears.

    [[keys]]
    id = "ada"                  # in logs and counts
    hash = "sha256:2c26b4…"     # 64 hexadecimal digits
    rate_limit = "60/minute"    # these two are optional: else the gateway's own apply
    concurrency = 4
    expires = 2027-03-01        # optional too: a date, at 0:00 UTC, or a time with its offset

`retouch key new` makes a key and its entry. A key is 256 random bits, which nobody finds by trying:
there is nothing that a salt or a slow hash would slow down, so a plain SHA-256 is right.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import limits
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers

from retouch_gateway.errors import KeyExpired, Unauthorized
from retouch_gateway.metrics import Metrics
from retouch_gateway.watched import Contents, Unusable, Watched, contents

log = logging.getLogger(__name__)

MAX_CONCURRENCY = 1000

_RATE = r"[1-9][0-9]{0,5}/(second|minute|hour|day)"
_RATES = re.compile(rf"{_RATE}(; ?{_RATE})*")


class KeysError(Unusable):
    """Every mistake in a file of keys, one line each."""


def rates(text: object) -> tuple[limits.RateLimitItem, ...]:
    """`60/minute`, or several as `10/second;1000/day`; each of 1 to 999999. Raises ValueError."""
    if not isinstance(text, str) or not _RATES.fullmatch(text):
        raise ValueError("must be such as 60/minute, or 10/second;1000/day")
    return tuple(limits.parse_many(text))


def moment(value: object) -> datetime:
    """In UTC: a TOML date, at 0:00, or a date-time with its offset. Raises ValueError."""
    if type(value) is date:
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("must be such as 2027-03-01, or 2027-03-01T12:00:00Z")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be of the years 1 to 9999 in UTC") from None


class Key(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", frozen=True, strict=True
    )

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", repr=False)
    # Empty, None: the gateway's own.
    rate_limit: Annotated[tuple[limits.RateLimitItem, ...], BeforeValidator(rates)] = ()
    concurrency: int | None = Field(None, ge=1, le=MAX_CONCURRENCY)
    # From then on it opens nothing; None: never.
    expires: Annotated[datetime | None, BeforeValidator(moment)] = None

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires.timestamp() <= time.time()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...] = ()


# Whoever calls a gateway without keys. No entry of a file can have this id.
ANONYMOUS = Key.model_construct(id="", hash="")


def read(path: Path) -> tuple[Key, ...]:
    """The file's keys: none is possible, and then nobody may enter. Raises KeysError."""
    return _parse(contents(path))


class Keys:
    """The keys in force. Without a `path` nobody needs one, and whatever is sent is ignored.

    Raises KeysError where the file has a mistake.
    """

    def __init__(self, path: Path | None, metrics: Metrics) -> None:
        self.path = path
        self.metrics = metrics
        self._watched = Watched("keys", [path] if path else [], _parse, metrics)
        metrics.key_next_expiry.set_function(self._next_expiry)

    def find(self, headers: Headers) -> Key:
        """The key of a request. Raises Unauthorized, the same for none as for one unknown; KeyExpired.

        `x-api-key: KEY` counts where it is given, else `Authorization: Bearer KEY`: OpenAI's SDKs
        always send that, if need be with a made-up key.
        """
        if self.path is None:
            return ANONYMOUS
        secret = headers.get("x-api-key", "").strip() or _bearer(headers.get("authorization", ""))
        hashed = "sha256:" + hashlib.sha256(secret.encode("latin-1")).hexdigest()
        # All are compared, whichever fits: the time taken says nothing.
        fits = [key for key in self._keys if hmac.compare_digest(key.hash, hashed)]
        if not secret or not fits:
            raise Unauthorized
        key = fits[0]
        if key.expires and key.expired:
            self.metrics.expired_keys.inc()
            raise KeyExpired(key.id, key.expires)
        return key

    @property
    def _keys(self) -> tuple[Key, ...]:
        return self._watched.value

    async def watch_forever(self) -> None:
        """Take up what becomes of the file."""
        async for keys in self._watched.changes():
            expired = sum(key.expired for key in keys)
            also = f", {expired} expired" if expired else ""
            log.info("keys: %d in force%s", len(keys) - expired, also)

    def _next_expiry(self) -> float:
        ahead = (key.expires.timestamp() for key in self._keys if key.expires and not key.expired)
        return min(ahead, default=math.inf)


def _bearer(authorization: str) -> str:
    scheme, _, credentials = authorization.strip().partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


def _parse(*files: Contents) -> tuple[Key, ...]:
    """Of the one file, where there is one."""
    if not files:
        return ()
    (found,) = files
    if isinstance(found, str):
        raise KeysError([found])
    try:
        raw = tomllib.loads(found.decode())
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8 too
        raise KeysError([f"is not TOML: {error}"]) from None
    repeated = [line for name in ("id", "hash") for line in _repeated(raw.get("keys"), name)]
    try:
        keys = _File.model_validate(raw).keys
    except ValidationError as error:
        raise KeysError([*map(_line, error.errors()), *repeated]) from None
    if repeated:
        raise KeysError(repeated)
    return keys


def _repeated(entries: object, name: str) -> Iterator[str]:
    first: dict[str, int] = {}
    for i, entry in enumerate(entries if isinstance(entries, list) else ()):
        value = entry.get(name) if isinstance(entry, dict) else None
        if isinstance(value, str) and first.setdefault(value, i) != i:
            yield f"keys[{i}].{name}: is that of keys[{first[value]}] too"


def _line(mistake: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"])
    return f"{where.lstrip('.')}: {mistake['msg'].removeprefix('Value error, ')}"
