"""What a setting may be: each takes it as given and gives it as used, or raises ValueError in the operator's words."""

from __future__ import annotations

import ipaddress
import re
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from retouch_gateway import limits
from retouch_gateway.keys import rates

BUCKETS = ("s3", "gs", "az")

_TARGET = re.compile(r"(dns|ipv4|ipv6|unix):\S+|(\[[0-9A-Fa-f:.]+\]|[^/:\s]+):([0-9]{1,5})")
_REDIS = re.compile(r"rediss?://[^/\s]+(/[0-9]*)?(\?\S*)?")


def parts(text: str | None) -> list[str]:
    """What commas part."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def public_url(url: str) -> str:
    """An absolute address, without the slash at its end."""
    try:
        split = urlsplit(url)
        sound = bool(split.hostname) and split.port != 0
    except ValueError:
        sound = False
    # What would not survive in an answer, or be read as something else there.
    if not sound or not re.fullmatch(r"https?://[^\s?#@\"'<>\\^`{|}\x00-\x1f\x7f-\uffff]+", url):
        raise ValueError("must be an http:// or https:// address, without user, query or fragment")
    return url.rstrip("/")


def targets(text: str) -> str:
    """What gRPC resolves, several by commas."""
    for target in parts(text) or [""]:
        found = _TARGET.fullmatch(target)
        if not found or int(found[3] or 1) > 65535:
            raise ValueError("must be host:port, or a gRPC name such as dns:///host:port")
    return text


def networks(text: str) -> str:
    """Addresses and networks, by commas."""
    for part in parts(text):
        try:
            ipaddress.ip_network(part)
        except ValueError as error:
            if "host bits" in str(error):
                raise ValueError(f"{part} has bits beyond the network's") from None
            raise ValueError(f"{part} is neither an address nor a network") from None
    return text


def store(place: str) -> str:
    """A folder, absolute; or a bucket and prefix."""
    if re.match(r"[A-Za-z0-9]+:/", place):
        return _bucket(place)
    if not place:
        raise ValueError("must be a folder, or a bucket such as s3://bucket/prefix")
    try:
        folder = Path(place).expanduser().absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except RuntimeError:
        raise ValueError(f"{place} cannot be a folder: there is no such home") from None
    except OSError as error:
        raise ValueError(f"{folder} cannot be a folder: {error.strerror}") from None
    return str(folder)


def _bucket(url: str) -> str:
    split = urlsplit(url)
    if not url.startswith(tuple(f"{kind}://" for kind in BUCKETS)) or not split.netloc:
        kinds = ", ".join(f"{kind}://" for kind in BUCKETS)
        raise ValueError(f"must be a folder, or a bucket and prefix by {kinds}")
    if split.query or split.fragment or "@" in split.netloc:
        raise ValueError("takes no query, fragment or user: credentials are the cloud's variables")
    if not find_spec("obstore"):
        raise ValueError("needs the extra: pip install 'retouch[object-store]'")
    return url.rstrip("/")


def rate_limit(text: str) -> str:
    rates(text)
    return text


def limits_store(place: str) -> str:
    """`memory://`, or a Redis. What is wrong is never cited: it may hold a password."""
    if place == limits.MEMORY:
        return place
    if not _REDIS.fullmatch(place):
        raise ValueError("must be memory://, or redis:// or rediss:// and host:port")
    if not find_spec("redis"):
        raise ValueError("needs the extra: pip install 'retouch[redis]'")
    limits.check(place)
    return place


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
