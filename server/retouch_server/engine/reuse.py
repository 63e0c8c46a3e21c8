"""Skipping forwards whose answer an edit's own last ones predict well.

Along most of its way a model's answer changes little from step to step, and in proportion to its input. The proportion,
measured between the last two real answers, says how far the next is likely to have moved; while these estimates add
up to less than a threshold, the last answer stands in for the next. The estimate is EasyCache's
(https://arxiv.org/abs/2507.02860), kept per edit here instead of in the model, so that it survives batching.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class _Trail:
    """The last real call of one kind, and how answers have moved with inputs."""

    input: Tensor
    answer: Tensor
    rate: float | None = None
    drift: float = 0.0
    seen: Tensor | None = None


class Reuse:
    """One edit's. `threshold`: how far an answer may have drifted, relative to its size; about 0.02 .. 0.2."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._trails: dict[int, _Trail] = {}

    def guess(self, which: int, input: Tensor) -> Tensor | None:
        """The answer to a call with `input`, if it is known well enough. `which`: of a step's several calls."""
        trail = self._trails.get(which)
        if trail is None or trail.rate is None or trail.input.shape != input.shape:
            return None
        moved = _norm(input - (trail.input if trail.seen is None else trail.seen))
        trail.seen = input
        trail.drift += trail.rate * moved / max(_norm(trail.answer), 1e-12)
        return trail.answer if trail.drift < self.threshold else None

    def learn(self, which: int, input: Tensor, answer: Tensor) -> None:
        """Take in the real answer to a call."""
        last = self._trails.get(which)
        trail = _Trail(input, answer)
        # Some models are given more in their first call, and keep it.
        alike = last is not None and last.input.shape == input.shape
        if last is not None and alike and (moved := _norm(input - last.input)):
            trail.rate = _norm(answer - last.answer) / moved
        self._trails[which] = trail


def _norm(tensor: Tensor) -> float:
    return float(tensor.float().norm())
