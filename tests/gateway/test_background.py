"""What goes on beside the requests: the log has how it ended, and it ends with the gateway."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from retouch_gateway import background, memory
from retouch_gateway.intake import Intake
from tests.gateway.several import until


async def test_the_log_has_what_ended_one_of_them_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = asyncio.Event()

    async def fails() -> None:
        raise ZeroDivisionError

    async def goes_on() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def is_done() -> None:
        pass

    async with background.running(goes_on(), fails(), is_done()):
        await until(lambda: bool(caplog.records))
        assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), 10)
    [record] = caplog.records
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError


async def test_memory_is_given_back_though_a_thread_could_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trimmed, asked = threading.Event(), 0
    to_thread = asyncio.to_thread

    async def scarce(work: Any, *given: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise RuntimeError("can't start new thread")
        await to_thread(work, *given)
        trimmed.set()

    class Idle(Intake):
        def __init__(self) -> None:
            self.held, self.taken = 0, 1

    monkeypatch.setattr(asyncio, "to_thread", scarce)
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.01)
    async with background.running(memory.give_back_forever(Idle())):
        await until(trimmed.is_set, 10)
        await asyncio.sleep(0.1)
    assert asked == 2  # and not again without need
