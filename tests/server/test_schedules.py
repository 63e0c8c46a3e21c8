"""Random schedules: whatever arrives, leaves, fails or runs late, every edit is answered once and rightly."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retouch_server.engine.edit import DeadlinePassed, Edit, EngineStopped, QueueFull
from retouch_server.engine.engine import Engine


@dataclass(frozen=True)
class Plan:
    """One edit of a schedule: when it comes, how long it runs, and what befalls it."""

    arrives: int
    steps: int
    width: int
    leaves: int | None
    fails: int | None
    late: bool
    photo: int
    breaks: str | None


plans = st.builds(
    Plan,
    arrives=st.integers(0, 12),
    steps=st.integers(0, 6),
    width=st.integers(1, 3),
    leaves=st.none() | st.integers(0, 15),
    fails=st.none() | st.integers(0, 5),
    late=st.booleans(),
    photo=st.integers(0, 2),
    breaks=st.sampled_from([None, None, None, "encode", "decode"]),
)


class OddError(Exception):
    """What a denoiser says to rows it cannot bear."""


class UNet2DConditionModel:
    """Adds one to each row; raises when any row of the batch is marked by a negative value."""

    def forward(self, sample: Tensor, timestep: int) -> Tensor:
        return sample + 1

    def __call__(self, sample: Tensor, timestep: Tensor) -> Tensor:
        if (sample < 0).any():
            raise OddError
        return self.forward(sample, 0)


class Encoder:
    """Encodes a photo as its number, in a tensor that its caller may write into."""

    def encode(self, photo: int, breaks: bool) -> Tensor:
        if breaks:
            raise OddError
        return torch.full((1,), float(photo))


def run_of(plan: Plan, start: float) -> Any:
    def run(host: Any) -> Tensor:
        encoded: Tensor = host.phase("image", Encoder().encode, plan.photo, plan.breaks == "encode")
        value: Tensor = torch.full((1, plan.width), start) + encoded
        encoded.add_(100)
        for step in range(plan.steps):
            asked = -value - 1 if step == plan.fails else value
            value = host.denoiser(asked, step)
            host.on_step(step + 1, plan.steps)
        decoded: Tensor = host.phase("decode", Encoder().encode, 0, plan.breaks == "decode")
        return value + decoded

    return run


@settings(max_examples=200, deadline=None)
@given(
    st.lists(plans, min_size=1, max_size=14),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([(), (2, 4), (6,)]),
    st.sampled_from([0, 4, 1000]),
)
def test_every_edit_is_answered_once_and_rightly(
    schedule: list[Plan],
    slots: int,
    max_rows: int,
    max_tokens: int | None,
    sizes: tuple[int, ...],
    cache_bytes: int,
) -> None:
    engine = Engine(
        UNet2DConditionModel(),
        slots=slots,
        max_rows=max_rows,
        max_tokens=max_tokens,
        sizes=sizes,
        queue_size=6,
        cache_bytes=cache_bytes,
    )
    edits: dict[int, Edit] = {}
    answers: dict[int, int] = {}
    refused = set[int]()

    def submit(index: int, plan: Plan) -> None:
        edit = Edit(run_of(plan, float(index)), deadline=time.monotonic() if plan.late else None)
        edit.future.add_done_callback(lambda _: answers.update({index: answers.get(index, 0) + 1}))
        try:
            engine.submit([edit])
            edits[index] = edit
        except QueueFull:
            refused.add(index)

    with torch.inference_mode():
        for tick in range(400):
            for index, plan in enumerate(schedule):
                if plan.arrives == tick:
                    submit(index, plan)
                if plan.leaves == tick and index in edits:
                    edits[index].future.cancel()
            engine.step()
            assert engine.running <= slots
            assert engine.queued <= 6
            if tick > 15 and not engine.running and not engine.queued:
                break

    assert answers == dict.fromkeys(edits, 1)
    assert edits.keys() | refused == set(range(len(schedule)))
    for index, edit in edits.items():
        check(schedule[index], edit, float(index))


def check(plan: Plan, edit: Edit, start: float) -> None:
    """The answer is the one that this edit alone would have had."""
    if edit.future.cancelled():
        assert plan.leaves is not None
        return
    error = edit.future.exception()
    if plan.late:
        assert isinstance(error, DeadlinePassed)
    elif plan.breaks == "encode":
        assert isinstance(error, OddError)
        assert edit.steps == 0
    elif plan.fails is not None and plan.fails < plan.steps:
        assert isinstance(error, OddError)
        assert edit.steps == plan.fails
    elif plan.breaks == "decode":
        assert isinstance(error, OddError)
        assert edit.steps == plan.steps
    else:
        assert error is None
        expected = torch.full((1, plan.width), start + plan.photo + plan.steps)
        assert torch.equal(edit.future.result(), expected)
        assert edit.steps == plan.steps


@settings(max_examples=50, deadline=None)
@given(st.lists(plans, min_size=1, max_size=10), st.booleans())
def test_stopping_under_load_answers_all(schedule: list[Plan], late: bool) -> None:
    """The same on the engine's own thread, stopped while it works: what was taken is finished."""
    engine = Engine(UNet2DConditionModel(), slots=2, queue_size=20)
    engine.start()
    edits = [Edit(run_of(plan, 1.0)) for plan in schedule]
    engine.submit(edits)
    if late:
        edits[-1].future.cancel()
    engine.stop(10)
    assert all(edit.future.done() for edit in edits)
    assert engine.running == engine.queued == 0
    try:
        engine.submit([Edit(run_of(schedule[0], 1.0))])
    except EngineStopped:
        return
    raise AssertionError("a stopped engine took an edit")
