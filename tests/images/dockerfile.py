"""Dockerfiles and .dockerignore as data, as far as ours use them: no here-documents, no escapes but at a line's end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
TIERS = ("gateway", "server")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword in capitals, `--flags`, the rest as written, and the number of its stage from 0.

    Before the first FROM the stage is -1.
    """

    keyword: str
    flags: tuple[str, ...]
    value: str
    stage: int

    @property
    def mounts(self) -> list[dict[str, str]]:
        """The fields of each `--mount`."""
        texts = [flag.removeprefix("--mount=") for flag in self.flags if "--mount=" in flag]
        return [dict(field.split("=", 1) for field in text.split(",")) for text in texts]


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile in order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[Instruction] = []
    stage = -1
    for line in filter(str.strip, joined.splitlines()):
        keyword, _, rest = line.strip().partition(" ")
        words = rest.split()
        flags = tuple(words[: next(i for i, word in enumerate(words) if word[:2] != "--")])
        for flag in flags:
            rest = rest.replace(flag, "", 1)
        stage += keyword.upper() == "FROM"
        found.append(Instruction(keyword.upper(), flags, rest.strip(), stage))
    return found


def read(tier: str) -> list[Instruction]:
    """A tier's Dockerfile."""
    return parse((ROOT / tier / "Dockerfile").read_text())


@dataclass(frozen=True)
class Ignore:
    """A .dockerignore: the last rule that fits a path, or a folder it is in, decides."""

    rules: tuple[tuple[bool, re.Pattern[str]], ...]

    @classmethod
    def parse(cls, text: str) -> Ignore:
        lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
        return cls(tuple((line[0] != "!", _pattern(line.lstrip("!"))) for line in lines))

    def sends(self, path: str) -> bool:
        """Whether a file, by its path below the root, reaches the builder."""
        each = PurePosixPath(path)
        folders = [str(part) for part in (each, *each.parents)]
        sent = True
        for excludes, pattern in self.rules:
            if any(map(pattern.fullmatch, folders)):
                sent = not excludes
        return sent


def _pattern(rule: str) -> re.Pattern[str]:
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", rule)
    return re.compile(
        "".join(part if part[:1] == "[" else tokens.get(part, re.escape(part)) for part in parts)
    )


def context(root: Path = ROOT) -> Iterator[str]:
    """The paths of the files that reach the builder."""
    ignore = Ignore.parse((root / ".dockerignore").read_text())
    for folder, folders, files in os.walk(root):
        # For speed alone: hundreds of thousands of files, none of which is sent.
        folders[:] = [name for name in folders if name not in {".git", ".venv", "node_modules"}]
        for name in files:
            path = (Path(folder) / name).relative_to(root).as_posix()
            if ignore.sends(path):
                yield path
