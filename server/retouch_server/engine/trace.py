"""What is remembered of an edit whose caller traces it. Spans are made of it later, off the engine's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(eq=False)
class Forward:
    """One forward of the denoiser. `rows` and `tokens`: of all its calls, without fillers; times as an `Edit`'s.

    `calls`: how many, each another edit's. `spans`: those of the edits that are traced. `context`: what became of this.
    """

    rows: int
    tokens: int
    calls: int
    started_at: float
    ended_at: float
    spans: Sequence[Any]
    context: Any = None


@dataclass(eq=False)
class Trace:
    """`span`: the edit's own, of whatever kind its maker has. `model`: an id. `forwards`: those it shared, in order."""

    span: Any
    model: str
    forwards: list[Forward] = field(default_factory=list)


class Traced(Protocol):
    """A denoiser call, as `rows.Call`."""

    rows: int
    tokens: int
    trace: Trace | None


def remember(calls: Sequence[Traced], started_at: float, seconds: float) -> None:
    """Let the edits that are traced know of a forward that they shared; where none is, nothing is spent."""
    traces = [call.trace for call in calls if call.trace]
    if not traces:
        return
    rows, tokens = sum(call.rows for call in calls), sum(call.rows * call.tokens for call in calls)
    spans = [trace.span for trace in traces]
    forward = Forward(rows, tokens, len(calls), started_at, started_at + seconds, spans)
    for trace in traces:
        trace.forwards.append(forward)
