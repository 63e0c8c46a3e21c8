"""A Dockerfile's steps, done in a folder instead of an image: the same commands, with the image's paths under it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.images.dockerfile import ROOT, Instruction, context, read

# All stages share one root: what COPY --from and a mount from a stage would bring is there already.
PATHS = re.compile(r"(?<![\w/.])/(venv|src|wheels|scripts|tmp|cache)\b")
# What makes the image's accounts and adds Debian's packages is not for this machine.
SYSTEM = ("useradd", "apt-get")
COMMAND_SECONDS = 560


@dataclass
class Build:
    """What a build has come to: its root, the files it is made of, and the environment of its next step."""

    root: Path
    skip: Sequence[str] = ()  # commands with one of these in them are left out

    def __post_init__(self) -> None:
        self.context = self.root / "context"
        for path in context():
            (self.context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, self.context / path)
        for folder in ("src", "tmp", "cache"):
            (self.root / folder).mkdir()
        kept = {name: text for name, text in os.environ.items() if "RETOUCH_" not in name}
        # The image's base has a Python and a pip first on its path; here they are this interpreter's.
        base = f"{Path(sys.executable).parent}:{kept['PATH']}"
        self.environment = {**kept, "PATH": base, "OMP_NUM_THREADS": "1"}

    def here(self, text: str) -> str:
        """`text` with the image's paths as those under the root."""
        return PATHS.sub(rf"{self.root}/\1", text)

    def run(self, tier: str) -> None:
        """Do the steps of a tier's Dockerfile, in order. A command that fails fails the test, saying what it said."""
        for step in read(tier):
            match step.keyword:
                case "ARG":
                    name, _, default = step.value.partition("=")
                    self.environment[name] = default.strip('"')
                case "ENV":
                    self._set(step.value)
                case "COPY" if not step.flags:
                    self._copy(step.value)
                case "RUN" if not any(part in step.value for part in SYSTEM):
                    self._shell(step)

    def _set(self, value: str) -> None:
        for name, text in re.findall(r"(\w+)=(\S+)", value):
            path = self.environment["PATH"]
            self.environment[name] = self.here(text).replace("$PATH", path)

    def _copy(self, value: str) -> None:
        *sources, target = value.split()
        into = self.root / "src" / target
        for source in sources:
            if (self.context / source).is_dir():
                shutil.copytree(self.context / source, into, dirs_exist_ok=True)
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.context / source, into)

    def _shell(self, step: Instruction) -> None:
        for mount in step.mounts:
            if mount["type"] == "bind" and "from" not in mount:
                shutil.copytree(
                    self.context / mount["source"],
                    self.root / mount["target"].strip("/"),
                    dirs_exist_ok=True,
                )
        commands = [
            command
            for command in step.value.split("&&")
            if not any(part in command for part in self.skip)
        ]
        self.call("sh", "-ec", self.here("&&".join(commands)))

    def call(self, *command: str) -> str:
        """What a command says on stdout, run as the next step would be."""
        done = subprocess.run(
            command,
            cwd=self.root / "src",
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return done.stdout
