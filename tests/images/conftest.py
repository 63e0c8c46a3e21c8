"""What needs a package index skips without one, which CI does not allow."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.images.dockerfile import ROOT

PROBE_SECONDS = 240


@pytest.fixture(scope="session")
def build_backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the project is built with, as pyproject.toml pins it; the proof that an index is reached."""
    folder = tmp_path_factory.mktemp("backend")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--target", str(folder), "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run(
        [*install, *project["build-system"]["requires"]],
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
    )
    if done.returncode:
        pytest.skip(f"pip reaches no package index: {done.stderr.strip().splitlines()[-1]}")
    return folder
