"""Both tiers as real processes, and what they hold: memory, descriptors, threads, tasks, objects."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.local import free_port, total
from tests.run_up import wait_for

INSIDE = Path(__file__).with_name("inside.py")
SOFT_LIMIT = 512  # of descriptors, as a shell might have it
OUTPUT = Path(__file__).parents[1] / "output"


@dataclass(frozen=True)
class Held:
    """What a process holds at a moment."""

    mebibytes: float
    descriptors: int
    threads: int
    tasks: int
    objects: int


def within(more: Held, before: Held, held: Held) -> bool:
    """Whether there is at most so much more than before."""
    return all(
        getattr(held, each.name) <= getattr(before, each.name) + getattr(more, each.name)
        for each in fields(Held)
    )


@dataclass
class Tier:
    """A process of a tier. Its log is `log`."""

    name: str
    folder: Path
    variables: Mapping[str, str]
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)

    def start(self) -> None:
        kind = self.name.partition("-")[0]
        prefix = f"RETOUCH_{kind.upper()}"
        kept = {n: v for n, v in os.environ.items() if not n.startswith("RETOUCH_")}
        ports = {f"{prefix}_PORT": str(self.port), f"{prefix}_METRICS_PORT": str(self.metrics_port)}
        self._socket = self.folder / f"{self.name}.socket"
        OUTPUT.mkdir(exist_ok=True)
        self.log = OUTPUT / f"hostile-{self.name}.log"
        command = [sys.executable, str(INSIDE), str(self._socket), f"retouch_{kind}"]
        path = os.pathsep.join(each for each in sys.path if each)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**kept, "PYTHONPATH": path, **ports, **self.variables},
            )
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (SOFT_LIMIT, most))

    def wait_ready(self) -> None:
        wait_for(self._ready, 120, f"{self.name} is ready; see {self.log}")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        port = self.port if self.name.startswith("gateway") else self.metrics_port
        try:
            url = f"http://127.0.0.1:{port}/readyz"
            return httpx.get(url, trust_env=False, timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def held(self) -> Held:
        process = psutil.Process(self.process.pid)
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(60)
            asking.connect(str(self._socket))
            said = json.loads(asking.makefile().read())
        return Held(
            round(process.memory_info().rss / 2**20, 1),
            process.num_fds(),
            process.num_threads(),
            said["tasks"],
            said["objects"],
        )

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], float]]:
        """How many MiB its memory has been above what it was, at the most, since this began."""
        folder = Path(f"/proc/{self.process.pid}")
        (folder / "clear_refs").write_text("5")  # proc(5): the peak begins anew
        before = _status(folder, "VmRSS")
        yield lambda: _status(folder, "VmHWM") - before

    def settled(self, seconds: float = 30, enough: Callable[[Held], bool] | None = None) -> Held:
        """What is held once that is `enough`; without it, once descriptors and tasks are no longer falling.

        At the latest after so many seconds.
        """
        held, end = self.held, time.monotonic() + seconds
        while not (enough and enough(held)) and time.monotonic() < end:
            time.sleep(1.2)  # in which a gateway gives memory back
            before, held = held, self.held
            if not enough and (held.descriptors, held.tasks) >= (before.descriptors, before.tasks):
                break
        return held

    @property
    def metrics_page(self) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        return httpx.get(url, trust_env=False, timeout=30).text

    def metric(self, sample: str, **labels: str) -> float:
        return total(self.metrics_page, sample, **labels)

    def by_label(self, sample: str, label: str) -> Counter[int]:
        """A metric's sums by the numbers that are a label's values."""
        found: Counter[int] = Counter()
        for family in text_string_to_metric_families(self.metrics_page):
            for each in family.samples:
                if each.name == sample:
                    found[int(each.labels[label])] += int(each.value)
        return found

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


def _status(folder: Path, name: str) -> float:
    """A size of /proc/PID/status in MiB."""
    lines = (folder / "status").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024
