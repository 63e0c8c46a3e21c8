"""The fuzzer's targets, over its seeds and what chance makes of them; guided by coverage they run by `make fuzz`."""

from __future__ import annotations

import random

import pytest

from tests.hostile.decoding import mutated
from tests.hostile.fuzz import TARGETS, seeds
from tests.hostile.report import LONG, Report

COUNT = 100_000 if LONG else 3000


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(900)
def test_a_target_lets_out_nothing_else(name: str, report: Report) -> None:
    target, begun, chance = TARGETS[name], list(seeds(name)), random.Random(3)
    for data in begun:
        target(data)
    for _ in range(COUNT):
        data = mutated(chance.choice(begun) or b"\0", chance)
        try:
            target(data)
        except Exception as error:
            error.add_note(f"{name}: {data[:2000]!r}")
            raise
    report.note("fuzz targets", **{name: len(begun) + COUNT})
