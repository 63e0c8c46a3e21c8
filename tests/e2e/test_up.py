"""`retouch up` as its user runs it, with the real tiers."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests import run_up
from tests.e2e.conftest import BIN, environment, free_ports, tool
from tests.e2e.pictures import photo, pixels, warmth

READY_SECONDS = 60.0


class Up(run_up.Up):
    """A run with the real tiers."""

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """As ever; and no child is left."""
        ended = super().end(number)
        assert tiers_in(self.folder) == {}
        return ended


def tiers_in(folder: Path) -> dict[str, int]:
    """The tiers that run in the folder, by name, with their process ids."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cwd").readlink() != folder:
                continue
            words = process.joinpath("cmdline").read_text().split("\0")
        except OSError:
            continue  # gone, or a zombie
        names = {Path(word).name for word in words}
        for name in names & {"retouch-server", "retouch-gateway"}:
            found[name] = int(process.name)
    return found


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    runs: list[Up] = []

    def start(*arguments: str, **variables: str) -> Up:
        store = str(tmp_path / "store")
        given = environment(**{**free_ports(), "RETOUCH_GATEWAY_STORE": store, **variables})
        runs.append(Up.start([BIN / "retouch", "up", *arguments], tmp_path, given))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
    for pid in tiers_in(tmp_path).values():
        os.kill(pid, signal.SIGKILL)


def test_two_commands_later_there_is_a_picture(up: Callable[..., Up]) -> None:
    tool("curl")
    run = up()
    run.wait_ready()
    assert re.search(r"Ready in [0-9.]+ s", run.output)
    url = re.search(r"http://\S+", run.output)
    assert url is not None
    opened = httpx.get(url[0])
    assert opened.status_code == 200
    assert warmth(pixels(opened.content)) > warmth(pixels(photo())) + 30
    saved = re.search(r"saved +(\S+)", run.output)
    assert saved is not None
    assert (run.folder / saved[1]).read_bytes() == opened.content
    for page in re.findall(r"http://\S+/metrics\b", run.output):
        assert "retouch_" in httpx.get(page).text

    command = run.output[run.output.index("(printf") : run.output.index("\n\nCtrl-C")]
    assert "curl" in command
    printed = subprocess.run(
        ["bash", "-c", command], cwd="/", check=True, capture_output=True, text=True
    )
    assert httpx.get(json.loads(printed.stdout)["data"][0]["url"]).status_code == 200

    assert set(tiers_in(run.folder)) == {"retouch-server", "retouch-gateway"}
    started = time.monotonic()
    assert run.end(signal.SIGINT) == (0, "")
    assert time.monotonic() - started < 10


def test_a_killed_server(up: Callable[..., Up]) -> None:
    run = up("--no-edit")
    run.wait_ready()
    os.kill(tiers_in(run.folder)["retouch-server"], signal.SIGKILL)
    status, said = run.end()
    assert status == 1
    assert re.fullmatch(r"retouch: retouch-server was killed by SIGKILL; log: .*\n", said)


@pytest.mark.parametrize("models", ["mine=/nowhere/at/all", "sidewalk"])
def test_a_missing_model(up: Callable[..., Up], models: str) -> None:
    status, said = up("--models", models).end()
    assert status == 1
    assert re.fullmatch(r"retouch: retouch-server ended with code \d: .*\n", said), said
    assert models.removeprefix("mine=") in said


def test_a_setting_that_is_wrong(up: Callable[..., Up]) -> None:
    status, said = up(RETOUCH_GATEWAY_TTL="soon").end()
    assert status == 1
    assert re.fullmatch(r"retouch: retouch-gateway ended with code 2: .*\n", said), said
    assert "RETOUCH_GATEWAY_TTL" in said


def test_a_taken_port(up: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = up(RETOUCH_GATEWAY_PORT=str(port)).end()
    assert status == 1
    assert re.fullmatch(rf"retouch: cannot listen on .*:{port} \(RETOUCH_GATEWAY_PORT.*\n", said)
