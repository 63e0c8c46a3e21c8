"""What our Dockerfiles hold to beyond hadolint's rules. Each rule yields a sentence for each breach."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from tests.images.dockerfile import Instruction

NON_ROOT = "65532:65532"


def breaches(steps: Sequence[Instruction], sent: Sequence[str]) -> list[str]:
    """What is wrong with a Dockerfile, of which the builder is sent these files."""
    rules = (_bases, _process, _commands, _copies, _proof)
    return [breach for rule in rules for breach in rule(steps, sent)]


def _bases(steps: Sequence[Instruction], _sent: Sequence[str]) -> Iterator[str]:
    defaults = dict(step.value.split("=", 1) for step in steps if step.stage < 0)
    for step in steps:
        if step.keyword == "FROM":
            name = step.value.split()[0]
            base = defaults.get(name.strip("${}"), name)
            if ":" not in base or base.endswith(":latest"):
                yield f"{base} is not pinned"
            if "/" in base:
                yield f"{base} is of a registry of ours to choose, not the builder's"


def _process(steps: Sequence[Instruction], _sent: Sequence[str]) -> Iterator[str]:
    last = [step for step in steps if step.stage == steps[-1].stage]
    users = [step.value for step in last if step.keyword == "USER"]
    if users[-1:] != [NON_ROOT]:
        yield f"it runs as {users[-1:] or 'root'}"
    for step in last:
        if step.keyword in ("ENTRYPOINT", "CMD") and not step.value.startswith("["):
            yield f"{step.keyword} has a shell as process 1, which hands no signal on"
    if steps[-1].keyword != "ENTRYPOINT":
        yield "it does not end by saying what runs"


def _commands(steps: Sequence[Instruction], _sent: Sequence[str]) -> Iterator[str]:
    for step in steps:
        if step.keyword == "ADD":
            yield "ADD fetches and unpacks: COPY does not"
        if "://" in step.value:
            yield f"it names an address: {step.value}"
        if step.keyword != "RUN":
            continue
        for command in re.split(r"&&|;", step.value):
            if re.search(r"\b(sudo|curl|wget)\b", command):
                yield f"not from a package index: {command}"
            if re.search(r"\bpip\b.*\b(install|wheel)\b", command):
                if "--no-cache-dir" not in command:
                    yield f"keeps pip's cache: {command}"
                if not re.search(r"-c constraints\.txt|PIP_CONSTRAINT=|--no-index", command):
                    yield f"any version will do: {command}"
            if "apt-get install" in command and "--no-install-recommends" not in command:
                yield f"more than was asked for: {command}"


def _copies(steps: Sequence[Instruction], sent: Sequence[str]) -> Iterator[str]:
    for step in steps:
        if step.keyword != "COPY":
            continue
        if any("--chown" in flag for flag in step.flags):
            yield f"the process could change what it is made of: {step.value}"
        if not any("--from" in flag for flag in step.flags):
            for source in step.value.split()[:-1]:
                if source == "." or source.startswith("/"):
                    yield f"copies whatever is there: {source}"
                elif not any(f"{path}/".startswith(source.rstrip("/") + "/") for path in sent):
                    yield f"{source} does not reach the builder"


def _proof(steps: Sequence[Instruction], _sent: Sequence[str]) -> Iterator[str]:
    """The smoke test runs as the image will, and leaves nothing in it."""
    seen = False
    user = "root"
    for step in steps:
        user = step.value if step.keyword == "USER" else user
        if step.keyword == "RUN" and "smoke-" in step.value:
            seen = True
            if user != NON_ROOT:
                yield f"root tries it: {step.value}"
            if not step.value.endswith('test -z "$(ls -A /tmp)"'):
                yield f"what it writes would stay: {step.value}"
    if not seen:
        yield "nothing was tried"


def program(steps: Sequence[Instruction]) -> list[str]:
    """The command that an image runs."""
    command: list[str] = json.loads(steps[-1].value)
    return command
