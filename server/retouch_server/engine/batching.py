"""Which waiting denoiser calls share the next forward, and when a phase may run. Pure policy: no torch, no clock.

A forward of N tokens takes about a + b*N seconds, so sharing pays while N is small against a/b; beyond, taking turns
serves callers sooner. `max_tokens` is where that changes, measured per model.

- Calls of equal key, two of which fit the budget together, form a bucket: as many as fit share a forward. Calls that
  fit with no other, whatever their keys, form one more bucket, whose forwards are single calls.
- Within a bucket, least remaining work first: steps left x rows x tokens. What does not fit blocks none behind it.
- Between buckets, deficit round robin: while it waits each earns tokens in proportion to its calls, and the first that
  can pay for its next forward has it. A bucket that was served or has emptied starts from nothing.
- Memory: after a forward that ran out of it none of more than half of its tokens is shared, for `HOLD` forwards.
- Ageing: a call that `PATIENCE` x (calls waiting) forwards have passed over goes next. With at most n edits under way,
  no call waits for more than (PATIENCE + 1) x n - 1 forwards of others, whatever arrives.

Chosen by simulation (`bench/policy.py`: two sizes, 4 to 30 steps, eight slots; mean latency): earning per call instead
of per bucket, -10 to -26 % at 1.2 of capacity; one bucket for all single calls instead of one per key, -14 % at 0.8
where compute-bound; least work instead of longest wait first in a shared bucket, 0 to -16 %; PATIENCE 8 instead of 4,
0 to -12 %, while no ageing at all would save another 11 % and, past capacity, triple the longest latency.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

PATIENCE = 8
HOLD = 1000
ALONE = "alone"


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
        """`Policy.forwards` when it began to wait."""

    @property
    def tokens(self) -> int:
        """Tokens per row, >= 1: latents, references and text; only ratios matter."""

    @property
    def remaining(self) -> int:
        """Denoiser steps that its edit has left, this one included, >= 1. An estimate will do."""


C = TypeVar("C", bound=Waiting)


class Policy:
    """Chooses the calls of each forward of one denoiser.

    max_rows:   rows per forward.
    max_tokens: tokens (rows x tokens per row) per forward; None: unknown, so only `max_rows` limits.
    least_rows: rows that every forward is filled up to: as many go together whatever their tokens.

    A single call beyond either still goes, alone.
    """

    def __init__(
        self, *, max_rows: int, max_tokens: int | None = None, least_rows: int = 1
    ) -> None:
        self.max_rows, self.max_tokens, self.least_rows = max_rows, max_tokens, least_rows
        self.forwards = 0
        self._ceiling: tuple[int, int] | None = None  # tokens, and until which forward
        self._credits: dict[Hashable, float] = {}

    def next_batch(self, waiting: Sequence[C]) -> list[C]:
        """The calls of the next forward, all of one key; none only if none waits.

        Ties go by age, then by the order in `waiting`.
        """
        if not waiting:
            self._credits = {}
            return []
        oldest = min(waiting, key=lambda call: call.since)
        overdue = self.forwards - oldest.since >= PATIENCE * len(waiting)
        order = sorted(
            waiting,
            key=lambda call: (
                not (overdue and call is oldest),
                call.remaining * _size(call),
                call.since,
            ),
        )
        buckets = self._buckets(order)
        batches = {name: self._fill(calls) for name, calls in buckets.items()}
        self.forwards += 1
        # In an overdue call's forward nobody earns: it is out of turn.
        name = next(iter(buckets)) if overdue else self._earn(buckets, batches)
        self._credits = {n: self._credits.get(n, 0.0) for n in buckets if n != name}
        return batches[name]

    def too_large(self, batch: Sequence[C]) -> None:
        """Memory ran out in a forward of these: for a while none of more than half of it is shared."""
        half = max(1, sum(map(_size, batch)) // 2)
        before = self._ceiling[0] if self._ceiling and self.short else half
        self._ceiling = min(half, before), self.forwards + HOLD

    @property
    def limit(self) -> int | None:
        """Tokens that a shared forward may have now: `max_tokens`, or less after memory has run out."""
        if not self._ceiling or not self.short:
            return self.max_tokens
        ceiling, _ = self._ceiling
        return ceiling if self.max_tokens is None else min(ceiling, self.max_tokens)

    @property
    def short(self) -> bool:
        """Whether memory has run out lately."""
        return self._ceiling is not None and self.forwards < self._ceiling[1]

    def _buckets(self, order: Sequence[C]) -> dict[Hashable, list[C]]:
        """Who may go with whom, in the given order, which is also that of the buckets' first calls."""
        alike: dict[Hashable, list[C]] = {}
        for call in order:
            alike.setdefault(call.key, []).append(call)
        smallest = {key: sorted(calls, key=_size)[:2] for key, calls in alike.items()}
        buckets: dict[Hashable, list[C]] = {}
        for call in order:
            shares = any(o is not call and self._fits([call, o]) for o in smallest[call.key])
            buckets.setdefault((call.key,) if shares else ALONE, []).append(call)
        return buckets

    def _fits(self, calls: Sequence[C]) -> bool:
        """Whether the calls fit one forward."""
        rows, limit = sum(call.rows for call in calls), self.limit
        free = 1 if self.short else self.least_rows  # forwards are not filled up then
        return rows <= self.max_rows and (
            limit is None or rows <= free or sum(map(_size, calls)) <= limit
        )

    def _fill(self, calls: Sequence[C]) -> list[C]:
        """The first call, and of its key whatever fits with it."""
        batch = [calls[0]]
        for call in calls[1:]:
            if call.key == batch[0].key and self._fits([*batch, call]):
                batch.append(call)
        return batch

    def _earn(self, buckets: dict[Hashable, list[C]], batches: dict[Hashable, list[C]]) -> Hashable:
        """Let all buckets earn until the first can pay for its batch: that one's name."""
        rounds = {
            name: max(0.0, sum(map(_size, batch)) - self._credits.get(name, 0.0))
            / len(buckets[name])
            for name, batch in batches.items()
        }
        name = min(rounds, key=lambda n: (rounds[n], min(call.since for call in buckets[n])))
        for other, calls in buckets.items():
            self._credits[other] = self._credits.get(other, 0.0) + rounds[name] * len(calls)
        return name


def _size(call: Waiting) -> int:
    return call.rows * call.tokens


def phase_allowed(*, stepping: bool, spent: float, last_forward: float) -> bool:
    """Whether one more phase (a text encoding, a VAE's encoding or decoding) may run before the next forward.

    stepping:     a call waits whose edit has done a step, so a phase would delay it.
    spent:        seconds that phases took since the last forward.
    last_forward: seconds that it took.

    One may, and more until they took as long as the forward did: an edit under way is held up by less than the last
    forward and one phase. All may while nobody is held up, so a burst on an idle engine starts together. One at a time
    keeps edits of few steps from company (4 steps at 1.2 of capacity: 4.7 times this rule's mean latency, 1.3 rows per
    forward instead of 1.9); all at once holds edits up for 40 % longer and gains 2 %. The oldest edit's phase goes
    first: to decode first made no difference, to encode first was worse.
    """
    return not stepping or spent < last_forward
