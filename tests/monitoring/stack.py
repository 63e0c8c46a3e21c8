"""Both tiers with all that they measure switched on, and a real Prometheus that scrapes them every second."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

from bench.local import free_port
from tests.certificates import Authority
from tests.e2e.conftest import BIN, environment, free_ports
from tests.keys import keys_of, secret
from tests.run_up import wait_for
from tests.signing import Studio

SCRAPE_SECONDS = 1
TTL_SECONDS = 4
NAMESPACE = "studio"
TIMEOUT_SECONDS = 10
CATALOGUE = {
    "models": [
        {"id": "pocket", "source": "pocket", "slots": 4, "safety": ["rules:Words"]},
        {"id": "narrow", "source": "pocket", "slots": 1, "reuse": 0.5},
    ]
}
RULES = """
from retouch_server.safety import Refusal


class Words:
    def before(self, request):
        return Refusal("words") if "watermark" in request.prompt else None
"""
KEYS = {
    "ada": "",
    "eve": 'rate_limit = "1/hour"',
    "bob": "concurrency = 1",
    "old": "expires = 2020-01-01T00:00:00Z",
    "tim": "expires = 2099-01-01T00:00:00Z",
}


@dataclass
class Stack:
    """Where they run, and the file of keys, which may be written to."""

    ports: Mapping[str, str]
    prometheus: str
    keys: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['RETOUCH_GATEWAY_PORT']}"

    def client(self, key: str = "ada") -> httpx.Client:
        """One with that caller's key."""
        bearer = {"authorization": f"Bearer {secret(key)}"}
        return httpx.Client(base_url=self.url, headers=bearer, timeout=60, trust_env=False)

    def alive(self) -> bool:
        return all(each.poll() is None for each in self.processes)


@contextlib.contextmanager
def running(folder: Path, **variables: str) -> Iterator[Stack]:
    """All of them, ready, with logs and data in `folder`, and these settings more; FileNotFoundError without a
    Prometheus.
    """
    if not (program := shutil.which("prometheus")):
        raise FileNotFoundError(
            "prometheus is not installed: scripts/ci-tools installs it on Debian"
        )
    ports = free_ports()
    stack = Stack(ports, f"http://127.0.0.1:{free_port()}", folder / "keys.toml")
    stack.keys.write_text(keys_of(KEYS))
    ca = Authority(folder)
    catalogue = folder / "models.yaml"
    catalogue.write_text(yaml.safe_dump(CATALOGUE))
    (folder / "rules.py").write_text(RULES)
    settings = _settings(stack, ca, catalogue) | {"PYTHONPATH": str(folder)}
    given = environment(**ports, **settings | variables)
    commands: dict[str, list[str | Path]] = {
        "retouch-server": [BIN / "retouch-server"],
        "retouch-gateway": [BIN / "retouch-gateway"],
        "prometheus": [program, *_flags(stack, folder)],
    }
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                stack.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=given))
        wait_for(lambda: _ready(stack), 240, f"ready; see the logs in {folder}")
        yield stack
    finally:
        for process in stack.processes:
            process.terminate()
        for process in stack.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def _settings(stack: Stack, ca: Authority, catalogue: Path) -> dict[str, str]:
    """A small queue, a short life of images and edits, mTLS between the tiers, keys, signed results."""
    server, gateway = ca.issue("server"), ca.issue("gateway")
    signer = Studio(stack.keys.parent).issue()
    return {
        "RETOUCH_SERVER_MODELS": str(catalogue),
        "RETOUCH_SERVER_QUEUE_SIZE": "10",
        "RETOUCH_SERVER_TLS_CERT": str(server.cert),
        "RETOUCH_SERVER_TLS_KEY": str(server.key),
        "RETOUCH_SERVER_TLS_CLIENT_CA": str(ca.cert),
        "RETOUCH_SERVER_C2PA_CERT": str(signer.cert),
        "RETOUCH_SERVER_C2PA_KEY": str(signer.key),
        "RETOUCH_GATEWAY_UPSTREAM": f"127.0.0.1:{stack.ports['RETOUCH_SERVER_PORT']}",
        "RETOUCH_GATEWAY_UPSTREAM_CA": str(ca.cert),
        "RETOUCH_GATEWAY_UPSTREAM_CERT": str(gateway.cert),
        "RETOUCH_GATEWAY_UPSTREAM_KEY": str(gateway.key),
        "RETOUCH_GATEWAY_KEYS": str(stack.keys),
        "RETOUCH_GATEWAY_STORE": str(stack.keys.parent / "store"),
        "RETOUCH_GATEWAY_TTL": str(TTL_SECONDS),
        "RETOUCH_GATEWAY_TIMEOUT": str(TIMEOUT_SECONDS),
        "RETOUCH_GATEWAY_MAX_IMAGE_BYTES": "200000",
        "RETOUCH_GATEWAY_MAX_BODY_BYTES": "400000",
        "RETOUCH_GATEWAY_BODY_TIMEOUT": "2",
        "RETOUCH_GATEWAY_FETCH_IMAGES": "true",
    }


def _flags(stack: Stack, folder: Path) -> list[str]:
    targets = {
        tier: stack.ports[f"RETOUCH_{tier.upper()}_METRICS_PORT"] for tier in ("server", "gateway")
    }
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "scrape_timeout": f"{SCRAPE_SECONDS}s"},
        "scrape_configs": [
            {
                "job_name": f"retouch-{tier}",
                "static_configs": [
                    {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": NAMESPACE}}
                ],
            }
            for tier, port in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={stack.prometheus.removeprefix('http://')}",
    ]


def _ready(stack: Stack) -> bool:
    assert stack.alive(), "one has ended; see its log"
    try:
        replies = [
            httpx.get(f"{url}", trust_env=False)
            for url in (f"{stack.url}/readyz", f"{stack.prometheus}/-/ready")
        ]
    except httpx.TransportError:
        return False
    return all(reply.status_code == 200 for reply in replies)
