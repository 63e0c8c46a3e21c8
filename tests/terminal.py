"""A command on a terminal of its own, as a person has it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SECONDS = 120.0

# Makes its standard input the terminal that Ctrl-C comes from, and becomes the command.
ON_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        self.descriptor, theirs = pty.openpty()
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *command],
            cwd=folder,
            env={**variables, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def until(self, pattern: str) -> None:
        """Reads on until it is there, or the command has ended."""
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, self.output):
            assert time.monotonic() < deadline, self.output[-2000:]
            if select.select([self.descriptor], [], [], 0.1)[0]:
                try:
                    data = os.read(self.descriptor, 65536)
                except OSError:  # how Linux says that the other side is closed
                    return
                self.output += data.decode(errors="replace")

    def status(self) -> int:
        self.until(r"\Z.")
        os.close(self.descriptor)
        return self.process.wait(20)
