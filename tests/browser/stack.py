"""A server of three models, and gateways before it: real processes on free ports."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import yaml

from tests.e2e.conftest import BIN, OUTPUT, Tiers, environment, free_ports
from tests.run_up import wait_for
from tests.server import tiny

Process = subprocess.Popen[bytes]
LOGS = OUTPUT / "browser"


@dataclass(frozen=True)
class Server:
    """A server, its ports by variable."""

    ports: dict[str, str]
    process: Process

    @property
    def upstream(self) -> str:
        """Its address for gateways."""
        return f"127.0.0.1:{self.ports['RETOUCH_SERVER_PORT']}"


@dataclass(frozen=True)
class Gateway:
    """A gateway of its own settings; `kill` is for those who want to see it gone."""

    url: str
    process: Process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def models(folder: Path) -> Path:
    """A catalogue: pocket; pocket with one slot; and a tiny one that has other abilities, and noise for weights."""
    source = tiny.save("klein-kv", folder)
    entries = [
        {"id": "pocket", "source": "pocket"},
        {"id": "narrow", "source": "pocket", "slots": 1},
        {"id": "plain", "source": str(source), "max": {"num_inference_steps": 6}},
    ]
    catalogue = folder / "models.yaml"
    catalogue.write_text(yaml.safe_dump({"models": entries}))
    return catalogue


@contextlib.contextmanager
def process(name: str, log: str, **variables: str) -> Iterator[Process]:
    """Runs a tier; at the end SIGTERM, which exits 0, unless it was killed before."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{log}.log").open("w") as file:
        running = subprocess.Popen(
            [BIN / name], stdout=file, stderr=file, env=environment(**variables)
        )
    try:
        yield running
        killed = running.poll() == -signal.SIGKILL
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0 or killed, f"{name}'s exit status; see {LOGS}/{log}.log"
    finally:
        running.kill()
        running.wait()


@contextlib.contextmanager
def server(catalogue: str, log: str) -> Iterator[Server]:
    """A server of these models. A gateway before it says when it is ready."""
    ports = free_ports()
    given = {name: port for name, port in ports.items() if "SERVER" in name}
    with process("retouch-server", log, RETOUCH_SERVER_MODELS=catalogue, **given) as running:
        yield Server(ports, running)


@contextlib.contextmanager
def gateway(behind: Server, log: str, store: Path, **variables: str) -> Iterator[Gateway]:
    """A gateway before that server, both ready, with these settings more."""
    given = {
        **free_ports(),
        "RETOUCH_GATEWAY_UPSTREAM": behind.upstream,
        "RETOUCH_GATEWAY_STORE": str(store),
        **variables,
    }
    url = f"http://127.0.0.1:{given['RETOUCH_GATEWAY_PORT']}"
    with process("retouch-gateway", log, **given) as running:
        with httpx.Client(base_url=url, trust_env=False) as rest:
            wait_for(lambda: _ready(rest, running, behind.process), 120, f"ready; see {LOGS}")
        yield Gateway(url, running)


@contextlib.contextmanager
def before(behind: Server, store: Path) -> Iterator[Tiers]:
    """That server and a gateway, with what reaches both."""
    own = {name: port for name, port in behind.ports.items() if "GATEWAY" in name}
    with (
        gateway(behind, "gateway", store, **own) as front,
        httpx.Client(base_url=front.url, timeout=120, trust_env=False) as rest,
        grpc.insecure_channel(behind.upstream) as channel,
    ):
        yield Tiers(behind.ports, rest, channel)


def _ready(rest: httpx.Client, *processes: Process) -> bool:
    assert all(each.poll() is None for each in processes), f"one has ended; see {LOGS}"
    try:
        return rest.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
