"""Which waiting denoiser calls share the next forward. Pure policy: no torch, no clock, no state."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """A denoiser call that waits for its answer."""

    @property
    def key(self) -> Hashable:
        """Calls with equal keys may share a forward."""

    @property
    def rows(self) -> int:
        """Rows that the call brings along the batch dimension, >= 1."""

    @property
    def since(self) -> int:
        """When it began to wait, in engine ticks."""


W = TypeVar("W", bound=Waiting)


def next_batch(waiting: Sequence[W], max_rows: int) -> list[W]:
    """Choose the calls of the next forward: all share a key, in order of waiting, at most `max_rows` rows.

    The call that has waited longest always goes, alone if it is larger than `max_rows`, so nothing starves: each
    forward serves the oldest, and who is served waits anew. Others of its key join while they fit; one that does
    not fit blocks none behind it.
    """
    if not waiting:
        return []
    oldest, *others = sorted(waiting, key=lambda call: call.since)
    batch, rows = [oldest], oldest.rows
    for call in others:
        if call.key == oldest.key and rows + call.rows <= max_rows:
            batch.append(call)
            rows += call.rows
    return batch


def room(free_slots: int, queued: int, running: int) -> int:
    """How many queued edits to start before the next forward.

    An idle engine fills its slots at once, so that what arrived together runs together. A busy one starts one, so
    that an encoding delays the edits under way by at most itself per step.
    """
    return min(queued, free_slots, 1 if running else free_slots)
