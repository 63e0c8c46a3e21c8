"""What the chart makes of its own values and of each example, in full: a change of it is seen in review.

`RETOUCH_TESTS_GOLDEN=write pytest tests/helm/test_golden.py` writes them anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, EXAMPLES, Helm
from tests.helm.conftest import rendered

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    path.read_text().strip(): f"({path.relative_to(CHART)})"
    for folder in ("files", "scripts")
    for path in sorted((CHART / folder).rglob("*.*"))
    if path.is_file()
}
RULES = yaml.safe_load((CHART / "files/rules/retouch.yaml").read_text())


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such, lists indented, no anchors: to be read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def short(value: Any) -> Any:
    """The files of the chart by their names: a dashboard is reviewed where it is written."""
    if isinstance(value, dict):
        return (
            "(files/rules/retouch.yaml)"
            if value == RULES
            else {k: short(v) for k, v in value.items()}
        )
    if isinstance(value, list):
        return [short(each) for each in value]
    return FILES.get(value.strip(), value) if isinstance(value, str) else value


@pytest.mark.parametrize("case", ["defaults", *EXAMPLES])
def test_it_is_as_reviewed(helm: Helm, case: str) -> None:
    manifests = sorted(
        rendered(helm, case), key=lambda each: (each["kind"], each["metadata"]["name"])
    )
    made = yaml.dump_all(short(manifests), Dumper=_Dumper, sort_keys=False, width=120)
    path = GOLDEN / f"{case}.yaml"
    if os.environ.get("RETOUCH_TESTS_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(made)
    assert path.read_text() == made, f"look at what has changed, then write it anew: {__doc__}"


def test_there_is_none_of_a_case_that_is_gone() -> None:
    assert {path.stem for path in GOLDEN.glob("*")} == {"defaults", *EXAMPLES}
