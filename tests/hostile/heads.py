"""Heads: paths that lead elsewhere, methods, headers of every size and kind. All of it HTTP that can be parsed."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from urllib.parse import quote

from tests.hostile.corpus import words
from tests.hostile.wire import REFUSED, Asked, request

KNOWN = ("GET", "HEAD", "OPTIONS", "DELETE", "POST")
METHODS = (
    *KNOWN,
    "PUT",
    "PATCH",
    "TRACE",
    "PROPFIND",
    "MKCOL",
    "LOCK",
    "PURGE",
    "LINK",
    "SEARCH",
    "M-SEARCH",
    "REPORT",
)
ROUTES = (
    "/",
    "/healthz",
    "/readyz",
    "/v1/models",
    "/v1/images/edits",
    "/images/x.png",
    "/openapi.json",
    "/docs",
)
# What leads out of a folder, or into it by another name, where it is taken for a path.
TRICKS = [word.decode() for word in words("path-parts")]
STARTS = (
    *("/images/", "/playground/", "/v1/models/", "/", "//", "/images//", "/images/../"),
    *("/playground/../", "/static/", "http://x/images/", "*"),
)
LONG_NAMES = (
    "a" * 255,
    "a" * 4096,
    "a" * 60_000,
    "/" * 5000,
    "%2e" * 9000,
    "../" * 5000,
    "é" * 500,
)
_WHATEVER = REFUSED | {200, 204, 206, 304}


def _allowed(path: str) -> frozenset[int]:
    """Readiness is denied by a 503 when the server does not answer within 0.6 s: on a busy machine now and then."""
    return _WHATEVER | {503} if path == "/readyz" else _WHATEVER


def paths(count: int, seed: int) -> Iterator[Asked]:
    chance = random.Random(seed)
    for _ in range(count):
        path = chance.choice(STARTS) + "/".join(chance.choices(TRICKS, k=chance.randrange(1, 7)))
        if chance.random() < 0.05:
            path = chance.choice(STARTS) + chance.choice(LONG_NAMES)
        path += chance.choice(
            ["", "", "", ".png", "?x=" + chance.choice(TRICKS), "#x", "/", ";x=1"]
        )
        target = path if chance.random() < 0.1 else quote(path, safe=string.punctuation)
        method = chance.choice(["GET", "GET", "HEAD", "DELETE"])
        raw = request(method, target.encode().replace(b" ", b"+"))
        # `/` is a page, and some ways to write that are `/` too; so is /v1/models.
        yield Asked("path", raw, _WHATEVER)


VALUES = [
    *(b"", b"9" * 400, b"a" * 8000, b",".join([b"gzip;q=1"] * 900), b";".join([b"a=b"] * 900)),
    *(b"bytes=" + b"0-1," * 2000, b"bytes=" + b"9" * 300 + b"-", b"Bearer " + b"a" * 5000),
    *(b"a" * 300 + b".example", *words("header-values")),
]
NAMES = [b"a" * 200, *words("header-names")]


def _lines(chance: random.Random) -> list[bytes]:
    if chance.random() < 0.1:  # many, though as many as go into a head
        return [
            b"x-%d: %b" % (i, b"v" * chance.randrange(9)) for i in range(chance.randrange(3000))
        ]
    return [
        b"%b: %b" % (chance.choice(NAMES), chance.choice(VALUES))
        for _ in range(chance.randrange(1, 12))
    ]


def headers(count: int, seed: int, image: str = "/images/x.png") -> Iterator[Asked]:
    """`image`: the path of one that is there."""
    chance = random.Random(seed)
    for _ in range(count):
        method, path = (
            chance.choice(["GET", "GET", "HEAD", "OPTIONS", "POST"]),
            chance.choice([*ROUTES, image]),
        )
        lines = [line for line in _lines(chance) if not line.startswith(b"expect: ")]
        body = b"{}" if method == "POST" else None
        yield Asked("headers", request(method, path, lines, body), _allowed(path))


def unknown_keys(count: int, seed: int) -> Iterator[Asked]:
    """Whatever stands in a head, without a key that is known: 401 where a key is wanted."""
    chance = random.Random(seed)
    for _ in range(count):
        method, path = chance.choice(
            [("POST", "/v1/images/edits"), ("GET", "/v1/models"), ("GET", "/v1/models/pocket")]
        )
        name = chance.choice([b"authorization", b"x-api-key", b"Authorization", b"X-API-Key"])
        lines = [*_lines(chance), b"%b: %b" % (name, chance.choice(VALUES))]
        lines = [line for line in lines if not line.startswith(b"expect: ")]
        body = b"{}" if method == "POST" else None
        yield Asked("key", request(method, path, lines, body), frozenset({400, 401}))


def methods(count: int, seed: int) -> Iterator[Asked]:
    chance = random.Random(seed)
    for _ in range(count):
        method, path = chance.choice(METHODS), chance.choice(ROUTES)
        allowed = _allowed(path) if method in KNOWN else REFUSED
        body = b"x" * chance.randrange(99) if chance.random() < 0.3 else None
        yield Asked("method", request(method, path, (), body), allowed)
