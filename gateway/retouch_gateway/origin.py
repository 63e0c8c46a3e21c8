"""Who called, and by what address: the request's own word, and a trusted proxy's over it.

`X-Forwarded-For`, `-Proto`, `-Host`, `-Port` and `-Prefix` are read; RFC 7239's `Forwarded` is not.
Of a list the last counts, which is what the nearest proxy said: those before it may be the caller's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from starlette.requests import Request

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]

# What may stand in a URL; whatever else a header says is as good as absent.
_LABEL = "[A-Za-z0-9_-]{1,63}"
_HOST = re.compile(
    rf"(?:(?:{_LABEL}\.)*{_LABEL}\.?|\[([0-9A-Fa-f:.]{{2,45}})\])(?::([0-9]{{1,5}}))?"
)
_PREFIX = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){1,20}/?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# A hop as proxies write it: an address, maybe with a port.
_HOP = re.compile(r"\[([^\]]+)\](?::[0-9]+)?|([0-9.]+)(?::[0-9]+)?|([0-9A-Fa-f:.]+)")


def base_url(request: Request, public_url: str | None, trusted: Networks) -> str:
    """What URLs that we answer begin with: `https://host:port/prefix`, without a slash at its end.

    `public_url` if there is one, else as the request was addressed.
    """
    if public_url:
        return public_url.rstrip("/")
    scheme, host = request.scope["scheme"], _host(request.headers.get("host", ""))
    port = ""
    if _is_trusted(_peer(request), trusted):
        said = _last(request, "proto").lower()
        scheme = said if said in _DEFAULT_PORTS else scheme
        host = _host(_last(request, "host")) or host
        port = _last(request, "port")
    host = host or _listening(request)
    if port != _DEFAULT_PORTS[scheme]:
        host = _host(f"{host}:{port}") or host  # one that has a port keeps it
    return f"{scheme}://{host}{prefix(request, trusted)}"


def prefix(request: Request, trusted: Networks) -> str:
    """The path that a trusted proxy says it has put all of this below, without a slash at its end; else nothing."""
    if not _is_trusted(_peer(request), trusted):
        return ""
    found = _PREFIX.fullmatch(_last(request, "prefix"))
    return found[0].rstrip("/") if found else ""


def client(request: Request, trusted: Networks) -> str:
    """The caller's address: the last hop that is no trusted proxy, as far as the hops make sense.

    Empty if the socket has none.
    """
    caller = _peer(request)
    hops = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
    while hops and _is_trusted(caller, trusted):
        found = _HOP.fullmatch(hops.pop().strip())
        address = _address(found[1] or found[2] or found[3]) if found else None
        if not address:
            break
        caller = address
    return str(caller or "")


def _peer(request: Request) -> Address | None:
    return _address(request.client.host) if request.client else None


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _is_trusted(address: Address | None, trusted: Networks) -> bool:
    return address is not None and any(address in network for network in trusted)


def _last(request: Request, name: str) -> str:
    """The last item of an `X-Forwarded-…` header."""
    lines = request.headers.getlist(f"x-forwarded-{name}")
    return lines[-1].rpartition(",")[2].strip() if lines else ""


def _host(text: str) -> str:
    """A host, maybe with a port, that may stand in a URL; else nothing."""
    found = _HOST.fullmatch(text)
    if not found or (found[1] and not _address(found[1])):
        return ""
    return text if 0 < int(found[2] or 1) < 65536 else ""


def _listening(request: Request) -> str:
    """The address that the socket listens on, for a request that names none."""
    host, port = request.scope.get("server") or ("localhost", None)
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host
