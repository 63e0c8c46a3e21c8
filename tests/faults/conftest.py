"""Real processes of both tiers that faults are done to, shared by this folder's tests; what ended is started anew."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import pytest

from bench.cluster.tiers import Gateway, Server
from bench.local import free_port
from tests.faults.ledger import Ledger, under_way
from tests.faults.proxy import Proxy, proxy
from tests.object_store import ObjectStore, run_object_store
from tests.run_up import wait_for

SLOTS = 2
# Seconds that a request may take: more than until its first step on a slow machine, less than gRPC waits for a ping.
BUDGET = 8
BODY_SECONDS = 3
REACHED_SECONDS = 60.0
CATALOGUE = f"models:\n  - {{id: pocket, source: pocket, slots: {SLOTS}}}\n"

StartGateway = Callable[..., Gateway]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Where logs and stores are."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def one_server(place: Folder) -> Iterator[Server]:
    (place / "models.yaml").write_text(CATALOGUE)
    server = Server("127.0.0.1", free_port(), free_port(), place, MODELS=str(place / "models.yaml"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(one_server: Server) -> Iterator[Server]:
    """One with SLOTS slots. It may be killed, stopped and restarted: the next test has it whole."""
    if one_server.process.poll() is not None:
        one_server.start()
    one_server.wait_ready()
    yield one_server
    if one_server.process.poll() is None:
        one_server.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def start_gateway(place: Folder) -> Iterator[StartGateway]:
    """Starts gateways in front of `upstream`, each with a folder of its own; all end with the session.

    `command`: what Python runs instead; `store`: another than the folder's own; `variables`: of others' than ours.
    """
    started: list[Gateway] = []

    def start(
        upstream: str,
        *,
        command: Sequence[str] = (),
        store: str = "",
        variables: Mapping[str, str] | None = None,
        **settings: str,
    ) -> Gateway:
        folder = place / f"gateway-{len(started)}"
        folder.mkdir()
        gateway = Gateway(upstream, folder, command, **settings)
        gateway.settings |= variables or {}
        if store:
            gateway.settings["RETOUCH_GATEWAY_STORE"] = store
        started.append(gateway)
        gateway.start()
        return gateway

    yield start
    for gateway in started:
        gateway.kill()


@pytest.fixture(scope="session")
def start_proxy() -> Iterator[Callable[[int], Proxy]]:
    """Proxies to ports of loopback, until the session's end."""
    with contextlib.ExitStack() as stack:
        yield lambda target: stack.enter_context(proxy(target))


@pytest.fixture(scope="session")
def bucket() -> Iterator[ObjectStore]:
    with run_object_store() as store:
        yield store


@dataclass(frozen=True)
class Path:
    """A gateway with a line to its callers and one to its server that can be made worse; its budget is BUDGET."""

    front: Proxy
    gateway: Gateway
    back: Proxy
    server: Server

    def begin(self, kept: Ledger, sent: Mapping[str, Any]) -> None:
        """Two edits, one of them streamed, that are under way."""
        kept.call("whole", self.front, sent)
        kept.call("streamed", self.front, {**sent, "stream": True})
        wait_for(lambda: kept["streamed"].saw("step"), REACHED_SECONDS, "a step")
        wait_for(lambda: under_way(self.server) == 2, REACHED_SECONDS, "both under way")


@pytest.fixture(scope="session")
def one_path(
    one_server: Server, start_gateway: StartGateway, start_proxy: Callable[[int], Proxy]
) -> Path:
    back = start_proxy(int(one_server.address.rpartition(":")[2]))
    gateway = start_gateway(
        f"127.0.0.1:{back.port}", TIMEOUT=str(BUDGET), BODY_TIMEOUT=str(BODY_SECONDS)
    )
    return Path(start_proxy(gateway.port), gateway, back, one_server)


@pytest.fixture
def path(one_path: Path, server: Server) -> Iterator[Path]:
    one_path.gateway.wait_ready()
    yield one_path
    one_path.front.heal()
    one_path.back.heal()
