"""API keys: a TOML file of their hashes, and which of them a request bears.

    [[keys]]
    id = "ada"                  # in logs and counts
    hash = "sha256:2c26b4…"     # 64 hexadecimal digits
    rate_limit = "60/minute"    # these two are optional: else the gateway's own apply
    concurrency = 4

`retouch key new` makes a key and its entry. A key is 256 random bits, which nobody finds by trying:
there is nothing that a salt or a slow hash would slow down, so a plain SHA-256 is right.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import limits
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers

from retouch_gateway.errors import Unauthorized
from retouch_gateway.metrics import Metrics

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
MAX_CONCURRENCY = 1000

_RATE = r"[1-9][0-9]{0,5}/(second|minute|hour|day)"
_RATES = re.compile(rf"{_RATE}(; ?{_RATE})*")


class KeysError(Exception):
    """Every mistake in a file of keys, one line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


def rates(text: object) -> tuple[limits.RateLimitItem, ...]:
    """`60/minute`, or several as `10/second;1000/day`; each of 1 to 999999. Raises ValueError."""
    if not isinstance(text, str) or not _RATES.fullmatch(text):
        raise ValueError("must be such as 60/minute, or 10/second;1000/day")
    return tuple(limits.parse_many(text))


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


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...] = ()


# Whoever calls a gateway without keys. No entry of a file can have this id.
ANONYMOUS = Key.model_construct(id="", hash="")


def read(path: Path) -> tuple[Key, ...]:
    """The file's keys: none is possible, and then nobody may enter. Raises KeysError."""
    return _parse(_contents(path))


class Keys:
    """The keys in force. Without a `path` nobody needs one, and whatever is sent is ignored.

    Raises KeysError where the file has a mistake.
    """

    def __init__(self, path: Path | None, metrics: Metrics) -> None:
        self.path = path
        self.metrics = metrics
        self._seen = self._before = _contents(path) if path else b""
        self._keys = _parse(self._seen)

    def find(self, headers: Headers) -> Key:
        """The key of a request. Raises Unauthorized, the same for none as for one unknown.

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
        return fits[0]

    async def watch_forever(self) -> None:
        """Take up what becomes of the file, two seconds later at most.

        It is read whole each time, which costs less than to be sure by its inode and times that
        nothing changed. What one look saw may be half written; what two saw counts. A file that is
        gone or has a mistake leaves the keys as they were.
        """
        while self.path:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self._look, self.path)

    def _look(self, path: Path) -> None:
        contents, before = _contents(path), self._before
        self._before = contents
        if contents != before or contents == self._seen:
            return
        self._seen = contents
        try:
            self._keys = _parse(contents)
        except KeysError as error:
            log.error("keys: the file is not taken up: %s", "; ".join(error.lines))
            self.metrics.key_reloads.labels("failed").inc()
        else:
            log.info("keys: %d in force", len(self._keys))
            self.metrics.key_reloads.labels("ok").inc()


def _bearer(authorization: str) -> str:
    scheme, _, credentials = authorization.strip().partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


def _contents(path: Path) -> bytes | str:
    """The file's bytes, or in words why they cannot be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _parse(contents: bytes | str) -> tuple[Key, ...]:
    if isinstance(contents, str):
        raise KeysError([contents])
    try:
        raw = tomllib.loads(contents.decode())
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
