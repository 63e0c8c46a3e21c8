"""`retouch up` as a child process, its output in files."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


def wait_for(what: Callable[[], Any], seconds: float, why: str) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {why}"
        time.sleep(0.02)


@dataclass
class Up:
    """A run of `retouch up` in `folder`."""

    process: subprocess.Popen[str]
    folder: Path
    seconds: float = 60.0

    @classmethod
    def start(
        cls, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
    ) -> Self:
        with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=err, text=True
            )
        return cls(process, folder)

    @property
    def output(self) -> str:
        return (self.folder / "stdout").read_text()

    def wait_ready(self) -> None:
        """Until it has said everything and only waits for Ctrl-C."""
        wait_for(
            lambda: "Ctrl-C" in self.output or self.process.poll() is not None,
            self.seconds,
            "ready",
        )
        assert self.process.poll() is None, (self.folder / "stderr").read_text()

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Its exit status and what it said on stderr, after the signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(self.seconds), (self.folder / "stderr").read_text()
