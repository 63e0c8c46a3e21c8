"""Safety checks: how they are found, what a refusal may say, and that the example of the docs is one."""

from __future__ import annotations

import importlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from retouch_cli.up import SAMPLE
from retouch_server import safety
from retouch_server.safety import CheckError, Checks, Refusal

DOCS = Path(__file__).parents[2] / "docs/safety.md"

MODULE = """
class Both:
    def before(self, request): ...
    def after(self, request, results): ...

class Late:
    def after(self, request, results): ...

class Async:
    async def before(self, request): ...

class Picky:
    def __init__(self, threshold): ...
    def before(self, request): ...

late = Late()
number = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`house.checks` and `broken` can be imported."""
    (tmp_path / "house").mkdir()
    (tmp_path / "house/checks.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("raise OSError('no\\nweights')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("house", "house.checks"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("module")
def test_checks_are_found_by_name_and_kept_in_order() -> None:
    names = ["house.checks:late", "house.checks:Both"]
    found = safety.load(names)
    assert list(found.after) == names
    assert list(found.before) == names[1:]
    assert type(found.after[names[1]]).__name__ == "Both"
    both: object = found.after[names[1]]
    assert both is found.before[names[1]], "one object has both"
    assert safety.load([]) == Checks()


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:Check", "nowhere:Check: ModuleNotFoundError: No module named 'nowhere'"),
        ("house.checks:Other", "AttributeError: .* has no attribute 'Other'"),
        ("broken:Check", "broken:Check: OSError: no weights"),
        ("house.checks:Picky", "TypeError: .*threshold"),
        ("house.checks:number", "house.checks:number has neither `before` nor `after`"),
        ("house.checks:Async", "house.checks:Async: .* plain functions"),
    ],
)
def test_a_name_that_leads_to_no_check(name: str, said: str) -> None:
    with pytest.raises(CheckError, match=said) as failure:
        safety.load(["house.checks:late", name])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("category", ["", "Nudity", "a b", "x" * 65, "é", "/etc"])
def test_what_a_category_may_be(category: str) -> None:
    with pytest.raises(ValueError, match="category"):
        Refusal(category)
    assert Refusal("self-harm/intent").reason == ""


@pytest.mark.parametrize("reason", ["two\nlines", "x" * 301, "\x1b[2J"])
def test_what_a_reason_may_be(reason: str) -> None:
    with pytest.raises(ValueError, match="reason"):
        Refusal("a", reason)


def test_the_interface_imports_neither_torch_nor_the_server() -> None:
    program = "import sys, retouch_server.safety; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    loaded = set(told.stdout.split())
    assert not loaded & {"torch", "grpc", "diffusers", "retouch_server.service"}
    assert "retouch_server.safety" in loaded


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)```$", DOCS.read_text(), re.DOTALL | re.MULTILINE)


def test_the_example_of_the_docs_passes_its_own_test(tmp_path: Path) -> None:
    rules, test = blocks("python")
    (tmp_path / "house_rules.py").write_text(rules)
    (tmp_path / "test_house_rules.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


def test_its_fingerprints_bear_scaling_and_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "house_rules.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    fingerprint = importlib.import_module("house_rules").fingerprint
    sys.modules.pop("house_rules")
    with Image.open(SAMPLE) as photo:
        one, other = photo.convert("RGB"), ImageOps.mirror(photo.convert("RGB"))
    small = io.BytesIO()
    one.resize((200, 150)).save(small, "JPEG", quality=60)
    known = fingerprint(one)
    assert (fingerprint(Image.open(small)) ^ known).bit_count() <= 4
    assert (fingerprint(other) ^ known).bit_count() > 20
