"""What may import what, seen in fresh processes: the contract is the only code the tiers share."""

import json
import subprocess
import sys

import pytest

LOOK = (
    "import importlib, json, sys; importlib.import_module({!r}); print(json.dumps([*sys.modules]))"
)


def imported_by(module: str) -> set[str]:
    """The top-level and full names of all modules that a fresh process has after importing one."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(module)], capture_output=True, check=True, text=True
    )
    names = set(json.loads(done.stdout.splitlines()[-1]))
    assert module in names
    return names


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("retouch_gateway.app", {"retouch_server", "torch", "diffusers", "numpy", "retouch_cli"}),
        ("retouch_gateway.process", {"retouch_server", "torch", "diffusers", "retouch_cli"}),
        ("retouch_server.__main__", {"retouch_gateway", "starlette", "uvicorn", "retouch_cli"}),
        ("retouch_server.engine.batching", {"torch", "diffusers"}),
        ("retouch_cli.commands", {"retouch_gateway", "retouch_server", "retouch", "grpc", "torch"}),
        ("retouch.v1.image_edit_pb2_grpc", {"retouch_gateway", "retouch_server", "torch"}),
    ],
)
def test_imports(module: str, never: set[str]) -> None:
    assert imported_by(module) & never == set()
