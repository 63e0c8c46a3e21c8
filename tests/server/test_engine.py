"""The engine's promises, with pipelines of a few lines: each edit is answered once, and slots are given back."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from retouch_server.engine.edit import DeadlinePassed, Edit, EngineStopped, Host, QueueFull, Run
from retouch_server.engine.engine import Engine


class Denoiser:
    """Doubles its rows. `gate` holds every forward back; `calls` counts them."""

    def __init__(self) -> None:
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None

    def forward(self, sample: Tensor, timestep: int) -> Tensor:
        return sample * 2

    def __call__(self, **arguments: Any) -> Tensor:
        self.gate.wait(10)
        self.calls += 1
        if self.error:
            raise self.error
        return self.forward(**arguments)


# Known by the table of the class it is named after.
UNet2DConditionModel = type("UNet2DConditionModel", (Denoiser,), {})


def doubling(steps: int, start: float = 1.0) -> Run:
    def run(host: Host) -> Tensor:
        value = torch.full((1, 1), start)
        for step in range(steps):
            value = host.denoiser(value, step)
            host.on_step(step + 1, steps)
        return value

    return run


@pytest.fixture
def denoiser() -> Any:
    return UNet2DConditionModel()


@pytest.fixture
def engine(denoiser: Any) -> Iterator[Engine]:
    engine = Engine(denoiser, slots=2, queue_size=3)
    engine.start()
    yield engine
    denoiser.gate.set()
    engine.stop(10)
    assert engine.running == engine.queued == 0


def settle(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_edits_of_different_length_share_forwards(engine: Engine, denoiser: Any) -> None:
    edits = [Edit(doubling(3)), Edit(doubling(5, start=3.0))]
    assert engine.submit(edits) == 0
    assert edits[0].future.result(10).item() == 8
    assert edits[1].future.result(10).item() == 96
    # Each value of `timestep` is its own row, so the first three steps are one forward each.
    assert denoiser.calls == 5
    assert [edit.steps for edit in edits] == [3, 5]
    assert edits[1].denoise_seconds > 0


def test_a_full_queue_takes_all_of_a_request_or_none(engine: Engine, denoiser: Any) -> None:
    denoiser.gate.clear()
    running = [Edit(doubling(1)), Edit(doubling(1))]
    engine.submit(running)
    settle(lambda: engine.running == 2)
    queued = [Edit(doubling(1)), Edit(doubling(1))]
    assert engine.submit(queued) == 0
    with pytest.raises(QueueFull) as full:
        engine.submit([Edit(doubling(1)), Edit(doubling(1))])
    assert 1 <= full.value.retry_after <= 60
    assert engine.queued == 2
    assert engine.load == 2.0
    last = Edit(doubling(1))
    assert engine.submit([last]) == 2
    denoiser.gate.set()
    assert [edit.future.result(10).item() for edit in (*running, *queued, last)] == [2] * 5


def test_a_cancelled_edit_frees_its_slot_within_a_step(engine: Engine, denoiser: Any) -> None:
    long = Edit(doubling(100_000, start=0.0))
    engine.submit([long])
    settle(lambda: long.steps > 2)
    long.future.cancel()
    settle(lambda: engine.running == 0)
    steps = long.steps
    time.sleep(0.05)
    assert long.steps == steps


def test_what_is_cancelled_or_late_in_the_queue_never_reaches_the_denoiser(
    engine: Engine, denoiser: Any
) -> None:
    denoiser.gate.clear()
    running = [Edit(doubling(2)), Edit(doubling(2))]
    engine.submit(running)
    settle(lambda: engine.running == 2)
    gone, late = Edit(doubling(50)), Edit(doubling(50), deadline=time.monotonic() + 0.05)
    engine.submit([gone, late])
    gone.future.cancel()
    time.sleep(0.1)
    denoiser.gate.set()
    with pytest.raises(DeadlinePassed):
        late.future.result(10)
    assert [edit.future.result(10).item() for edit in running] == [4, 4]
    assert denoiser.calls == 2
    assert gone.started_at is late.started_at is None


def test_a_deadline_ends_a_running_edit(engine: Engine) -> None:
    edit = Edit(doubling(10**9, start=0.0), deadline=time.monotonic() + 0.1)
    engine.submit([edit])
    with pytest.raises(DeadlinePassed):
        edit.future.result(10)
    settle(lambda: engine.running == 0)


def test_a_pipeline_that_fails_before_during_or_after_denoising_fails_alone(engine: Engine) -> None:
    def broken(where: str) -> Run:
        def run(host: Host) -> Tensor:
            if where == "before":
                raise ValueError(where)
            host.denoiser(torch.ones(1, 1), 0)
            raise ValueError(where)

        return run

    good, before, after = Edit(doubling(4)), Edit(broken("before")), Edit(broken("after"))
    engine.submit([before, good, after])
    for edit, where in ((before, "before"), (after, "after")):
        with pytest.raises(ValueError, match=where):
            edit.future.result(10)
    assert good.future.result(10).item() == 16


def test_wrong_arguments_are_the_pipelines_own_failure(engine: Engine) -> None:
    def run(host: Host) -> Tensor:
        result: Tensor = host.denoiser(nonsense=1)
        return result

    edit = Edit(run)
    engine.submit([edit])
    with pytest.raises(TypeError):
        edit.future.result(10)


def test_stop_finishes_what_was_accepted(denoiser: Any) -> None:
    engine = Engine(denoiser, slots=1)
    engine.start()
    edits = [Edit(doubling(3)) for _ in range(4)]
    engine.submit(edits)
    engine.stop(10)
    assert all(edit.future.result(0).item() == 8 for edit in edits)
    with pytest.raises(EngineStopped):
        engine.submit([Edit(doubling(1))])


def test_when_the_engine_dies_everyone_is_told(denoiser: Any) -> None:
    died = threading.Event()
    engine = Engine(denoiser, slots=1, on_death=died.set)
    engine.start()
    denoiser.gate.clear()
    edits = [Edit(doubling(3)), Edit(doubling(3))]
    engine.submit(edits)
    settle(lambda: engine.running == 1)
    denoiser.error = SystemExit("no way to go on")
    denoiser.gate.set()
    for edit in edits:
        with pytest.raises(EngineStopped):
            edit.future.result(10)
    assert died.wait(10)
    with pytest.raises(EngineStopped):
        engine.submit([Edit(doubling(1))])


def test_a_lost_device_ends_the_engine(denoiser: Any) -> None:
    """Nothing more can run in this process: better to say so than to fail edit after edit."""
    died = threading.Event()
    engine = Engine(denoiser, on_death=died.set)
    engine.start()
    denoiser.error = torch.AcceleratorError("illegal memory access")
    edits = [Edit(doubling(3)), Edit(doubling(3))]
    engine.submit(edits)
    for edit in edits:
        with pytest.raises(EngineStopped):
            edit.future.result(10)
    assert died.wait(10)


def test_a_batch_is_retried_when_its_memory_is_free_again(
    denoiser: Any, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The failed forward's tensors are gone by the time its members run alone."""
    caplog.set_level(logging.CRITICAL, "retouch_server")  # pytest would keep the traceback
    alive: list[bool] = []
    held: list[weakref.ref[Tensor]] = []

    def forward(sample: Tensor, timestep: Tensor) -> Tensor:
        alive.extend(ref() is not None for ref in held)
        if len(sample) > 1:
            activations = sample * 3
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("no room for two")
        return sample * 2

    denoiser.forward = forward
    edits = [Edit(doubling(1)), Edit(doubling(1))]
    engine.submit(edits)
    assert [edit.future.result(10).item() for edit in edits] == [2, 2]
    assert alive
    assert not any(alive)


