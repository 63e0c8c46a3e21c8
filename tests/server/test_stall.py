"""When an engine is given up, and when not."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Any, cast

import pytest

from retouch_server import stall
from retouch_server.engine.edit import Edit, EngineStopped, Host
from retouch_server.engine.engine import Engine
from retouch_server.stall import Watchdog
from tests.server.test_engine import UNet2DConditionModel, settle


@dataclass
class Still:
    """An engine's face: what it has, and whether it moves."""

    running: int = 0
    queued: int = 0
    moves: int = 0
    given_up: bool = False
    thread: Any = None

    def give_up(self) -> None:
        self.given_up = True


async def looks(engine: Still, states: list[tuple[int, int, int]]) -> list[float]:
    """What the watchdog says after each look at those (running, queued, moves)."""
    said = list[float]()
    watchdog = Watchdog("m", cast(Engine, engine), 4)
    steps = iter(states)

    async def sleep(seconds: float) -> None:
        said.append(watchdog.seconds)
        try:
            engine.running, engine.queued, engine.moves = next(steps)
        except StopIteration:
            raise asyncio.CancelledError from None

    engine.thread = type("Thread", (), {"ident": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep)
        with suppress(asyncio.CancelledError):
            await watchdog.watch()
    return [*said[1:], watchdog.seconds] if engine.given_up else said[1:]


async def test_it_counts_while_there_is_work_and_nothing_moves() -> None:
    """By its looks and by no clock: a process that stood still for an hour has looked once."""
    engine = Still()
    states = [(1, 0, 5), (1, 0, 5), (1, 0, 5), (1, 0, 6), (0, 2, 6), (0, 0, 6), (0, 2, 6)]
    assert await looks(engine, states) == [0, 1, 2, 0, 1, 0, 1]
    assert not engine.given_up


async def test_it_gives_up_at_the_limit() -> None:
    engine = Still()
    assert await looks(engine, [(1, 0, 5)] * 9) == [0, 1, 2, 3, 4]
    assert engine.given_up


async def test_whoever_waits_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the engine's thread comes back after all."""
    monkeypatch.setattr(stall, "LOOK_EVERY", 0.02)
    held, died = Event(), list[str]()

    def hanging(host: Host) -> Any:
        held.wait(30)
        return host.denoiser(None, 0)

    engine = Engine(UNet2DConditionModel(), slots=1, on_death=lambda: died.append("died"))
    engine.start()
    edits = [Edit(hanging), Edit(hanging)]
    engine.submit(edits)
    await asyncio.wait_for(Watchdog("m", engine, 0.1).watch(), 20)
    for edit in edits:
        with pytest.raises(EngineStopped, match="the engine stalls"):
            edit.future.result(0)
    with pytest.raises(EngineStopped):
        engine.submit([Edit(hanging)])
    assert not engine.stop(0.01)
    held.set()
    settle(lambda: engine.stop(0.01))
    assert died == ["died"]
