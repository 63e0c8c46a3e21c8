"""The processes that are measured, and those they need: started, found good, watched, ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pybase64

from bench.gateway.bodies import ASKS, MODEL, Answer, Ask, request
from bench.gateway.load import Load, Refused, ask
from bench.local import free_port

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
VENVS = ROOT / ".peers"
START_SECONDS = 120.0


class Failed(Exception):
    """A process did not start, or answers something else."""


@dataclass
class Served:
    """A server on a port of this machine, in one or several processes."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu(self) -> float:
        """Seconds of CPU that its processes have used."""
        used: float = sum(sum(one.cpu_times()[:2]) for one in self._processes())
        return used

    def resident(self) -> tuple[float, float]:
        """MiB that its processes have in memory together, now and at most; Linux counts the latter."""
        files = [Path(f"/proc/{one.pid}/status").read_text() for one in self._processes()]
        now, peak = (
            sum(int(re.findall(rf"{field}:\s+(\d+) kB", file)[0]) for file in files)
            for field in ("VmRSS", "VmHWM")
        )
        return now / 1024, peak / 1024

    def load(self, body: Path, clients: int, seconds: float) -> Load:
        """What so many callers see of it that send the request in `body`."""
        given = ["load", str(self.port), str(body), str(clients), str(seconds)]
        run = subprocess.run(
            [sys.executable, str(HERE / "load.py"), *given], capture_output=True, text=True
        )
        if run.returncode:
            raise Failed(f"{self.name}: {run.stderr.strip().splitlines()[-1]}")
        return Load(**json.loads(run.stdout))

    def check(self, picture: bytes, given: Ask) -> None:
        """Ask once. Raises Failed unless the same picture comes back as it was asked for."""
        try:
            (item,) = json.loads(ask(self.port, request(picture, given)))["data"]
        except (Refused, ValueError) as error:
            raise Failed(f"{self.name}: {error}") from None
        if given.answer == "b64_json":
            same = pybase64.b64decode(item["b64_json"]) == picture
        elif self.name == GATEWAY.name:
            with urlopen(f"http://{self.address}{urlsplit(item['url']).path}") as answer:
                same = answer.read() == picture
        else:  # the floor stores nothing
            same = True
        if not same:
            raise Failed(f"{self.name}: another picture came back")

    def _processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]


@contextmanager
def serving(
    name: str, port: int, command: list[str], place: Path, **environment: str
) -> Iterator[Served]:
    """Run `command` until it listens on `port`; end it, and all that it started, in the end."""
    log = place / f"{name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, port, log)
        yield Served(name, port, process)
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Failed(f"{process.args!r} does not listen:\n{log.read_text(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def upstream(place: Path) -> AbstractContextManager[Served]:
    """The server that answers at once."""
    port = free_port()
    command = [sys.executable, "-m", "bench.gateway.upstream", str(port)]
    return serving("upstream", port, command, place)


def wire(place: Path, answer: bytes) -> AbstractContextManager[Served]:
    """Bare sockets."""
    port, file = free_port(), place / "answer"
    file.write_bytes(answer)
    return serving(
        "wire", port, [sys.executable, str(HERE / "load.py"), "wire", str(port), str(file)], place
    )


def floor(
    place: Path, answer: Answer, name: str = "floor", upstream: str = ""
) -> AbstractContextManager[Served]:
    """Base64 and JSON alone."""
    port = free_port()
    command = [sys.executable, "-m", "bench.gateway.floor", str(port), answer, upstream]
    return serving(name, port, command, place)


@contextmanager
def hop(place: Path, answer: Answer) -> Iterator[Served]:
    """The floor with a bare gRPC call in between: the least that a gateway of two tiers can take."""
    with upstream(place) as behind, floor(place, answer, "hop", behind.address) as served:
        yield served


@contextmanager
def gateway(place: Path, _answer: Answer) -> Iterator[Served]:
    """`retouch-gateway` as it is, in front of a server that answers at once."""
    port = free_port()
    with upstream(place) as behind:
        given = {
            "port": str(port),
            "upstream": behind.address,
            "store": str(place / "store"),
            "metrics_port": "0",
        }
        environment = {f"RETOUCH_GATEWAY_{name.upper()}": value for name, value in given.items()}
        command = [sys.executable, "-m", "retouch_gateway"]
        with serving("gateway", port, command, place, **environment) as served:
            yield served


def litserve(place: Path, _answer: Answer) -> AbstractContextManager[Served]:
    """A LitServe API that decodes and encodes."""
    port = free_port()
    command = [str(VENVS / "litserve/bin/python"), str(HERE / "litserve_app.py"), str(port)]
    return serving("litserve", port, command, place)


@contextmanager
def litellm(place: Path, answer: Answer) -> Iterator[Served]:
    """LiteLLM's proxy in front of the floor, as an OpenAI-compatible server."""
    port, config = free_port(), place / "litellm.yaml"
    with ExitStack() as stack:
        behind = stack.enter_context(floor(place, answer))
        address = f"http://{behind.address}/v1"
        params = {"model": "openai/gpt-image-1", "api_base": address, "api_key": "none"}
        models = [{"model_name": MODEL, "litellm_params": params}]
        config.write_text(json.dumps({"model_list": models}))  # YAML, too
        command = [str(VENVS / "litellm/bin/litellm"), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
        alone = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # keys cost, so none on either side
        }
        yield stack.enter_context(serving("litellm", port, command, place, **alone))


@dataclass(frozen=True)
class Candidate:
    """What is measured, and what it can be asked."""

    name: str
    start: Callable[[Path, Answer], AbstractContextManager[Served]]
    asks: tuple[Ask, ...] = ASKS


FLOOR, HOP, GATEWAY = (
    Candidate("floor", floor),
    Candidate("hop", hop),
    Candidate("gateway", gateway),
)
LITSERVE = Candidate("litserve", litserve, (Ask("json", "b64_json"),))
LITELLM = Candidate("litellm", litellm, (Ask("multipart", "b64_json"),))
PEERS = (LITSERVE, LITELLM)
