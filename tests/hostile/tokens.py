"""Paths of hosted images, forged and expired: what an attacker without the key can make of one, and an old one."""

from __future__ import annotations

import hmac
import random
import string
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator

from tests.hostile.wire import REFUSED, Asked, request

ALPHABET = string.ascii_letters + string.digits + "-_"
MISSING, GONE = frozenset({404}), frozenset({410})
EXTENSIONS = ("png", "jpg", "webp")
_ID, _EXPIRY, _OWNER = 16, 5, 9


def signed(key: bytes, expires_at: int, extension: str, identity: bytes = b"i" * _ID) -> str:
    """A path as a gateway with `key` makes it: id, expiry, owner, then the MAC over these and the extension."""
    claim = identity + expires_at.to_bytes(_EXPIRY, "big") + b"o" * _OWNER
    mac = hmac.digest(key, claim + extension.encode(), "sha256")[:24]
    return f"/images/{urlsafe_b64encode(claim + mac).decode()}.{extension}"


def forged(count: int, seed: int, one: str, other: str, key: bytes) -> Iterator[Asked]:
    """Of two good paths of PNGs, whose images are there: none of these is one of them.

    First each bit of the one flipped, then whatever else, at random.
    """
    chance = random.Random(seed)
    token, rival = (path[len("/images/") : -len(".png")] for path in (one, other))
    paths = [*_flipped(token), *_cut(token), *_mixed(token, rival)]
    while len(paths) < count:
        paths.append(_at_random(chance, token, rival))
    for path in paths[:count]:
        method = chance.choice(["GET", "GET", "GET", "HEAD"])
        yield Asked("token", request(method, f"/images/{path}"), MISSING)
    yield from _of_another_time(key)


def _flipped(token: str) -> Iterator[str]:
    raw = urlsafe_b64decode(token)
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        yield urlsafe_b64encode(changed).decode() + ".png"


def _cut(token: str) -> Iterator[str]:
    for length in range(len(token)):
        yield f"{token[:length]}.png"
        yield f"{token[length:][1:]}.png"


def _mixed(token: str, rival: str) -> Iterator[str]:
    """Another extension; the parts of two good ones; what decodes to the same bytes."""
    for extension in (
        *EXTENSIONS[1:],
        "PNG",
        "gif",
        "svg",
        "html",
        "png.png",
        "",
        "png%00",
        "png/",
        "jpeg",
    ):
        yield f"{token}.{extension}"
    for end in (21, 28, 40, 48, 64):  # base64 of the id, the expiry, the owner, some of the MAC
        yield f"{token[:end]}{rival[end:]}.png"
    for more in ("=", "==", "%3d", "%0a", "%20", "%09", ".png", token):
        yield f"{token}{more}.png"
    yield from (f"={token}.png", f"+{token[1:]}.png")


def _at_random(chance: random.Random, token: str, rival: str) -> str:
    match chance.randrange(4):
        case 0:
            made = "".join(chance.choices(ALPHABET, k=72))
        case 1:
            at = chance.randrange(72)
            other = chance.choice(ALPHABET.replace(token[at], ""))
            made = token[:at] + other + token[at + 1 :]
        case 2:
            at = chance.randrange(1, 72)
            made = token[:at] + rival[at:]
            made = made if made not in (token, rival) else made[::-1]
        case _:
            made = "".join(chance.sample(token, len(token)))
    return f"{made}.{chance.choice(EXTENSIONS) if chance.random() < 0.2 else 'png'}"


def _of_another_time(key: bytes) -> Iterator[Asked]:
    """Signed with the key itself: expired, or of an image that was never kept."""
    now = int(time.time())
    for seconds in (1, 60, 3600, 10**9):
        for extension in EXTENSIONS:
            path = signed(key, now - seconds, extension)
            yield Asked("token", request("GET", path), GONE)
            yield Asked("token", request("DELETE", path), REFUSED)
    for expires_at in (0, 1):
        yield Asked("token", request("GET", signed(key, expires_at, "png")), GONE)
    for expires_at in (now + 3600, 2**40 - 1):
        yield Asked("token", request("GET", signed(key, expires_at, "png")), MISSING)
    yield Asked("token", request("GET", signed(b"another key, as long", now + 60, "png")), MISSING)
