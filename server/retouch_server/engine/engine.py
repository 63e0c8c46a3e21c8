"""The loop: drop what is unwanted, admit, plan, one forward, resume."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Any

import torch
from torch import Tensor

from retouch_server.memory import is_exhaustion

from .batching import Policy, phase_allowed
from .cache import Encodings
from .coroutine import Coroutine, OnLookup
from .edit import DeadlinePassed, Declined, Edit, EditCancelled, EngineStopped, QueueFull
from .forward import Forwards, OnForward, is_lost
from .reuse import Reuse
from .rows import Rows

log = logging.getLogger(__name__)

OnError = Callable[[BaseException], None]
"""Called on the engine thread with what a forward, an edit or the engine failed of; it must not keep it."""

TURNS = 4  # of an edit, about; more before a forward are those of edits that fail at once, one after another


class Engine:
    """Runs the edits of one denoiser on a thread of its own.

    slots:      edits under way at once.
    max_rows:   rows per forward; a single call with more still runs, alone.
    max_tokens: likewise; None = only rows are counted.
    sizes:      where given, each forward is filled up to the next of these numbers of rows.
    exact:      whether to share only where no text must be padded for it.
    queue_size: edits waiting for a slot; `submit` refuses beyond.
    cache_bytes: of encodings of prompts and images that are held for edits to come.
    reuse:      threshold of `reuse.Reuse`; 0 = every step is a forward.
    device:     torch's name of where the denoiser is.

    Every edit that `submit` takes gets exactly one terminal answer, in its future.
    """

    def __init__(
        self,
        denoiser: Any,
        *,
        slots: int = 8,
        max_rows: int = 24,
        max_tokens: int | None = None,
        exact: bool = False,
        sizes: Sequence[int] = (),
        queue_size: int = 64,
        cache_bytes: int = 0,
        reuse: float = 0.0,
        device: str = "cpu",
        on_forward: OnForward = lambda rows, seconds: None,
        on_lookup: OnLookup = lambda kind, hit: None,
        on_error: OnError = lambda error: None,
        on_death: Callable[[], None] = lambda: None,
        name: str = "engine",
    ) -> None:
        self.slots, self.queue_size = slots, queue_size
        self._policy = Policy(
            max_rows=max_rows, max_tokens=max_tokens, least_rows=min(sizes, default=1)
        )
        self._reuse, self._device = reuse, torch.device(device)
        self._denoiser, self._rows = denoiser, Rows(denoiser, exact)
        self._forwards = Forwards(
            denoiser,
            self._rows,
            self._policy,
            self._device,
            sizes=sizes,
            fixed=exact,
            on_forward=on_forward,
            on_error=self._failed,
        )
        self._on_lookup, self._on_error, self._on_death = on_lookup, on_error, on_death
        self.encodings = Encodings(cache_bytes)
        self._queue: deque[Edit] = deque()
        self._running: list[Coroutine] = []
        self._edit_seconds, self._resumed = 1.0, 0
        self._stopping = self._given_up = False
        self._changed = Condition()
        self.thread = Thread(target=self._main, name=name, daemon=True)

    @property
    def queued(self) -> int:
        """Edits waiting for a slot."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Edits that hold a slot."""
        return len(self._running)

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the largest forward that is shared now, fewer for a while after memory has run out; None = any."""
        return self._policy.limit

    @property
    def moves(self) -> int:
        """A count that changes whenever anything is done."""
        return self._resumed + self._forwards.count

    @property
    def load(self) -> float:
        """(running + queued) / slots: 0 idle, 1 full, more with a queue."""
        return (self.running + self.queued) / self.slots

    @property
    def edits_per_second(self) -> float:
        """About how many edits end per second at this load."""
        return max(1, self.running) / self._edit_seconds

    @property
    def retry_after(self) -> float:
        """Seconds until the queue of now is likely to be done, 1..60, from how long edits took lately."""
        return min(60.0, max(1.0, self._edit_seconds * self.queued / self.slots))

    def start(self) -> None:
        self.thread.start()

    def submit(self, edits: Sequence[Edit]) -> int:
        """Queue the edits of one request, all or none. Returns how many edits are ahead of them.

        Raises QueueFull, or EngineStopped.
        """
        with self._changed:
            if self._stopping:
                raise EngineStopped("the server is stopping")
            ahead = len(self._queue)
            if ahead + len(edits) > self.queue_size:
                raise QueueFull(self.retry_after)
            self._queue.extend(edits)
            self._changed.notify()
        return ahead

    def place(self, edit: Edit) -> int | None:
        """How many edits are ahead of this one in the queue; None if it does not wait there."""
        with self._changed:
            return self._queue.index(edit) if edit in self._queue else None

    def stop(self, timeout: float | None = None) -> bool:
        """Take no more edits, finish those taken, and end the thread. False if it has not within `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self.thread.is_alive():
            self.thread.join(timeout)
        return not self.thread.is_alive()

    def give_up(self) -> None:
        """Tell whoever waits that the engine stalls, and be dead. From another thread; its own is left."""
        self._abandon("stalls")
        self._on_death()

    def step(self) -> None:
        """One turn: at most one forward, shared by all waiting calls that fit together."""
        self._drop_unwanted()
        self._admit()
        self._take_turns()
        waiting = {coroutine.call: coroutine for coroutine in self._running if coroutine.call}
        batch = self._policy.next_batch(list(waiting))
        for call, answer in zip(batch, self._forwards.run(batch), strict=True):
            self._advance(waiting[call], answer)

    def _drop_unwanted(self) -> None:
        """Whoever left, or is out of time, gives up its slot before the next forward."""
        with self._changed:
            dropped = [(edit, why) for edit in self._queue if (why := edit.unwanted)]
            for edit, _ in dropped:
                self._queue.remove(edit)
        for edit, why in dropped:
            self._end(edit, why)
        for coroutine in list(self._running):
            if why := coroutine.edit.unwanted:
                self._advance(coroutine, why)

    def _admit(self) -> None:
        """Give free slots to queued edits, first come, first served; each waits for its turn to start."""
        while self._queue and self.running < self.slots:
            with self._changed:
                coroutine = Coroutine(
                    self._queue.popleft(),
                    self._denoiser,
                    self._rows,
                    self.encodings,
                    self._on_lookup,
                    Reuse(self._reuse) if self._reuse else None,
                    self._failed,
                )
                self._running.append(coroutine)
            coroutine.edit.started_at = time.monotonic()

    def _take_turns(self) -> None:
        """What edits do alone, oldest edit first: start, encode, decode; as much as may go before the next forward."""
        started = time.monotonic()
        for _ in range(TURNS * self.slots):
            coroutine = next((each for each in self._running if each.turn), None)
            if coroutine is None or not phase_allowed(
                stepping=any(each.call and each.edit.steps for each in self._running),
                spent=time.monotonic() - started,
                last_forward=self._forwards.seconds,
            ):
                return
            self._advance(coroutine, None)
            self._forwards.synchronize()
            self._drop_unwanted()
            self._admit()

    def _advance(self, coroutine: Coroutine, answer: Any) -> None:
        """Resume one pipeline to its next call, or to its end: then its slot is free."""
        self._resumed += 1
        try:
            go_on = coroutine.throw if isinstance(answer, BaseException) else coroutine.resume
            result = go_on(answer)
        except (Exception, EditCancelled, DeadlinePassed) as error:
            if is_lost(error):
                raise
            if isinstance(error, Exception) and not isinstance(error, Declined):
                whose = {"request_id": coroutine.edit.request_id}
                log.warning("an edit failed", exc_info=True, extra=whose)
                if error is not answer:  # else it is its forward's, and told already
                    self._failed(error)
            # A traceback holds its frames, this one and their tensors included: a cycle that only the garbage
            # collector would free.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            result = error
        if coroutine.call:
            coroutine.call.since = self._policy.forwards
        if coroutine.call or coroutine.turn:
            return
        coroutine.edit.latents = coroutine.clean
        coroutine.close()
        self._running.remove(coroutine)
        self._end(coroutine.edit, result)

    def _failed(self, error: Exception) -> None:
        """Tell of an error. Where memory has run out, what is only held for edits to come is given back."""
        self._on_error(error)
        if is_exhaustion(error):
            self.encodings.clear()
            if self._device.type != "cpu":
                torch.accelerator.empty_cache()

    def _end(self, edit: Edit, result: Tensor | BaseException) -> None:
        """Give an edit its one terminal answer."""
        with self._changed:
            if edit.ended_at is not None:  # it was given up
                return
            edit.ended_at = time.monotonic()
        if not edit.future.set_running_or_notify_cancel():
            return
        if isinstance(result, StopIteration):  # which no asyncio future takes
            result = RuntimeError(repr(result))
        if isinstance(result, BaseException):
            edit.future.set_exception(result)
        else:
            took = edit.ended_at - (edit.started_at or edit.ended_at)
            self._edit_seconds += 0.2 * (took - self._edit_seconds)
            edit.future.set_result(result)

    def _main(self) -> None:
        try:
            # Grad mode is per thread: coroutines that enter and leave no_grad out of order would switch it back
            # on, were inference mode not around them all.
            with torch.inference_mode():
                while self._wait():
                    self.step()
        except BaseException as error:
            if self._given_up:
                return
            log.exception("the engine died")
            self._on_error(error)
            self._abandon(f"died: {error!r}")
            self._on_death()

    def _wait(self) -> bool:
        """Sleep until there is work; False when stopping and all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._running or self._stopping)
            return bool(self._queue or self._running)

    def _abandon(self, what: str) -> None:
        """Nothing is lost: who was queued or running learns what the engine did."""
        with self._changed:
            self._stopping = self._given_up = True
            edits = [*(coroutine.edit for coroutine in self._running), *self._queue]
            self._running.clear()
            self._queue.clear()
        for edit in edits:
            self._end(edit, EngineStopped(f"the engine {what}"))
