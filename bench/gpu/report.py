"""Results as they come, a JSON object a line, and as tables at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""`kind` (machine, cell, overhead or budget) and what was measured, or `reason`: why it was not."""


class Report:
    """Every record is in `folder`/gpu.jsonl as soon as it is made; `finish` adds the tables, in gpu.txt too."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.records: list[Record] = []
        self._folder = folder
        (folder / "gpu.jsonl").write_text("")

    def add(self, record: Record) -> None:
        self.records.append(record)
        line = json.dumps(record)
        with (self._folder / "gpu.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def measured(self, kind: str, **equal: Any) -> list[Record]:
        """The records of a kind that have figures, and these values."""
        return [
            record
            for record in self.records
            if record["kind"] == kind
            and "reason" not in record
            and all(record[name] == value for name, value in equal.items())
        ]

    def finish(self) -> None:
        for budget in budgets(self.measured("cell")):
            self.add(budget)
        text = "\n\n".join([_cells(self), _table(self, "overhead"), _table(self, "budget")])
        (self._folder / "gpu.txt").write_text(text + "\n")
        print("\n" + text, flush=True)


def knee(points: Sequence[tuple[int, float]], within: float = 1.1) -> int:
    """Of (batch, ms per row), ascending: the smallest batch within `within` times the best ms per row."""
    best = min(ms for _, ms in points)
    return next(batch for batch, ms in points if ms <= within * best)


def budgets(cells: Sequence[Record]) -> list[Record]:
    """Per architecture, mode and side: the fewest tokens in a forward at which ms per row is within 10 % of its best.

    `more`: that was the largest batch that was measured, and a larger one may be better still.
    """
    names = ("architecture", "mode", "side")
    ordered = sorted(cells, key=lambda cell: [cell[name] for name in (*names, "edits")])
    records = []
    for key, group in groupby(ordered, key=lambda cell: [cell[name] for name in names]):
        by_edits = {cell["edits"]: cell for cell in group}
        edits = knee([(n, cell["ms_per_row"]) for n, cell in by_edits.items()])
        found = {name: by_edits[edits][name] for name in ("edits", "tokens", "ms_per_row")}
        more = edits == max(by_edits)
        records.append(
            {"kind": "budget", **dict(zip(names, key, strict=True)), **found, "more": more}
        )
    return records


def _cells(report: Report) -> str:
    """A line per cell. batching: ms per row to that of one edit; compiling: ms to eager's, as factors gained."""
    lines = [
        ["architecture", "side", "edits", "rows", "tokens", "mode", "ms/step", "ms/row", "batching", "compiling",
         "TFLOP/s", "of matmul"]
    ]  # fmt: skip
    every = [record for record in report.records if record["kind"] == "cell"]
    names = [cell["architecture"] for cell in every]
    for cell in sorted(
        every, key=lambda c: (names.index(c["architecture"]), c["side"], c["edits"])
    ):
        line = [str(cell[n]) for n in ("architecture", "side", "edits", "rows", "tokens", "mode")]
        lines.append(line + (_figures(report, cell) if "ms" in cell else [cell["reason"]]))
    return _align(lines)


def _figures(report: Report, cell: Record) -> list[str]:
    same = {"architecture": cell["architecture"], "side": cell["side"]}
    alone = report.measured("cell", **same, mode=cell["mode"], edits=1)
    eager = report.measured("cell", **same, mode="eager", edits=cell["edits"])
    return [
        f"{cell['ms']:.2f}",
        f"{cell['ms_per_row']:.2f}",
        f"{alone[0]['ms_per_row'] / cell['ms_per_row']:.2f}" if alone else "",
        f"{eager[0]['ms'] / cell['ms']:.2f}" if eager else "",
        f"{cell['tflops']:.1f}",
        f"{cell['of_matmul']:.1%}",
    ]


def _table(report: Report, kind: str) -> str:
    """The records of a kind, a column for each of their values."""
    records = report.measured(kind)
    if not records:
        return f"{kind}: nothing was measured"
    names = [name for name in records[0] if name != "kind"]
    return f"{kind}\n" + _align([names, *([_short(r[name]) for name in names] for r in records)])


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _align(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them; what ends a short line, a reason, may run on."""
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
