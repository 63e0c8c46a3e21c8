"""An engine that stalls, such as in a kernel that never returns: nothing ends that but the end of the process."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from threading import Thread

from .engine.engine import Engine

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0


class Watchdog:
    """Gives an engine up that has work and does not move.

    limit:   seconds for which it may do nothing, while it has work: one forward, encoding or decoding.
    seconds: for how long it has done nothing now.

    It counts its own looks instead of reading a clock: a process that as a whole was stopped for a while, or a machine
    that slept, has not stalled.
    """

    def __init__(self, name: str, engine: Engine, limit: float) -> None:
        self._name, self._engine, self.limit = name, engine, limit
        self.seconds = 0.0

    async def watch(self) -> None:
        """Look until it is given up."""
        seen = self._engine.moves
        while self.seconds < self.limit:
            await asyncio.sleep(LOOK_EVERY)
            idle = not (self._engine.running or self._engine.queued)
            moved, seen = self._engine.moves != seen, self._engine.moves
            self.seconds = 0.0 if idle or moved else self.seconds + LOOK_EVERY
        where = _stack(self._engine.thread)
        log.error("model %s: nothing has moved for %g s, here:\n%s", self._name, self.limit, where)
        self._engine.give_up()


def _stack(thread: Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else ""
