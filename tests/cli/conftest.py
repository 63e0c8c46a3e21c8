"""A bin folder with fake tiers in it, and `retouch up` run from there as its user runs it; a fake gateway."""

import json
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retouch_cli.commands import main
from tests import run_up
from tests.cli import fake_gateway
from tests.cli.fake_gateway import PNG, FakeGateway
from tests.run_up import wait_for

SECONDS = 20.0
Edit = Callable[..., int]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Up(run_up.Up):
    """A run with fake tiers, which note what they are and when they end."""

    def wait_ready(self) -> None:
        """And until both have noted it: the gateway may be ready before the server has begun."""
        super().wait_ready()
        assert all(self.pids)

    def pid(self, tier: str) -> int:
        notes = self.folder / tier
        wait_for(lambda: notes.exists() and notes.stat().st_size, SECONDS, "its notes")
        return int(json.loads(notes.read_text())["pid"])

    @property
    def pids(self) -> list[int]:
        return [self.pid(tier) for tier in ("retouch-server", "retouch-gateway")]

    @property
    def ended(self) -> list[str]:
        """The tiers that stopped by themselves, in order."""
        file = self.folder / "ended"
        return file.read_text().split() if file.exists() else []


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
    (tmp_path / "photo.jpg").write_bytes(PNG)  # told by content
    runs: list[Up] = []

    def start(arguments: str = "--photo photo.jpg", **variables: str) -> Up:
        command: list[str | Path] = [
            programs / "python",
            "-m",
            "retouch_cli",
            "up",
            *shlex.split(arguments),
        ]
        given = {**os.environ, **ports, "FAKE_NOTES": str(tmp_path), **variables}
        runs.append(Up.start(command, tmp_path, given))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
        for tier in ("retouch-server", "retouch-gateway"):
            if (run.folder / tier).exists() and alive(run.pid(tier)):
                os.kill(run.pid(tier), signal.SIGKILL)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    """A gateway that answers as told, where commands look for one."""
    with fake_gateway.running() as running:
        monkeypatch.setenv("RETOUCH_URL", running.url)
        yield running


@pytest.fixture
def edit(gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """`retouch edit WORDS` in a folder with photo.png; without words, an edit of it."""
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(PNG)
    return lambda *words: main(["edit", *(words or ("photo.png", "night"))])


def made() -> list[str]:
    """What lies in the current folder beside the photo, hidden files too."""
    return sorted(set(os.listdir()) - {"photo.png"})
