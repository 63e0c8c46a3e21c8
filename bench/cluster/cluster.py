"""Several servers on addresses of their own, a name for those that are up, and gateways in front."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.cluster.names import NameServer, name_server
from bench.cluster.tiers import Gateway, Server, Tier
from bench.local import free_port


class Cluster:
    """Its processes; servers have 127.0.0.2 and on, and their ports in common.

    `servers`: those in service, whose addresses `name` has.
    """

    def __init__(self, place: Path, names: NameServer, settings: Mapping[str, str]) -> None:
        self.servers: list[Server] = []
        self.names, self._place, self._settings = names, place, settings
        self._port, self._metrics_port = free_port(), free_port()
        self._tiers: list[Tier] = []
        self._hosts = (f"127.0.0.{last}" for last in range(2, 255))

    @property
    def name(self) -> str:
        """The target of all servers in service, by DNS."""
        return self.names.target(self._port)

    @property
    def addresses(self) -> str:
        """The same, as a list of now."""
        return ",".join(server.address for server in self.servers)

    def start_servers(self, count: int) -> list[Server]:
        """So many more, once they are ready; not yet in service."""
        made = [
            Server(next(self._hosts), self._port, self._metrics_port, self._place, **self._settings)
            for _ in range(count)
        ]
        self._start(made)
        return made

    def serve(self, *servers: Server) -> None:
        """Have these in service, and no others."""
        self.servers = list(servers)
        self.names.addresses = [server.host for server in servers]

    def start_gateways(
        self, count: int, upstream: str, *command: str, **settings: str
    ) -> list[Gateway]:
        """So many, once they are ready; run by `python *command` where that is given."""
        made = [Gateway(upstream, self._place, command, **settings) for _ in range(count)]
        self._start(made)
        return made

    def _start(self, tiers: Sequence[Tier]) -> None:
        self._tiers += tiers
        for tier in tiers:
            tier.start()
        for tier in tiers:
            tier.wait_ready()

    def kill(self) -> None:
        """Whatever is left."""
        for tier in self._tiers:
            tier.kill()


@contextmanager
def cluster(servers: int, **settings: str) -> Iterator[Cluster]:
    """One with so many servers in service, which have these settings."""
    with tempfile.TemporaryDirectory() as folder, name_server() as names:
        made = Cluster(Path(folder), names, settings)
        try:
            made.serve(*made.start_servers(servers))
            yield made
        finally:
            made.kill()