def test_errors_are_told_once_each(denoiser: Any) -> None:
    """Of a shared forward, of each that fails alone, of what a pipeline fails at itself, and of the engine's end."""
    told: list[str] = []
    engine = Engine(denoiser, slots=2, on_error=lambda error: told.append(str(error)))

    def forward(sample: Tensor, timestep: Tensor) -> Tensor:
        if len(sample) > 1 or sample[0] == 7:
            raise torch.OutOfMemoryError(f"no room for {len(sample)}")
        return sample * 2

    def failing(host: Host) -> Tensor:
        raise ValueError("a pipeline's own")

    denoiser.forward = forward
    edits = [Edit(doubling(1)), Edit(doubling(1, start=7.0))]
    engine.submit(edits)
    engine.start()
    assert edits[0].future.result(10).item() == 2
    with pytest.raises(torch.OutOfMemoryError):
        edits[1].future.result(10)
    assert told == ["no room for 2", "no room for 1"]
    engine.submit([own := Edit(failing)])
    with pytest.raises(ValueError, match="own"):
        own.future.result(10)
    cancelled = Edit(doubling(1), deadline=time.monotonic() - 1)
    engine.submit([cancelled])
    with pytest.raises(DeadlinePassed):
        cancelled.future.result(10)
    denoiser.error = torch.AcceleratorError("lost")
    engine.submit([last := Edit(doubling(1))])
    with pytest.raises(EngineStopped):
        last.future.result(10)
    assert told[2:] == ["a pipeline's own", "lost"]


