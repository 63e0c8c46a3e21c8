"""Who does what alone, and when: pipelines of a few lines, written down as they go."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from retouch_server.engine.cache import Encodings
from retouch_server.engine.coroutine import Coroutine
from retouch_server.engine.edit import Edit, Host
from retouch_server.engine.engine import Engine
from retouch_server.engine.rows import Rows


class Doubling:
    """Doubles its rows."""

    def forward(self, sample: Tensor, timestep: int) -> Tensor:
        return sample * 2

    def __call__(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.forward(sample, 0)


def phased(
    name: str,
    steps: int,
    done: list[str],
    seconds: float = 0.0,
    during: Callable[[], None] = lambda: None,
) -> Any:
    """A pipeline of a few lines: encode (which takes `seconds`), denoise, decode, writing down what it did."""

    def encode() -> None:
        time.sleep(seconds)
        during()
        done.append(f"{name} encodes")

    def pipeline(host: Host) -> Tensor:
        turns: Any = host
        turns.phase("image", encode)
        value = torch.ones(1, 1)
        for step in range(steps):
            value = host.denoiser(value, step)
            done.append(f"{name} {step + 1}")
            host.on_step(step + 1, steps)
        turns.phase("decode", lambda: done.append(f"{name} decodes"))
        return value

    return pipeline


def run(engine: Engine, edits: Sequence[Edit], after: int = 0) -> None:
    """Step until all have ended; the edits but the first come `after` ticks."""
    with torch.inference_mode():
        engine.submit(edits[:1])
        for tick in range(100):
            if tick == after:
                engine.submit(edits[1:])
            engine.step()
            if all(edit.future.done() for edit in edits):
                return
    raise AssertionError("edits did not end")


def test_who_leaves_while_others_encode_is_gone_before_the_next_forward() -> None:
    rows, done = list[int](), list[str]()
    engine = Engine(
        type("UNet2DConditionModel", (Doubling,), {})(), on_forward=lambda n, _: rows.append(n)
    )
    edits = [Edit(phased(name, 3, done)) for name in "abc"]

    def leave() -> None:
        edits[0].future.cancel()

    edits.append(Edit(phased("d", 3, done, during=leave)))
    run(engine, edits)
    assert edits[0].future.cancelled()
    assert set(rows) == {3}


def test_edits_that_fail_at_once_do_not_hold_up_one_that_is_ready() -> None:
    def failing(host: Any) -> Tensor:
        def encode() -> None:
            raise ValueError

        host.phase("image", encode)
        return torch.zeros(1)

    done = list[str]()
    engine = Engine(type("UNet2DConditionModel", (Doubling,), {})(), slots=2, queue_size=100)
    with torch.inference_mode():
        engine.submit([Edit(phased("a", 1, done)), *(Edit(failing) for _ in range(50))])
        engine.step()
    assert "a 1" in done
    assert engine.queued > 30


def test_what_arrives_together_starts_together() -> None:
    engine, done = Engine(type("UNet2DConditionModel", (Doubling,), {})()), list[str]()
    run(engine, [Edit(phased(name, 2, done)) for name in "abc"])
    assert done == [
        *(f"{name} encodes" for name in "abc"),
        *(f"{name} 1" for name in "abc"),
        *(f"{name} 2" for name in "abc"),
        *(f"{name} decodes" for name in "abc"),
    ]


def test_long_encodings_delay_an_edit_under_way_by_one_per_step() -> None:
    engine, done = Engine(type("UNet2DConditionModel", (Doubling,), {})()), list[str]()
    edits = [Edit(phased("a", 8, done)), *(Edit(phased(name, 1, done, 0.02)) for name in "bcd")]
    run(engine, edits, after=1)
    others = [i for i, what in enumerate(done) if what[0] != "a" and what.endswith("encodes")]
    assert len(others) == 3
    for one, next_one in pairwise(others):
        assert any(done[i].startswith("a ") for i in range(one, next_one))


def test_a_phase_within_a_phase_has_its_turn_already() -> None:
    def pipeline(host: Any) -> Tensor:
        result: Tensor = host.phase("prompt", lambda: host.phase("image", lambda: torch.ones(1)))
        return result

    edit, turns = Edit(pipeline), list[str | None]()
    coroutine = Coroutine(edit, None, Rows(Doubling()), Encodings(100))
    while coroutine.turn:
        turns.append(coroutine.turn)
        result = coroutine.resume()
    assert turns == ["start", "prompt"]
    assert result.item() == 1


def test_encodings_of_one_part_are_not_anothers() -> None:
    class One:
        value = 1.0

        def encode(self, photo: int) -> Tensor:
            return torch.full((1,), self.value)

    class Two(One):
        value = 2.0

    def pipeline(host: Any) -> Tensor:
        result: Tensor = host.phase("image", One().encode, 7) + 10 * host.phase(
            "image", Two().encode, 7
        )
        return result

    edit = Edit(pipeline)
    run(Engine(Doubling(), cache_bytes=100), [edit])
    assert edit.future.result().item() == 21
