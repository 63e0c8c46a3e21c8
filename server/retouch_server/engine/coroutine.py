"""One unmodified diffusers pipeline, running until it next needs a part that edits share.

The pipeline runs in a greenlet: a call stack of its own on the engine's thread. Where it would call its denoiser it
switches back to the engine with the arguments, and goes on when the engine has an answer; where it would encode or
decode, it goes on when its turn has come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from retouch_server.memory import is_exhaustion

from .cache import Encodings, fingerprint
from .edit import Edit
from .reuse import Reuse
from .standins import Denoiser, own_copy, watch

if TYPE_CHECKING:
    from torch import Tensor

    from .rows import Call, Rows

START = "start"
CACHED = frozenset({"prompt", "image"})

OnLookup = Callable[[str, bool], None]
"""Called on the engine thread after each lookup of an encoding, with (prompt or image, whether it was there)."""
OnFault = Callable[[Exception], None]
"""Likewise with what a forward, a turn or an edit failed of: makes room if that was memory. It must not keep it."""


class Coroutine:
    """A started edit, and the host of its pipeline (`edit.Host`).

    call:  the denoiser call that it waits for, or None.
    turn:  what it waits to do alone (start, prompt, image or decode), or None.

    Both are None once it has ended.

    clean: the latents of now without their noise, as its scheduler estimates them.
    """

    def __init__(
        self,
        edit: Edit,
        denoiser: Any,
        rows: Rows,
        encodings: Encodings,
        on_lookup: OnLookup = lambda kind, hit: None,
        reuse: Reuse | None = None,
        on_error: OnFault = lambda error: None,
    ) -> None:
        self.edit = edit
        self.call: Call | None = None
        self.turn: str | None = START
        self.denoiser: Any = Denoiser(denoiser, self)
        self._rows, self._encodings, self._on_lookup = rows, encodings, on_lookup
        self._reuse, self._on_error = reuse, on_error
        self._copies: list[Any] = []
        self._working = False
        self._calls = 0
        self.clean: Tensor | None = None
        self._greenlet = greenlet(edit.run)
        self._first: tuple[Any, ...] = (self,)

    def resume(self, answer: Any = None) -> Any:
        """Run on, with the answer to what it waited for, to the next such point or to the end.

        Returns the pipeline's result once it has ended. Whatever the pipeline raises comes out here.
        """
        args, self._first = self._first or (answer,), ()
        return self._run(self._greenlet.switch, *args)

    def throw(self, error: BaseException) -> Any:
        """Raise `error` in the pipeline, where it waits; it comes out here unless the pipeline mends it."""
        return self._run(self._greenlet.throw, error)

    def _run(self, enter: Callable[..., Any], *arguments: Any) -> Any:
        self.call = self.turn = None
        left = enter(*arguments)
        if self._greenlet.dead:
            return left
        if isinstance(left, str):
            self.turn = left
        else:
            self.call = left
        return None

    def adopt(self, pipe: Any, denoiser: str) -> Any:
        """The edit's own copy of `pipe`, whose component `denoiser` is the one that the engine batches."""
        own = own_copy(pipe, denoiser, self)
        watch(own.scheduler, self._on_clean)
        self._copies.append(own)
        return own

    def close(self) -> None:
        """Undo the circle of references with its pipeline: their tensors would wait for the garbage collector."""
        for own in self._copies:
            vars(own.scheduler).pop("step", None)
            vars(own).clear()
        self._copies.clear()
        self.denoiser = None
        self._first = ()

    def denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The engine's answer to one denoiser call, or the edit's own last one; called in the pipeline."""
        self.edit.denoising_at = self.edit.denoising_at or time.monotonic()
        call = self._rows.bind(args, kwargs)
        call.remaining = max(1, self.edit.total - self.edit.steps)
        call.trace = self.edit.trace
        which, self._calls = self._calls, self._calls + 1
        if self._reuse is None or call.lead is None:
            return self._wait(call)
        guess = self._reuse.guess(which, call.lead) if call.remaining > 1 else None
        if guess is not None:
            self.edit.reused += 1
            return (guess,)
        answer = self._wait(call)
        if isinstance(answer, tuple):
            self._reuse.learn(which, call.lead, answer[0])
        return answer

    def phase(self, name: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do `work` when its turn has come, unless an encoding of the same is held; called in the pipeline."""
        if self._working:  # a part of what has its turn already
            return work(*args, **kwargs)
        key = None
        if name in CACHED and self._encodings.capacity:
            whose = type(getattr(work, "__self__", None)).__qualname__
            key = fingerprint(whose, work.__name__, args, kwargs)
        found = self._encodings.get(key)
        if found is None:
            self._wait(name)
            found = self._encodings.get(key)  # a neighbour may have done it meanwhile
        if name in CACHED:
            self._on_lookup(name, found is not None)
        if found is not None:
            return found
        self._working = True
        try:
            result = self._work(work, *args, **kwargs)
        finally:
            self._working = False
        self._encodings.put(key, result)
        return result

    def _work(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do it, and once more if memory runs out: to encode or to decode has no other effect."""
        try:
            return work(*args, **kwargs)
        except Exception as error:
            if not is_exhaustion(error):
                raise
            self._on_error(error)
        # Out here, where the error's traceback no longer holds what it had got.
        return work(*args, **kwargs)

    def on_step(self, done: int, total: int) -> None:
        """Called by the pipeline after each denoising step."""
        self.edit.steps, self.edit.total = done, total
        self._calls = 0
        self.edit.denoised_at = time.monotonic()
        self.edit.on_step(done, total)
        if self.clean is not None and self.edit.preview_due:
            self._show(self.clean)

    def _show(self, latents: Tensor) -> None:
        try:
            self.edit.on_preview(latents.float().cpu())
        except Exception as error:
            if not is_exhaustion(error):
                raise
            self._on_error(error)  # the edit goes on: it has a preview less

    def _on_clean(self, latents: Tensor) -> None:
        self.clean = latents

    def _wait(self, what: Any) -> Any:
        engine = getcurrent().parent
        if engine is None:
            raise RuntimeError("a stand-in was called outside its pipeline's coroutine")
        return engine.switch(what)
