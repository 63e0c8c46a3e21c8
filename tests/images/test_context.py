"""What a builder is sent: the allow-list in .dockerignore."""

from __future__ import annotations

import pytest

from tests.images.dockerfile import ROOT, Ignore, context

IGNORE = Ignore.parse((ROOT / ".dockerignore").read_text())
PACKAGES = (
    "cli/retouch_cli",
    "gateway/retouch_gateway",
    "proto/retouch",
    "server/retouch_server",
)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        ".venv/bin/python",
        "keys.toml",
        "tests/conftest.py",
        "bench/LOG.md",
        "docs/pictures/edits.png",
        "gateway/Dockerfile",
        "gateway/keys.toml",
        "scripts/pictures",
        "server/retouch_server/__pycache__/service.cpython-311.pyc",
        "server/retouch_server/engine/__pycache__/edit.cpython-311.pyc",
    ],
)
def test_it_stays_here(path: str) -> None:
    assert not IGNORE.sends(path)


def test_all_of_the_packages_is_sent_and_hardly_more() -> None:
    sent = set(context())
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= sent
    assert "server/retouch_server/pocket/model/unet/diffusion_pytorch_model.safetensors" in sent
    assert {path for path in sent - files if not path.startswith("scripts/smoke-")} == {
        "LICENSE",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
        "scripts/requirements",
    }


def test_rules_are_read_as_docker_reads_them() -> None:
    ignore = Ignore.parse("# a list\n*\n!a/b\n!c*\n**/*.py[co]\n**/cache\nc/?.txt\n")
    sent = ["a/b", "a/b/c/d.py", "c", "cd/e", "c/ab.txt", "a/b/pyc"]
    kept = ["a", "a/c", "b", "a/b/x.pyc", "c.pyc", "a/b/cache/x", "c/a.txt", "x/c"]
    assert [path for path in sent if not ignore.sends(path)] == []
    assert [path for path in kept if ignore.sends(path)] == []
