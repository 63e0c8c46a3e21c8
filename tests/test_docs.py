"""Docs are tested: what is not written down fails here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import retouch_gateway.metrics
import retouch_gateway.settings
import retouch_server.metrics
import retouch_server.settings

ROOT = Path(__file__).parents[1]
OPERATING = (ROOT / "docs/operating.md").read_text()
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "helm/*/*.md")
    for page in ROOT.glob(pattern)
)
TIERS = {"server": retouch_server.settings, "gateway": retouch_gateway.settings}


@pytest.mark.parametrize("tier", TIERS)
def test_every_setting_is_in_the_docs_with_its_default_and_none_that_is_not(tier: str) -> None:
    settings: Any = TIERS[tier]
    rows = dict(re.findall(rf"^\| `{settings.PREFIX}(\w+)` \| (.+?) \|", OPERATING, re.MULTILINE))
    fields = {name.upper(): field.default for name, field in settings.Settings.model_fields.items()}
    assert rows.keys() == fields.keys()
    for name, default in fields.items():
        shown = "unset" if default is None else f"`{str(default).lower()}`"
        assert rows[name].lower() == shown, name


def names(metrics: Any) -> set[str]:
    families = [
        family for family in metrics.registry.collect() if family.name.startswith("retouch")
    ]
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


@pytest.mark.parametrize(
    ("tier", "metrics"),
    [
        ("server", retouch_server.metrics.Metrics(["pocket"])),
        ("gateway", retouch_gateway.metrics.Metrics()),
    ],
)
def test_every_metric_is_in_the_docs_and_none_that_is_not(tier: str, metrics: Any) -> None:
    assert set(re.findall(rf"^\| `(retouch_{tier}_\w+)`", OPERATING, re.MULTILINE)) == names(
        metrics
    )


def test_every_make_target_is_in_the_docs() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert targets
    assert [target for target in targets if f"`make {target}`" not in contributing] == []


@pytest.mark.parametrize("path", PAGES)
def test_links_between_files_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", text):
        target = link[0] or link[1]
        if "://" not in target:
            assert (ROOT / path).parent.joinpath(target).exists(), target


def anchors(page: Path) -> set[str]:
    """What links to its sections may be, as GitHub makes them of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES)
def test_links_to_sections_lead_somewhere(path: str) -> None:
    page = ROOT / path
    for file, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text()):
        target = page.parent / file if file else page
        assert anchor in anchors(target), f"{file}#{anchor}"


@pytest.mark.parametrize("path", ["SECURITY.md", "docs/reliability.md"])
def test_every_test_that_is_said_to_hold_a_promise_exists(path: str) -> None:
    """`tests/x.py::test_y`; `::test_z` behind it is of the same file, in the next rows of a table too."""
    missing, here = [], ""
    said = re.findall(r"(tests/[\w/.]*\w)?(?:::(test_\w+))?", (ROOT / path).read_text())
    for file, name in filter(any, said):
        if file.startswith("tests/output"):  # what a run leaves
            continue
        here = file or here
        if not (ROOT / here).exists():
            missing.append(here)
        elif name and f"def {name}(" not in (ROOT / here).read_text():
            missing.append(f"{here}::{name}")
    assert any(file for file, _ in said)
    assert missing == []
