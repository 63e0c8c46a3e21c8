"""Requests that were accepted: what serves them, and the engine's edits that they became."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from retouch.v1 import image_edit_pb2 as pb

from . import replies
from .engine import edit as engine_edit
from .engine.edit import QueueFull
from .engine.engine import Engine
from .models import Inputs, Model
from .moderation import Moderator
from .previews import Previewer
from .tracing import NONE, Span
from .validation import Plan


@dataclass
class Served:
    """A model, the engine that runs it, who draws its previews and who asks its safety checks.

    `decoding`: edits on their way to the queue.
    """

    model: Model
    engine: Engine
    previewer: Previewer
    moderator: Moderator
    decoding: int = 0

    def has_room(self, edits: int) -> bool:
        """Whether so many more would have places in the queue."""
        return self.engine.queued + self.decoding + edits <= self.engine.queue_size

    @contextmanager
    def place(self, edits: int) -> Iterator[None]:
        """Hold places in the queue while pictures are decoded and checked.

        Raises QueueFull, before anything is spent.
        """
        if not self.has_room(edits):
            raise QueueFull(self.engine.retry_after)
        self.decoding += edits
        try:
            yield
        finally:
            self.decoding -= edits


@dataclass(frozen=True)
class Job:
    """A request that was accepted: its edits are the engine's, and will each be answered.

    Leaving its `with` block, however that happens, cancels what has not been, and tells `on_end` what ended it.
    `parent`: the first image as it came, where results are signed and its own manifest is to be kept.
    """

    served: Served
    plan: Plan
    inputs: Sequence[Inputs]
    edits: Sequence[engine_edit.Edit]
    ahead: int
    span: Span = NONE
    on_end: Callable[[Job, BaseException | None], object] = lambda job, error: None
    parent: bytes | None = None

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for edit in self.edits:
            edit.future.cancel()
        self.on_end(self, error)

    @property
    def steps(self) -> int:
        """Run until now, over all its edits."""
        return sum(edit.steps for edit in self.edits)

    @property
    def timings(self) -> pb.Timings:
        """Those of the edit that takes longest, until now where it has not ended."""
        return replies.timings(max(self.edits, key=lambda edit: edit.seconds))
