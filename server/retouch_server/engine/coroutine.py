"""One unmodified diffusers pipeline, running until its next denoiser call.

The pipeline runs in a greenlet: a call stack of its own on the engine's thread. Where its denoiser was there is a
`StandIn`, whose call switches back to the engine with the arguments and returns when the engine has an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from .edit import Edit

if TYPE_CHECKING:
    from .rows import Call, Rows


class StandIn:
    """Takes a denoiser's place in a pipeline: its attributes are the denoiser's, its call is the engine's."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine = getcurrent().parent
        if engine is None:
            raise RuntimeError("a stand-in was called outside its pipeline's coroutine")
        return engine.switch(args, kwargs)

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Pipelines open this around a call; caches kept in the model do not survive batching, so none is."""
        yield

    def _reset_stateful_cache(self) -> None:
        """Called when a pipeline ends: others are still under way in the same denoiser."""


class Coroutine:
    """A started edit. `call` is the denoiser call that it waits for, None once it has ended."""

    def __init__(self, edit: Edit, denoiser: Any, rows: Rows) -> None:
        self.edit = edit
        self.call: Call | None = None
        self._rows = rows
        self._greenlet = greenlet(edit.run)
        self._first: tuple[Any, ...] = (StandIn(denoiser), self._on_step)

    def resume(self, answer: Any = None) -> Any:
        """Run on, with the answer to the pending call, to the next call or to the end.

        Returns the pipeline's result once `call` is None. Whatever the pipeline raises comes out here.
        """
        args, self._first = self._first or (answer,), ()
        return self._run(self._greenlet.switch, *args)

    def throw(self, error: BaseException) -> Any:
        """Raise `error` in the pipeline, at the call it waits in; it comes out here unless the pipeline mends it."""
        return self._run(self._greenlet.throw, error)

    def _run(self, enter: Callable[..., Any], *arguments: Any) -> Any:
        self.call = None
        left = enter(*arguments)
        if self._greenlet.dead:
            return left
        args, kwargs = left
        self.edit.denoising_at = self.edit.denoising_at or time.monotonic()
        self.call = self._rows.bind(args, kwargs)
        return None

    def _on_step(self, done: int, total: int) -> None:
        self.edit.steps = done
        self.edit.denoised_at = time.monotonic()
        self.edit.on_step(done, total)
