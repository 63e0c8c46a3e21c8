"""Both Dockerfiles against hadolint and our own rules, and the rules against what they are for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import retouch_gateway.settings
import retouch_server.settings
from tests.images import dockerfile
from tests.images.dockerfile import ROOT, TIERS
from tests.images.rules import breaches, program

HADOLINT = Path(sys.executable).with_name("hadolint")
SETTINGS: dict[str, Any] = {"gateway": retouch_gateway.settings, "server": retouch_server.settings}
GOOD = """
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt x \\
    && true
FROM ${BASE}
COPY --from=build /venv /venv
USER 65532:65532
RUN python smoke-x && test -z "$(ls -A /tmp)"
ENTRYPOINT ["x"]
"""
BAD = {  # what of GOOD becomes what, and a word of the complaint
    "no tag": ("python:3.11-slim", "python", "not pinned"),
    "latest": ("python:3.11-slim", "python:latest", "not pinned"),
    "a registry": ("python:3.11-slim", "r.example/python:3.11", "registry"),
    "root": ("USER 65532:65532\n", "", "runs as root"),
    "root again": ("ENTRYPOINT", "USER root\nENTRYPOINT", "runs as"),
    "a shell": ('ENTRYPOINT ["x"]', "ENTRYPOINT x", "process 1"),
    "ADD": ("COPY constraints.txt", "ADD constraints.txt", "ADD"),
    "an address": ("constraints.txt x", "constraints.txt --index-url https://x", "address"),
    "a download": ("true", "curl x", "index"),
    "a cache": ("--no-cache-dir ", "", "cache"),
    "no constraints": ("-c constraints.txt ", "", "any version"),
    "everything": ("COPY constraints.txt", "COPY .", "whatever"),
    "what is not sent": ("COPY constraints.txt", "COPY tests/", "does not reach"),
    "its own code": ("COPY --from=build", "COPY --from=build --chown=65532", "could change"),
    "a trace": (' && test -z "$(ls -A /tmp)"', "", "would stay"),
    "a trial by root": ("USER 65532:65532\nRUN", "RUN", "root tries it"),
    "no proof": ("python smoke-x", "true", "nothing was tried"),
    "no entry": ('ENTRYPOINT ["x"]\n', "", "what runs"),
}


@pytest.mark.parametrize("tier", TIERS)
def test_hadolint_finds_nothing(tier: str) -> None:
    path = str(ROOT / tier / "Dockerfile")
    command = [str(HADOLINT), "--failure-threshold", "style", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd / && pip install x\n")
    done = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 1
    assert {"DL3006", "DL3013"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("tier", TIERS)
def test_our_rules_are_kept(tier: str) -> None:
    assert breaches(dockerfile.read(tier), list(dockerfile.context())) == []


@pytest.mark.parametrize("case", BAD)
def test_our_rules_would_find_it(case: str) -> None:
    sent = ["constraints.txt"]
    assert breaches(dockerfile.parse(GOOD), sent) == []
    good, bad, complaint = BAD[case]
    assert good in GOOD
    found = breaches(dockerfile.parse(GOOD.replace(good, bad)), sent)
    assert any(complaint in breach for breach in found), found


@pytest.mark.parametrize("tier", TIERS)
def test_it_runs_the_tier_s_command(tier: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert program(dockerfile.read(tier)) == [f"retouch-{tier}"]
    assert f"retouch-{tier}" in scripts


@pytest.mark.parametrize("tier", TIERS)
def test_the_image_s_settings_and_ports_are_the_tier_s(tier: str) -> None:
    steps, known = dockerfile.read(tier), SETTINGS[tier]
    environment = " ".join(step.value for step in steps if step.keyword == "ENV")
    names = re.findall(rf"\b{known.PREFIX}(\w+)=", environment)
    assert names == ["HOST"]
    fields = known.Settings.model_fields
    assert {name.lower() for name in names} <= fields.keys()
    (ports,) = [step.value.split() for step in steps if step.keyword == "EXPOSE"]
    assert ports == [str(fields["port"].default), str(fields["metrics_port"].default)]


def test_both_tiers_have_one_base() -> None:
    bases = [next(s.value for s in dockerfile.read(tier) if s.stage < 0) for tier in TIERS]
    assert bases[0] == bases[1]
