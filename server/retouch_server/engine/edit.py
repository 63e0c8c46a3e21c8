"""One edit: a pipeline run that makes one image, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from .trace import Trace

OnStep = Callable[[int, int], None]
"""Called on the engine thread after each denoising step, with (steps done, steps in all)."""

OnPreview = Callable[["Tensor"], None]


class Host(Protocol):
    """What runs an edit: the engine's coroutine, or the caller's own thread (`standins.Alone`).

    `denoiser` is to be called where the pipeline's own unet or transformer would be.
    """

    denoiser: Any

    @property
    def on_step(self) -> OnStep:
        """To be called after each denoising step."""

    def adopt(self, pipe: Any, denoiser: str) -> Any:
        """The edit's own copy of a pipeline. `denoiser` names the component that is batched."""


Run = Callable[[Host], "Tensor"]
"""A pipeline's whole call, over its host's copy of the pipeline."""


@dataclass(eq=False)
class Edit:
    """State of one edit. Times are `time.monotonic()` seconds; None until they happen.

    `future` is its one terminal answer: the image (float tensor, 1x3xHxW, 0..1, on the CPU), an error, or
    cancelled. Cancelling the future is how an edit is cancelled, from any thread. `total`: steps it takes in all, an
    estimate until the first is done. `reused`: forwards that its own last answers stood in for. `previews`: how many
    times, spread over its steps, `on_preview` gets the latents as they would be without their noise (float32, CPU).
    `latents`: the last of these, as the model has them. `denoised_at`: the end of the last step so far. `trace`: what
    is remembered of it for its caller's trace; None: nothing is. `request_id`: for the log, "" = none.
    """

    run: Run
    deadline: float | None = None
    on_step: OnStep = field(default=lambda done, total: None)
    future: Future[Tensor] = field(default_factory=Future)
    total: int = 1
    previews: int = 0
    on_preview: OnPreview = field(default=lambda latents: None)
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    denoising_at: float | None = None
    denoised_at: float | None = None
    ended_at: float | None = None
    steps: int = 0
    reused: int = 0
    latents: Tensor | None = None
    trace: Trace | None = None
    request_id: str = ""

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
    def preview_due(self) -> bool:
        """Whether the step that has just been done is one to show: n of them divide the steps into n + 1 parts."""
        parts = self.previews + 1
        return self.steps < self.total and (
            self.steps * parts // self.total > (self.steps - 1) * parts // self.total
        )

    @property
    def seconds(self) -> float:
        """In all. This and its phases' are up to now while they last; the phase in which it ends, ends with it."""
        return self._span(self.queued_at, self.ended_at)

    @property
    def queue_seconds(self) -> float:
        return self._span(self.queued_at, self.started_at)

    @property
    def encode_seconds(self) -> float:
        return self._span(self.started_at, self.denoising_at)

    @property
    def denoise_seconds(self) -> float:
        return self._span(self.denoising_at, self._denoised)

    @property
    def decode_seconds(self) -> float:
        return self._span(self._denoised, self.ended_at)

    @property
    def phases(self) -> list[tuple[str, float, float]]:
        """Name, start and end of each phase that it has come to; the end of the last one is now, while it lasts."""
        starts = {
            "queue": self.queued_at,
            "encode": self.started_at,
            "denoise": self.denoising_at,
            "decode": self._denoised,
        }
        begun = [(name, at) for name, at in starts.items() if at is not None]
        ends = [*(at for _, at in begun[1:]), self.ended_at or time.monotonic()]
        return [(name, at, end) for (name, at), end in zip(begun, ends, strict=True)]

    @property
    def _denoised(self) -> float | None:
        return self.denoised_at if self.steps >= self.total else None

    def _span(self, start: float | None, end: float | None) -> float:
        return 0.0 if start is None else (end or self.ended_at or time.monotonic()) - start


class Declined(Exception):
    """A pipeline's own no to an edit: an answer, not a fault to be logged."""


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