@pytest.mark.parametrize("how", ["cancelled", "late", "failed", "done"])
def test_an_ended_edit_leaves_no_tensors_to_the_garbage_collector(
    engine: Engine, denoiser: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "retouch_server")  # pytest would keep the traceback
    held: list[weakref.ref[Tensor]] = []

    def run(host: Host) -> Tensor:
        latents = torch.ones(1, 4)
        held.append(weakref.ref(latents))
        for step in range(10**9 if how in ("cancelled", "late") else 3):
            latents_now = host.denoiser(latents, step)
            host.on_step(step + 1, 3)
            if how == "failed":
                raise ValueError(latents_now)
        return torch.zeros(1)

    gc.collect()
    gc.disable()
    try:
        edit = Edit(run, deadline=time.monotonic() + 0.1 if how == "late" else None)
        engine.submit([edit])
        settle(lambda: edit.steps > 1 or edit.future.done())
        if how == "cancelled":
            edit.future.cancel()
        settle(lambda: edit.future.done() and engine.running == 0)
        settle(lambda: held[0]() is None)
    finally:
        gc.enable()


def test_stop_iteration_is_an_error_like_any_other(engine: Engine) -> None:
    """asyncio takes no StopIteration: the caller would wait for ever."""

    def run(host: Host) -> Tensor:
        raise StopIteration

    edit = Edit(run)
    engine.submit([edit])
    with pytest.raises(RuntimeError, match="StopIteration"):
        edit.future.result(10)


def test_stop_says_whether_the_thread_has_ended(denoiser: Any) -> None:
    engine = Engine(denoiser)
    engine.start()
    denoiser.gate.clear()
    edit = Edit(doubling(1))
    engine.submit([edit])
    settle(lambda: engine.running == 1)
    assert not engine.stop(0.05)
    denoiser.gate.set()
    assert engine.stop(10)
    assert edit.future.result(0).item() == 2


def test_grad_mode_stays_off_whatever_order_pipelines_leave_no_grad_in(engine: Engine) -> None:
    modes: list[bool] = []

    def run(steps: int) -> Run:
        def inner(host: Host) -> Tensor:
            with torch.no_grad():
                value: Tensor = doubling(steps)(host)
            modes.append(torch.is_grad_enabled())
            return value

        return inner

    edits = [Edit(run(2)), Edit(run(4)), Edit(run(3))]
    engine.submit(edits)
    for edit in edits:
        edit.future.result(10)
    assert modes == [False] * 3
