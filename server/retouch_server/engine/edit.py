"""One edit: a pipeline run that makes one image, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OnStep = Callable[[int, int], None]
"""Called on the engine thread after each denoising step, with (steps done, steps in all)."""


Run = Callable[[Any, OnStep], "Tensor"]
"""A pipeline's whole call; its first argument stands where the pipeline's own unet or transformer was."""


@dataclass(eq=False)
class Edit:
    """State of one edit. Times are `time.monotonic()` seconds; None until they happen.

    `future` is its one terminal answer: the image (float tensor, 1x3xHxW, 0..1, on the CPU), an error, or
    cancelled. Cancelling the future is how an edit is cancelled, from any thread.
    """

    run: Run
    deadline: float | None = None
    on_step: OnStep = field(default=lambda done, total: None)
    future: Future[Tensor] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    denoising_at: float | None = None
    denoised_at: float | None = None
    ended_at: float | None = None
    steps: int = 0

    @property
    def unwanted(self) -> BaseException | None:
        """Why this edit should not go on: its caller left, or its time is up."""
        if self.future.cancelled():
            return EditCancelled()
        remaining = self.remaining
        return DeadlinePassed() if remaining is not None and remaining <= 0 else None

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def queue_seconds(self) -> float:
        return _span(self.queued_at, self.started_at)

    @property
    def encode_seconds(self) -> float:
        return _span(self.started_at, self.denoising_at)

    @property
    def denoise_seconds(self) -> float:
        return _span(self.denoising_at, self.denoised_at)

    @property
    def decode_seconds(self) -> float:
        return _span(self.denoised_at, self.ended_at)


def _span(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else end - start


class EditCancelled(BaseException):
    """Thrown into a pipeline whose caller left. A BaseException, so that no pipeline swallows it."""


class DeadlinePassed(BaseException):
    """Thrown into a pipeline whose deadline has passed."""


class QueueFull(Exception):
    """The queue has no room for the edits of one request; none of them was taken.

    `retry_after` is an estimate of when there will be room, seconds >= 1.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class EngineStopped(Exception):
    """The engine is draining or dead and takes no more edits."""
