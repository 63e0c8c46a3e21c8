"""The two tiers as processes that can be stopped, killed, slowed and started again where they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.local import free_port, total

START_SECONDS = 300.0
STOP_SECONDS = 120.0
PERIOD = 0.1  # seconds


class Failed(Exception):
    """A process did not do what it was told to."""


@dataclass
class Tier:
    """A process of `python *command` and its settings; what it logs is appended to `log`."""

    command: list[str]
    settings: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if "RETOUCH_" not in name}
        # Each as on a machine of its own: threads of several that wait for each other on two cores measure nothing.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                env=kept | {"OMP_NUM_THREADS": "1"} | self.settings,
                stdout=log,
                stderr=log,
            )

    def ready(self) -> bool:
        """What its readiness probe would say."""
        raise NotImplementedError

    def wait_ready(self) -> None:
        def look() -> bool:
            if self.process.poll() is not None:
                raise Failed(f"it ended: {self.log.read_text()[-2000:]}")
            return self.ready()

        wait_until(look, START_SECONDS, f"{self.command} is ready; see {self.log}")

    def stop(self) -> int:
        """SIGTERM. Returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def metric(self, sample: str, **labels: str) -> float:
        """The sum of its samples of that name which bear the labels."""
        with urlopen(f"http://{self.metrics}/metrics") as reply:
            return total(reply.read().decode(), sample, **labels)

    @property
    def metrics(self) -> str:
        """host:port of its metrics."""
        prefix = next(name for name in self.settings if name.endswith("_METRICS_PORT"))
        host = self.settings[prefix.replace("METRICS_PORT", "HOST")]
        return f"{host}:{self.settings[prefix]}"


class Server(Tier):
    """`retouch-server` on `host`, an address of loopback; those of one cluster have their ports in common."""

    def __init__(
        self, host: str, port: int, metrics_port: int, place: Path, **settings: str
    ) -> None:
        self.host, self.address = host, f"{host}:{port}"
        settings |= {"HOST": host, "PORT": str(port), "METRICS_PORT": str(metrics_port)}
        super().__init__(
            ["-m", "retouch_server"],
            {f"RETOUCH_SERVER_{name}": value for name, value in settings.items()},
            place / f"server-{host}.log",
        )

    def ready(self) -> bool:
        request = health_pb2.HealthCheckRequest(service="retouch.v1.ImageEdit")
        with grpc.insecure_channel(
            self.address, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            try:
                reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
            except grpc.RpcError:
                return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def edits(self) -> float:
        """Images done since it started."""
        return self.metric("retouch_server_edits_total", outcome="done")


class Gateway(Tier):
    """`retouch-gateway` on a free port of 127.0.0.1."""

    def __init__(
        self, upstream: str, place: Path, command: Sequence[str] = (), **settings: str
    ) -> None:
        self.port = free_port()
        settings |= {
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "METRICS_PORT": str(free_port()),
            "UPSTREAM": upstream,
            "STORE": str(place / "store"),
        }
        super().__init__(
            list(command) or ["-m", "retouch_gateway"],
            {f"RETOUCH_GATEWAY_{name}": value for name, value in settings.items()},
            place / f"gateway-{self.port}.log",
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
        return False


def wait_until(look: Callable[[], object], seconds: float, why: str) -> float:
    """The seconds until `look` was true. Raises Failed after so many."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > seconds:
            raise Failed(f"not within {seconds:g} s: {why}")
        time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def paced(tier: Tier, share: float) -> Iterator[None]:
    """Let it run for that part of each PERIOD, and stand still for the rest, as the kernel has it under a quota."""
    over = threading.Event()

    def pace() -> None:
        while share < 1 and not over.is_set():
            tier.process.send_signal(signal.SIGCONT)
            time.sleep(PERIOD * share)
            tier.process.send_signal(signal.SIGSTOP)
            over.wait(PERIOD * (1 - share))
        tier.process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=pace)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
