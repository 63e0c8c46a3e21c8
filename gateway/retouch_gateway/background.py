"""What goes on beside the requests, for as long as the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Does all of `works` meanwhile, and cancels them at the end. The log has what one of them raises."""
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(_over)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _over(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("what goes on in the background ended, until the next start", exc_info=error)
