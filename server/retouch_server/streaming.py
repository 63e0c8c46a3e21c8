"""The events of one StreamEdit: what the engine's thread tells, in order, for the caller's stream."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

from torch import Tensor

from retouch.v1 import image_edit_pb2 as pb

log = logging.getLogger(__name__)
# Seconds between looks at the queue.
LOOK_EVERY = 0.5

Draw = Callable[[int, Tensor], Awaitable[pb.EditedImage]]
"""Draws the preview of image `i` from its latents."""


class Events:
    """Takes news from any thread, gives events on the loop that it was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # None follows the last event.
        self._queue: asyncio.Queue[pb.EditEvent | None] = asyncio.Queue()
        self._drawing: set[asyncio.Task[None]] = set()
        self._begun: dict[int, int] = {}
        self._one_at_a_time: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    def on_step(self, image: int, done: int, total: int) -> None:
        """From the engine's thread: a step of an image is done."""
        step = pb.Step(image_index=image, step=done, total=total)
        self._loop.call_soon_threadsafe(self._queue.put_nowait, pb.EditEvent(step=step))

    def on_preview(self, draw: Draw, image: int, latents: Tensor) -> None:
        """From the engine's thread: here is what an image has come to."""
        self._loop.call_soon_threadsafe(self._begin, draw, image, latents)

    def _begin(self, draw: Draw, image: int, latents: Tensor) -> None:
        number = self._begun.get(image, 0)
        self._begun[image] = number + 1
        task = self._loop.create_task(self._draw(draw, image, number, latents))
        self._drawing.add(task)
        task.add_done_callback(self._drawing.discard)

    async def _draw(self, draw: Draw, image: int, number: int, latents: Tensor) -> None:
        try:
            async with self._one_at_a_time[image]:  # in order
                drawn = await draw(image, latents)
        except ValueError as error:  # too little was learned yet, or it is of another kind
            log.debug("no preview: %s", error)
            return
        except Exception:  # no reason to fail an edit
            log.warning("a preview could not be drawn", exc_info=True)
            return
        preview = pb.Preview(image_index=image, preview_index=number, image=drawn)
        self._queue.put_nowait(pb.EditEvent(preview=preview))

    async def until(
        self,
        finish: asyncio.Task[pb.EditResponse],
        ahead: int,
        place: Callable[[], int | None],
    ) -> AsyncIterator[pb.EditEvent]:
        """All events up to the end of `finish`: first how many are `ahead` in the queue, and again when it moves up.

        `place`: how many are ahead now, None once the request has started.
        """
        finish.add_done_callback(lambda _: self._queue.put_nowait(None))
        waiting = self._loop.create_task(self._watch(ahead, place))
        try:
            yield _queued(ahead)
            while event := await self._queue.get():
                yield event
            # What is still being drawn comes before the result too.
            await asyncio.gather(*self._drawing)
            while not self._queue.empty():
                if event := self._queue.get_nowait():
                    yield event
        finally:
            for task in (waiting, *self._drawing):
                task.cancel()

    async def _watch(self, told: int, place: Callable[[], int | None]) -> None:
        while (ahead := place()) is not None:
            if ahead != told:
                self._queue.put_nowait(_queued(ahead))
                told = ahead
            await asyncio.sleep(LOOK_EVERY)


def _queued(ahead: int) -> pb.EditEvent:
    return pb.EditEvent(queued=pb.Queued(position=ahead))
