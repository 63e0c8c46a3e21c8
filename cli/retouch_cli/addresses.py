"""Where the two tiers listen, by the same variables that they read."""

import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from retouch_cli.errors import Failure

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 only looked up


@dataclass(frozen=True)
class Address:
    """One listening socket: its host as bound, its port, and the variable that moves it."""

    host: str
    port: int
    variable: str

    @property
    def authority(self) -> str:
        """`host:port` as a caller on this machine writes it."""
        host = WILDCARDS.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.authority}"


@dataclass(frozen=True)
class Addresses:
    """All of them; a metrics port of 0 is off, and None here."""

    grpc: Address
    server_metrics: Address | None
    rest: Address
    gateway_metrics: Address | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Addresses":
        """Raises Failure where a variable is no port."""

        def read(tier: str, port: str, default: int) -> Address:
            variable = f"RETOUCH_{tier}_{port}"
            host = environment.get(f"RETOUCH_{tier}_HOST", "127.0.0.1")
            return Address(host, number(variable, environment.get(variable), default), variable)

        def metrics(tier: str, default: int) -> Address | None:
            off = environment.get(f"RETOUCH_{tier}_METRICS_PORT") == "0"
            return None if off else read(tier, "METRICS_PORT", default)

        return cls(
            grpc=read("SERVER", "PORT", 50051),
            server_metrics=metrics("SERVER", 9090),
            rest=read("GATEWAY", "PORT", 8000),
            gateway_metrics=metrics("GATEWAY", 9091),
        )

    def __iter__(self) -> Iterator[Address]:
        all_four = (self.grpc, self.server_metrics, self.rest, self.gateway_metrics)
        return (address for address in all_four if address is not None)

    def check_free(self) -> None:
        """Raises Failure naming every port that another process, or another of these, has."""
        taken = []
        with contextlib.ExitStack() as held:
            for address in self:
                try:
                    held.enter_context(bound(address))
                except OSError as error:
                    taken.append(
                        f"{address.host}:{address.port} ({address.variable}: {error.strerror})"
                    )
        if taken:
            raise Failure(f"cannot listen on {', '.join(taken)}; set the variable to a free port")


def number(variable: str, value: str | None, default: int) -> int:
    if value is None:
        return default
    if value.isdecimal() and 0 < int(value) < 65536:
        return int(value)
    raise Failure(f"{variable} is {value!r}, which is no port: give a number from 1 to 65535")


def bound(address: Address) -> socket.socket:
    """A socket bound to it, not listening; like the tiers', it passes over TIME_WAIT."""
    family, kind, protocol, _, name = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(name)
        bound.listen()
    except OSError:
        bound.close()
        raise
    return bound
