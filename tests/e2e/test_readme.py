"""Every request in the README and the API's docs, run as a reader would."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Tiers, tool

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "cli/retouch_cli/sample.jpg"


def blocks(language: str) -> list[object]:
    """Code blocks that talk to the gateway, named by file."""
    return [
        pytest.param(code, id=path)
        for path in ("README.md", "docs/api.md")
        for code in re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
        if "localhost:8000" in code
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("photo.jpg", "photo.png"):  # told by content, whatever the name says
        shutil.copy(SAMPLE, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("code", blocks("sh"))
def test_curl(code: str, tiers: Tiers, folder: Path) -> None:
    tool("curl")
    script = code.replace("http://localhost:8000", tiers.url)
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert httpx.get(json.loads(done.stdout)["data"][0]["url"]).status_code == 200


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code: str, tiers: Tiers, folder: Path) -> None:
    # The API's docs leave it to the reader where the picture comes from.
    given = f"b64 = {base64.b64encode(SAMPLE.read_bytes()).decode()!r}\n"
    (folder / "example.py").write_text(given + code.replace("http://localhost:8000", tiers.url))
    subprocess.run([sys.executable, "example.py"], cwd=folder, timeout=120, check=True)


def test_both_kinds_are_there() -> None:
    assert len(blocks("sh")) == len(blocks("python")) == 3
