"""What the tests of this folder have found, in figures: tests/output/hostile.json, and a line each at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# More of everything: for hours, not for each commit.
LONG = os.environ.get("RETOUCH_TESTS_LONG") == "1"
FILE = Path(__file__).parents[1] / "output/hostile.json"


class Report:
    """Figures by what they are of."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, Any]] = {}

    def note(self, of: str, **figures: Any) -> None:
        self.figures.setdefault(of, {}).update(figures)

    def write(self) -> None:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(self.figures, indent=1) + "\n")

    def lines(self) -> list[str]:
        return [
            f"{of}: {', '.join(f'{name} {value}' for name, value in figures.items())}"
            for of, figures in self.figures.items()
        ]
