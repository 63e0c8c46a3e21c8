"""The project's own wheel and sdist: all of its packages, and nothing beside."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.images.dockerfile import ROOT
from tests.images.test_context import PACKAGES


@pytest.fixture(scope="session")
def built(build_backend: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(build_backend)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder


def sources(of: Path) -> set[str]:
    """A package's files, by their paths from the folder it is in."""
    return {
        path.relative_to(of.parent).as_posix()
        for path in of.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_every_file_of_the_packages_and_no_other(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    expected = set().union(*(sources(ROOT / package) for package in PACKAGES))
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {
        "retouch/v1/image_edit.proto",
        "retouch_gateway/playground/index.html",
        "retouch_server/pocket/model/unet/diffusion_pytorch_model.safetensors",
    } <= expected


def test_the_sdist_has_them_too_and_no_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {
        f"{Path(package).parent.as_posix()}/{name}"
        for package in PACKAGES
        for name in sources(ROOT / package)
    }
    beside = {
        ".gitignore", "LICENSE", "PKG-INFO", "README.md", "constraints.txt", "pyproject.toml",
    }  # fmt: skip
    assert names == expected | beside
