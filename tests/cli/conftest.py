"""A bin folder with fake tiers in it, and `retouch up` run from there as its user runs it."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECONDS = 20.0


def wait_for(what: Callable[[], Any], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass
class Up:
    """A run of `retouch up`."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def output(self) -> str:
        return (self.folder / "stdout").read_text()

    def wait_ready(self) -> None:
        wait_for(lambda: "Ctrl-C" in self.output or self.process.poll() is not None)
        assert self.process.poll() is None, self.end()

    def pid(self, tier: str) -> int:
        wait_for(lambda: (self.folder / tier).exists() and (self.folder / tier).stat().st_size)
        return int(json.loads((self.folder / tier).read_text())["pid"])

    @property
    def pids(self) -> list[int]:
        return [self.pid(tier) for tier in ("retouch-server", "retouch-gateway")]

    @property
    def ended(self) -> list[str]:
        """The tiers that stopped by themselves, in order."""
        file = self.folder / "ended"
        return file.read_text().split() if file.exists() else []

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Its exit status and what it said on stderr, after the signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS), (self.folder / "stderr").read_text()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A bin folder as a virtual environment has it, with fake tiers."""
    home = tmp_path / "venv"
    (home / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", home)
    (home / "lib").symlink_to(Path(sys.prefix) / "lib")
    (home / "bin/python").symlink_to(sys.executable)
    for name in ("retouch-server", "retouch-gateway"):
        program = home / "bin" / name
        code = Path(__file__).with_name("fake_tier.py").read_text()
        program.write_text(f"#!{sys.executable}\n{code}")
        program.chmod(0o755)
    return home / "bin"


@pytest.fixture
def ports() -> dict[str, str]:
    """Four free ports, by variable."""
    variables = [
        f"RETOUCH_{tier}_{port}"
        for tier in ("SERVER", "GATEWAY")
        for port in ("PORT", "METRICS_PORT")
    ]
    held = [socket.create_server(("127.0.0.1", 0)) for _ in variables]
    found = {name: str(each.getsockname()[1]) for name, each in zip(variables, held, strict=True)}
    for each in held:
        each.close()
    return found


@pytest.fixture
def up(tmp_path: Path, programs: Path, ports: dict[str, str]) -> Iterator[Callable[..., Up]]:
    """Starts `retouch up ARGUMENTS` in an empty folder; whatever is left is killed at the end."""
    (tmp_path / "photo.jpg").write_bytes(b"not looked at by a fake")
    runs: list[Up] = []

    def start(arguments: str = "--photo photo.jpg", **variables: str) -> Up:
        with (tmp_path / "stdout").open("w") as out, (tmp_path / "stderr").open("w") as err:
            process = subprocess.Popen(
                [str(programs / "python"), "-m", "retouch_cli", "up", *shlex.split(arguments)],
                cwd=tmp_path,
                env={**os.environ, **ports, "FAKE_NOTES": str(tmp_path), **variables},
                stdout=out,
                stderr=err,
                text=True,
            )
        runs.append(Up(process, tmp_path))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
        for tier in ("retouch-server", "retouch-gateway"):
            if (run.folder / tier).exists() and alive(run.pid(tier)):
                os.kill(run.pid(tier), signal.SIGKILL)
