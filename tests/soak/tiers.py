"""What is soaked: a server, two gateways over one store that count limits in two ways, Redis; real processes all."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.e2e.conftest import environment, tool
from tests.keys import keys_of
from tests.run_up import wait_for
from tests.signing import Studio

ROOT = Path(__file__).parents[2]
# Short lives, so that all that expires does so many times over.
TTL_SECONDS, TIMEOUT_SECONDS, BODY_SECONDS = 16, 150, 2
# Both tiers take pictures of so many bytes, and the gateways so many of bodies at once.
IMAGE_BYTES, BODIES_BYTES = 262_144, 2_097_152
CATALOGUE = {
    "models": [
        {
            "id": "pocket",
            "source": "pocket",
            "slots": 4,
            "cache_bytes": 2_000_000,
            "safety": ["tests.soak.checks:Watermarks"],
        },
        {
            "id": "narrow",  # has no previews: its results are looked at first
            "source": "pocket",
            "slots": 1,
            "reuse": 0.5,
            "cache_bytes": 0,
            "safety": ["tests.soak.checks:Logos"],
        },
    ]
}
# Of callers' keys: with no limits, with narrow ones, expired; "guest" comes and goes.
KEYS = {
    "ada": "",
    "bob": 'concurrency = 2\nrate_limit = "5/second;200/minute"',
    "old": "expires = 2020-01-01T00:00:00Z",
}
GUEST = {"guest": "concurrency = 3"}


@dataclass
class Tier:
    """One process of ours. `temporary`: the folder that it has for what is temporary."""

    name: str
    port: int
    metrics_port: int
    folder: Path
    process: subprocess.Popen[bytes]
    page: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.seen = psutil.Process(self.process.pid)
        url = f"http://127.0.0.1:{self.metrics_port}"
        # One connection for each scrape, as Prometheus has after every restart.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.page = httpx.Client(base_url=url, timeout=60, trust_env=False, limits=limits)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def complaints(self) -> list[str]:
        """What its log says of itself: errors and tracebacks; not that the file of keys is broken, which it is."""
        lines = (self.folder / "log").read_text().splitlines()
        bad = (
            line
            for line in lines
            if '"level": "ERROR"' in line or '"level": "CRITICAL"' in line or "Traceback" in line
        )
        return [line for line in bad if "keys: the file is not taken up" not in line]

    def metrics(self) -> str:
        reply = self.page.get("/metrics")
        assert reply.status_code == 200
        return reply.text

    def census(self) -> dict[str, dict[str, Any]]:
        """What it holds; see launch.py."""
        file = self.folder / "census.json"
        file.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        wait_for(file.exists, 60, f"{self.name} counts what it holds")
        counted: dict[str, dict[str, Any]] = json.loads(file.read_text())
        return counted


@dataclass
class Stack:
    """All of them. `store`: the gateways' folder of images; `keys`: the file of keys, which may be written to."""

    folder: Path
    redis: int
    tiers: list[Tier] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def server(self) -> Tier:
        return self.tiers[0]

    @property
    def gateways(self) -> list[Tier]:
        return self.tiers[1:]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def keys(self) -> Path:
        return self.folder / "keys.toml"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """Ready, with logs and data in `folder`; at the end stopped by SIGTERM, at which each must exit with 0."""
    stack = Stack(folder, _port())
    stack.keys.write_text(keys_of(KEYS))
    (folder / "models.yaml").write_text(yaml.safe_dump(CATALOGUE))
    try:
        _start_redis(stack)
        server = _start(stack, "server", "retouch_server", _of_the_server(stack))
        limits = {
            "gateway-memory": "memory://",
            "gateway-redis": f"redis://127.0.0.1:{stack.redis}",
        }
        for name, counts in limits.items():
            _start(stack, name, "retouch_gateway", _of_a_gateway(stack, server, counts))
        wait_for(lambda: all(_ready(stack, each) for each in stack.gateways), 240, "ready")
        yield stack
        for tier in reversed(stack.tiers):
            tier.process.send_signal(signal.SIGTERM)
            assert tier.process.wait(60) == 0, f"{tier.name}'s exit status; see its log in {folder}"
    finally:
        for process in [*(tier.process for tier in stack.tiers), *stack.others]:
            process.kill()
            process.wait()


def _start_redis(stack: Stack) -> None:
    command = [
        tool("redis-server"),
        "--port",
        str(stack.redis),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
    ]
    with (stack.folder / "redis.log").open("wb") as log:
        stack.others.append(subprocess.Popen(command, cwd=stack.folder, stdout=log, stderr=log))


def _start(stack: Stack, name: str, package: str, settings: Mapping[str, str]) -> Tier:
    folder = stack.folder / name
    (folder / "tmp").mkdir(parents=True)
    port, metrics_port = _port(), _port()
    prefix = package.upper()
    variables = environment(
        **{f"{prefix}_{key}": value for key, value in settings.items()},
        **{f"{prefix}_PORT": str(port), f"{prefix}_METRICS_PORT": str(metrics_port)},
        TMPDIR=str(folder / "tmp"),
        # oneDNN keeps 1024 kernels, one for each shape of each layer: hundreds of MiB, which take hours to fill.
        ONEDNN_PRIMITIVE_CACHE_CAPACITY="64",
    )
    command = [sys.executable, "-m", "tests.soak.launch", package, str(folder / "census.json")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=variables)
    tier = Tier(name, port, metrics_port, folder, process)
    stack.tiers.append(tier)
    return tier


def _of_the_server(stack: Stack) -> dict[str, str]:
    signer = Studio(stack.folder).issue()
    return {
        "MODELS": str(stack.folder / "models.yaml"),
        "C2PA_CERT": str(signer.cert),
        "C2PA_KEY": str(signer.key),
        "QUEUE_SIZE": "12",
        "MAX_IMAGE_BYTES": str(IMAGE_BYTES),
        "MAX_IMAGE_PIXELS": "1000000",
        "MAX_CONNECTION_AGE": "30",
    }


def _of_a_gateway(stack: Stack, server: Tier, counts: str) -> dict[str, str]:
    return {
        "UPSTREAM": f"127.0.0.1:{server.port}",
        "STORE": str(stack.store),
        "TTL": str(TTL_SECONDS),
        "TIMEOUT": str(TIMEOUT_SECONDS),
        "BODY_TIMEOUT": str(BODY_SECONDS),
        "MAX_IMAGE_BYTES": str(IMAGE_BYTES),
        "MAX_IN_FLIGHT_BYTES": str(BODIES_BYTES),
        "KEYS": str(stack.keys),
        "LIMITS_STORE": counts,
    }


def _port() -> int:
    """A free one, below those that the kernel gives to whoever connects: until it is bound, torch must load."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _ready(stack: Stack, gateway: Tier) -> bool:
    for tier in stack.tiers:
        assert tier.process.poll() is None, (tier.folder / "log").read_text()
    try:
        return httpx.get(f"{gateway.url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
