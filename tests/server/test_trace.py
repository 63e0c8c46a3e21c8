"""What an edit remembers for its caller's trace: the forwards that it shared, and when its phases were."""

from __future__ import annotations

from typing import Any

import pytest

from retouch_server.engine.edit import Edit
from retouch_server.engine.rows import Call
from retouch_server.engine.trace import Trace, remember


def call_of(rows: int, tokens: int, trace: Trace | None) -> Call:
    return Call({}, "key", rows, tokens=tokens, trace=trace)


def test_a_forward_is_remembered_once_by_those_who_are_traced() -> None:
    one, two = Trace("one", "m"), Trace("two", "m")
    remember([call_of(3, 10, one), call_of(1, 7, None), call_of(3, 10, two)], 5.0, 0.5)
    remember([call_of(3, 10, two)], 6.0, 0.5)
    remember([call_of(3, 10, None)], 7.0, 0.5)
    (first,), (also, second) = one.forwards, two.forwards
    assert first is also
    assert (first.rows, first.tokens, first.calls, first.spans) == (7, 67, 3, ["one", "two"])
    assert (first.started_at, first.ended_at, second.started_at) == (5.0, 5.5, 6.0)


@pytest.mark.parametrize(
    ("times", "steps", "phases"),
    [
        ((1, None, None, None, 9), 0, [("queue", 1, 9)]),
        ((1, 2, None, None, 9), 0, [("queue", 1, 2), ("encode", 2, 9)]),
        ((1, 2, 3, 4, 9), 1, [("queue", 1, 2), ("encode", 2, 3), ("denoise", 3, 9)]),
        (
            (1, 2, 3, 4, 9),
            5,
            [("queue", 1, 2), ("encode", 2, 3), ("denoise", 3, 4), ("decode", 4, 9)],
        ),
    ],
)
def test_phases_are_those_that_it_has_come_to(
    times: Any, steps: int, phases: list[tuple[str, float, float]]
) -> None:
    names = ("queued_at", "started_at", "denoising_at", "denoised_at", "ended_at")
    run: Any = None
    each = Edit(run, total=5, steps=steps, **dict(zip(names, times, strict=True)))
    assert each.phases == phases


def test_phases_last_until_now_while_they_do() -> None:
    run: Any = None
    ((name, _, end),) = Edit(run).phases
    ((_, _, later),) = Edit(run).phases
    assert name == "queue"
    assert later >= end > 0
