"""One forward of the denoiser for calls that fit together; where it fails, again with fewer of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from retouch_server.memory import is_exhaustion

from .batching import Policy
from .cache import is_finite
from .coroutine import OnFault
from .rows import Call, Rows
from .trace import remember

log = logging.getLogger(__name__)

OnForward = Callable[[int, float], None]
"""Called on the engine thread after each forward, with (rows, seconds)."""


class NotANumber(Exception):
    """A model's answer has values that are no finite numbers."""

    def __init__(self) -> None:
        super().__init__("the model's result is not a number")


class Forwards:
    """Runs the denoiser. For one engine's thread.

    sizes:    where given, each forward is filled up to the next of these numbers of rows, ascending.
    fixed:    whether it is then too, when memory has run out: results may not depend on the number of rows.
    seconds:  what the last one took. count: of all that were tried.
    """

    def __init__(
        self,
        denoiser: Any,
        rows: Rows,
        policy: Policy,
        device: torch.device,
        *,
        sizes: Sequence[int],
        fixed: bool,
        on_forward: OnForward,
        on_error: OnFault,
    ) -> None:
        self._denoiser, self._rows, self._policy, self._device = denoiser, rows, policy, device
        self._sizes, self._fixed = sorted(sizes), fixed
        self._on_forward, self._on_error = on_forward, on_error
        self.seconds, self.count = 0.0, 0

    def run(self, batch: Sequence[Call], short: bool = False) -> list[Any]:
        """One forward for all of `batch`; an answer or an exception for each.

        A batch that raises is run again member by member: only what fails alone has failed. One for which memory runs
        out is run again by halves, and alone at last. So is, alone, each member whose answer is not a number.

        `short`: memory has run out for these already. Raises what ends the engine.
        """
        if not batch:
            return []
        self.count += 1
        filled = [*batch, *self._fillers(batch, short)]
        try:
            answers = self._together(batch, filled)
            fine = [is_finite(answer) for answer in answers]  # which takes memory too
        except Exception as error:
            if is_lost(error):
                raise
            self._on_error(error)
            exhausted = is_exhaustion(error)
            parts = self._smaller(batch, filled, short) if exhausted else _singles(batch)
            if not parts:
                return [error] * len(batch)
            words = "a forward of %d edits failed and is run again in %d"
            log.warning(words, len(batch), len(parts), exc_info=True)
        else:
            return self._numbers(batch, answers, fine, short)
        # Out here, where the error's traceback no longer holds the failed forward's memory.
        return [answer for part in parts for answer in self.run(part, short or exhausted)]

    def synchronize(self) -> None:
        """Wait for the device, so that times are true, errors are their own batch's and no work piles up unseen."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def _together(self, batch: Sequence[Call], filled: Sequence[Call]) -> list[Any]:
        started = time.monotonic()
        output = self._denoiser(**self._rows.stack(filled))
        answers = self._rows.split(output, filled)[: len(batch)]
        self.synchronize()
        self.seconds = time.monotonic() - started
        self._on_forward(sum(call.rows for call in batch), self.seconds)
        remember(batch, started, self.seconds)
        return answers

    def _fillers(self, batch: Sequence[Call], short: bool) -> list[Call]:
        """What fills a forward up to a fixed size, where it has rows that can be told and there is memory for it."""
        if batch[0].alone or ((short or self._policy.short) and not self._fixed):
            return []
        rows = sum(call.rows for call in batch)
        size = next((size for size in self._sizes if size >= rows), rows)
        return [self._rows.filler(batch[-1], size - rows)] if size > rows else []

    def _smaller(
        self, batch: Sequence[Call], filled: Sequence[Call], short: bool
    ) -> list[Sequence[Call]]:
        """What to run after memory has run out: halves. What is no smaller for it once more, unless that has failed."""
        if len(filled) > 1 and not self._fixed:
            self._policy.too_large(filled)
        if len(batch) == 1 or self._fixed:
            return [] if short else [batch]
        middle = (len(batch) + 1) // 2
        return [batch[:middle], batch[middle:]]

    def _numbers(
        self, batch: Sequence[Call], answers: list[Any], fine: list[bool], short: bool
    ) -> list[Any]:
        """The answers; for those that are no numbers, what comes of their calls alone."""
        if all(fine):
            return answers
        if len(batch) == 1:
            self._on_error(error := NotANumber())
            return [error]
        log.warning("in a forward of %d edits are answers that are no numbers", len(batch))
        return [
            answer if good else self.run([call], short)[0]
            for call, answer, good in zip(batch, answers, fine, strict=True)
        ]


def is_lost(error: BaseException) -> bool:
    """Whether an error says that the accelerator is lost for this process: nothing more can run on it."""
    return isinstance(error, torch.AcceleratorError) and not is_exhaustion(error)


def _singles(batch: Sequence[Call]) -> list[Sequence[Call]]:
    return [[call] for call in batch] if len(batch) > 1 else []
