"""Both tiers as real processes on free ports, for the session; their URLs live for seconds."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from bench.local import total
from retouch.v1 import image_edit_pb2_grpc as rpc
from tests.run_up import wait_for

BIN = Path(sys.executable).parent
OUTPUT = Path(__file__).parents[1] / "output"
TTL_SECONDS = 5
PORTS = (
    "RETOUCH_SERVER_PORT",
    "RETOUCH_SERVER_METRICS_PORT",
    "RETOUCH_GATEWAY_PORT",
    "RETOUCH_GATEWAY_METRICS_PORT",
)


def free_ports() -> dict[str, str]:
    """Four free ports, by variable."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    found = {name: str(each.getsockname()[1]) for name, each in zip(PORTS, held, strict=True)}
    for each in held:
        each.close()
    return found


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without its own settings for the tiers, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETOUCH_")}
    return {**kept, **variables}


def tool(name: str) -> str:
    """The path of a program; without it the test skips, which CI does not allow."""
    if found := shutil.which(name):
        return found
    pytest.skip(f"{name} is not installed: scripts/ci-tools installs it on Debian")


@dataclass(frozen=True)
class Tiers:
    """Where the two run."""

    ports: dict[str, str]
    rest: httpx.Client
    channel: grpc.Channel

    @property
    def grpc(self) -> rpc.ImageEditStub:
        return rpc.ImageEditStub(self.channel)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['RETOUCH_GATEWAY_PORT']}"

    def metrics_page(self, tier: str) -> str:
        port = self.ports[f"RETOUCH_{tier.upper()}_METRICS_PORT"]
        reply = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert reply.status_code == 200
        return reply.text

    def metric(self, tier: str, sample: str, **labels: str) -> float:
        """The sum of all samples of that name that bear the labels."""
        return total(self.metrics_page(tier), sample, **labels)

    def edit(self, body: dict[str, Any]) -> dict[str, Any]:
        """A JSON request that succeeds."""
        reply = self.rest.post("/v1/images/edits", json=body)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer


@pytest.fixture(scope="session")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    """Starts both, waits until ready, and at the end stops both by SIGTERM, which exits 0."""
    OUTPUT.mkdir(exist_ok=True)
    ports = free_ports()
    variables = environment(
        **ports,
        RETOUCH_GATEWAY_UPSTREAM=f"127.0.0.1:{ports['RETOUCH_SERVER_PORT']}",
        RETOUCH_GATEWAY_STORE=str(tmp_path_factory.mktemp("store")),
        RETOUCH_GATEWAY_TTL=str(TTL_SECONDS),
    )
    processes = {}
    for name in ("retouch-gateway", "retouch-server"):
        with (OUTPUT / f"{name}.log").open("w") as log:
            processes[name] = subprocess.Popen([BIN / name], stdout=log, stderr=log, env=variables)

    url = f"http://127.0.0.1:{ports['RETOUCH_GATEWAY_PORT']}"
    target = f"127.0.0.1:{ports['RETOUCH_SERVER_PORT']}"
    limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    try:
        with (
            httpx.Client(base_url=url, timeout=120, trust_env=False) as rest,
            grpc.insecure_channel(target, options=limits) as channel,
        ):
            wait_for(lambda: _ready(rest, processes), 120, f"ready; see the logs in {OUTPUT}")
            yield Tiers(ports, rest, channel)
        for name, process in processes.items():
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, f"{name}'s exit status; see its log in {OUTPUT}"
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _ready(rest: httpx.Client, processes: dict[str, subprocess.Popen[bytes]]) -> bool:
    for name, process in processes.items():
        assert process.poll() is None, (OUTPUT / f"{name}.log").read_text()
    try:
        return rest.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
