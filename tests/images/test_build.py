"""The steps of both Dockerfiles, really done, in folders instead of images."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.images.build import Build
from tests.images.dockerfile import ROOT
from tests.images.pins import normal, pins

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("build_backend")]
SMALL_MB = 180
# Not in constraints.txt: torch's own metadata pins each of these to the letter.
PINNED_BY_TORCH = ("nvidia-", "cuda-toolkit", "triton")


def files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]


def packages(build: Build) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return build.root / "venv/lib" / version / "site-packages"


def test_the_gateway_s_image_builds_is_small_and_exact(tmp_path: Path) -> None:
    build = Build(tmp_path)
    build.run("gateway")

    found = importlib.metadata.distributions(path=[str(packages(build))])
    versions = {normal(each.name): each.version for each in found if each.name != "retouch"}
    assert versions.items() <= pins().items()
    assert {"starlette", "obstore", "redis", "opentelemetry-sdk", "rich"} <= versions.keys()
    assert "torch" not in versions

    # Who has the image alone can still make a key, and finds no command that cannot start.
    assert build.call("retouch", "key", "new", "ada").strip()
    commands = {path.name for path in (tmp_path / "venv/bin").glob("retouch*")}
    assert commands == {"retouch", "retouch-gateway"}

    size = sum(path.stat().st_size for path in (tmp_path / "venv").rglob("*") if path.is_file())
    assert size < SMALL_MB * 2**20
    assert files(tmp_path / "tmp") == []


def test_the_server_s_image_builds_and_edits_from_its_own_files(tmp_path: Path) -> None:
    """With this interpreter's torch and other packages: the image's own take gigabytes."""
    build = Build(tmp_path, skip=("requirements", "smoke-packages"))
    packages(build).mkdir(parents=True)
    (packages(build) / "these.pth").write_text(sysconfig.get_path("purelib") + "\n")
    build.run("server")

    found = build.call("python", "-c", "import retouch_server; print(retouch_server.__file__)")
    assert Path(found.strip()).is_relative_to(packages(build))
    assert (packages(build) / "retouch_server/__pycache__").is_dir()  # a read-only root adds none
    for other in ("retouch_gateway", "retouch_cli"):
        assert not (packages(build) / other).exists()
    commands = {path.name for path in (tmp_path / "venv/bin").glob("retouch*")}
    assert commands == {"retouch-server"}
    assert files(tmp_path / "tmp") == []
    assert files(tmp_path / "cache") == []


def test_the_server_s_packages_are_exact(tmp_path: Path) -> None:
    """As pip would choose them, without fetching torch."""
    needs = subprocess.run(
        [ROOT / "scripts/requirements", "server", "tracing"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    report = tmp_path / "report.json"
    resolve = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    resolve += ["--report", str(report), "-c", str(ROOT / "constraints.txt"), *needs, "torchvision"]
    done = subprocess.run(resolve, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    found = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    versions = {normal(each["name"]): each["version"].partition("+")[0] for each in found}
    loose = {
        name: version
        for name, version in versions.items()
        if pins().get(name) != version and not name.startswith(PINNED_BY_TORCH)
    }
    assert loose == {}
    assert {"torch", "torchvision", "diffusers", "opentelemetry-sdk"} <= versions.keys()
