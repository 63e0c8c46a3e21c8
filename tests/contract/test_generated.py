"""The committed generated code is what the contract generates."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = Path("retouch/v1")


def generated(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / GENERATED).glob("*_pb2*.py*")}


def test_generated_code_is_current(tmp_path: Path) -> None:
    subprocess.run(
        [ROOT / "scripts/proto", tmp_path], env={**os.environ, "VENV": sys.prefix}, check=True
    )
    fresh = generated(tmp_path)
    assert sorted(fresh) == [
        "image_edit_pb2.py",
        "image_edit_pb2.pyi",
        "image_edit_pb2_grpc.py",
        "image_edit_pb2_grpc.pyi",
    ]
    assert generated(ROOT / "proto") == fresh, "run `make proto` and commit what it changes"
