"""How forwards are shared: fixed sizes, bitwise independence, previews on the way, answers used again."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from retouch_server.catalog import POCKET
from retouch_server.engine import engine as engines
from retouch_server.engine.batching import PATIENCE
from retouch_server.engine.edit import DeadlinePassed, Edit, Host
from retouch_server.engine.engine import Engine
from retouch_server.engine.reuse import Reuse
from retouch_server.loading import load
from retouch_server.models import Inputs, Model
from tests.server.conftest import Load
from tests.server.test_equality import EDITS, TOLERANCE, PoisonError, Unknown, poison


def run(engine: Engine, edits: Sequence[Edit]) -> list[Tensor]:
    """Submit one edit a tick, step until all have ended: their results."""
    with torch.inference_mode():
        for tick in range(200):
            if tick < len(edits):
                engine.submit(edits[tick : tick + 1])
            engine.step()
            if tick >= len(edits) and all(edit.future.done() for edit in edits):
                return [edit.future.result() for edit in edits]
    raise AssertionError("edits did not end")


def told(model: Model, **changes: Any) -> Model:
    """The model with another word from the catalogue."""
    return replace(model, entry=model.entry.model_copy(update=changes))


def sizes_of_forwards(model: Model, monkeypatch: pytest.MonkeyPatch, lead: str) -> list[int]:
    """Rows of each forward that the denoiser really does, filled up as it may be."""
    sizes: list[int] = []
    forward = model.denoiser.forward

    def counted(**arguments: Any) -> Any:
        sizes.append(len(arguments[lead]))
        return forward(**arguments)

    counted.__wrapped__ = forward  # type: ignore[attr-defined]
    monkeypatch.setattr(model.denoiser, "forward", counted)
    return sizes


@pytest.mark.parametrize("name", ["instruct", "kontext", "qwen-plus"])
def test_deterministic_results_do_not_depend_on_neighbours(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """To the bit, whoever shares the forwards, in whatever place, joining and leaving."""
    model = tiny_model(name)
    sizes = sizes_of_forwards(
        model, monkeypatch, "sample" if name == "instruct" else "hidden_states"
    )
    mine = EDITS[0]

    def among(*others: Inputs, place: int) -> Tensor:
        engine = Engine(model.denoiser, max_rows=12, sizes=(12,), exact=True)
        inputs = [*others[:place], mine, *others[place:]]
        return run(engine, [Edit(model.run(each)) for each in inputs])[place]

    alone = among(place=0)
    assert torch.equal(alone, among(EDITS[1], EDITS[2], place=1))
    assert torch.equal(alone, among(EDITS[2], EDITS[3], EDITS[4], replace(mine, seed=3), place=4))
    assert set(sizes) == {12}


def test_forwards_are_filled_up_to_the_next_size(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine encoding would take its turn so late that the edits hardly met.
    monkeypatch.setattr(engines, "phase_allowed", lambda **_: True)
    model, rows = tiny_model("instruct"), list[int]()
    sizes = sizes_of_forwards(model, monkeypatch, "sample")
    engine = Engine(
        model.denoiser, max_rows=9, sizes=(8, 4), on_forward=lambda n, seconds: rows.append(n)
    )
    same = [replace(EDITS[0], seed=seed) for seed in range(3)]
    results = run(engine, [Edit(model.run(each)) for each in same])
    assert set(sizes) == {4, 8, 9}  # 9 rows fit no size, so they go as they are
    assert set(rows) == {3, 6, 9}  # fillers are nobody's
    lone = [run(Engine(model.denoiser), [Edit(model.run(each))])[0] for each in same]
    for result, alone in zip(results, lone, strict=True):
        assert (result - alone).abs().max() <= TOLERANCE


def test_forwards_that_are_filled_up_anyway_are_shared_whatever_the_budget(
    tiny_model: Load,
) -> None:
    model, rows = tiny_model("instruct"), list[int]()
    engine = Engine(
        model.denoiser,
        max_rows=12,
        max_tokens=1,
        sizes=(12,),
        on_forward=lambda n, seconds: rows.append(n),
    )
    edits = [Edit(model.run(replace(EDITS[0], seed=seed))) for seed in range(4)]
    engine.submit(edits)
    with torch.inference_mode():
        while not all(edit.future.done() for edit in edits):
            engine.step()
    assert set(rows) == {12}


def test_calls_that_share_with_none_are_not_filled_up(tiny_model: Load) -> None:
    """klein's KV cache is each edit's own; and nobody knows which arguments of an unknown class are rows."""
    model = told(tiny_model("klein-kv"), arguments={"max_sequence_length": 64})
    (alone,), (filled,) = (
        run(Engine(model.denoiser, sizes=sizes, reuse=0.05), [Edit(model.run(EDITS[0]))])
        for sizes in ((), (4,))
    )
    assert torch.equal(alone, filled)
    instruct = tiny_model("instruct")
    (unknown,) = run(Engine(Unknown(instruct.denoiser), sizes=(8,)), [Edit(instruct.run(EDITS[0]))])
    assert unknown.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("previews", "steps", "after"),
    [(0, 8, []), (1, 8, [4]), (3, 8, [2, 4, 6]), (3, 4, [1, 2, 3]), (3, 2, [1]), (3, 1, [])],
)
@pytest.mark.parametrize("name", ["instruct", "kontext", "diffusion"])
def test_previews_are_spread_over_the_steps(
    tiny_model: Load, name: str, previews: int, steps: int, after: list[int]
) -> None:
    """Euler, flow matching and DPM++ all say what they take the clean latents to be."""
    model, seen = tiny_model(name), list[tuple[int, Tensor]]()
    inputs = replace(EDITS[0], steps=steps, strength=1.0 if name == "diffusion" else None)
    edit = Edit(model.run(inputs), previews=previews)
    edit.on_preview = lambda latents: seen.append((edit.steps, latents))
    run(Engine(model.denoiser), [edit])
    assert [step for step, _ in seen] == after
    assert edit.latents is not None
    for _, latents in seen:
        assert latents.dtype == torch.float32
        assert latents.shape == edit.latents.shape


def test_steps_whose_answers_are_known_are_skipped_and_counted(tiny_model: Load) -> None:
    """Neither the first, nor the last; without a threshold none. What it costs is below."""
    model, rows, skipped = tiny_model("kontext"), list[int](), list[int]()
    inputs = replace(EDITS[0], steps=12)
    for threshold in (0.0, 0.2, 1.0):
        rows.clear()
        edit = Edit(model.run(inputs), total=inputs.steps)
        engine = Engine(
            model.denoiser, reuse=threshold, on_forward=lambda n, seconds: rows.append(n)
        )
        run(engine, [edit])
        assert edit.steps == 12
        assert len(rows) + edit.reused == 12
        assert len(rows) >= 3
        skipped.append(edit.reused)
    assert skipped == sorted(skipped)
    assert skipped[0] == 0
    assert skipped[-1] > 0


@pytest.mark.parametrize("name", ["kontext", "qwen-edit"])
def test_skipping_tells_the_calls_of_one_step_apart(tiny_model: Load, name: str) -> None:
    """Guidance takes two calls a step with the same latents: the answer to one is not the other's."""
    model = told(tiny_model(name), arguments={"true_cfg_scale": 4.0} if name == "kontext" else {})
    inputs = replace(EDITS[0], steps=8, negative_prompt="a dull sky")
    whole, skipping = (
        run(Engine(model.denoiser, reuse=threshold), [Edit(model.run(inputs), total=8)])[0]
        for threshold in (0.0, 1e-6)
    )
    assert (whole - skipping).abs().max() <= TOLERANCE


def test_an_edit_that_skips_does_not_change_its_neighbours(tiny_model: Load) -> None:
    model = tiny_model("kontext")
    first, second = replace(EDITS[0], steps=12), replace(EDITS[1], steps=9)

    def together(*each: Inputs) -> list[Tensor]:
        return run(Engine(model.denoiser, reuse=0.1), [Edit(model.run(one)) for one in each])

    both = together(first, second)
    assert (both[0] - together(first)[0]).abs().max() <= TOLERANCE
    assert (both[1] - together(second)[0]).abs().max() <= TOLERANCE


def test_reuse_tells_a_steps_calls_apart_and_stops_at_its_threshold() -> None:
    reuse, answers = Reuse(0.25), torch.tensor([10.0])
    inputs = [torch.tensor([float(i)]) for i in range(9)]
    assert reuse.guess(0, inputs[0]) is None
    reuse.learn(0, inputs[0], answers)
    assert reuse.guess(0, inputs[1]) is None, "one answer tells no rate"
    reuse.learn(0, inputs[1], answers + 1)  # a rate of 1, so each input on drifts by 1/11
    assert reuse.guess(1, inputs[2]) is None
    assert reuse.guess(0, inputs[2]) is not None
    guess = reuse.guess(0, inputs[3])
    assert guess is not None
    assert guess.item() == 11
    assert reuse.guess(0, inputs[4]) is None
    reuse.learn(0, inputs[4], answers + 1)  # which has not moved: a rate of 0
    assert all(reuse.guess(0, each) is not None for each in inputs[5:])


@pytest.mark.parametrize("prompt", ["make it night", "make it a pencil sketch"])
def test_on_a_trained_model_skipping_half_the_forwards_is_hardly_seen(prompt: str) -> None:
    """PSNR against the same edit with all its forwards, dB."""
    model = load(POCKET, "cpu")
    with importlib.resources.files("retouch_cli").joinpath("sample.jpg").open("rb") as file:
        photo = Image.open(file).convert("RGB").resize((128, 128))
    inputs = Inputs(prompt=prompt, image=photo, steps=12, seed=1, guidance_scale=1.0)

    def edited(threshold: float) -> tuple[Tensor, Edit]:
        edit = Edit(model.run(inputs), total=inputs.steps)
        return run(Engine(model.denoiser, reuse=threshold), [edit])[0], edit

    (whole, _), (quick, edit) = edited(0.0), edited(0.1)
    assert edit.reused >= 6
    assert -10 * (whole - quick).square().mean().log10() > 40


def test_no_neighbours_fate_delays_an_edit_by_a_step(tiny_model: Load) -> None:
    """While others are cancelled, poisoned, late or newly come, each that shares does a step a tick."""
    model = tiny_model("kontext")
    inputs = [replace(EDITS[i], steps=20) for i in range(5)]
    steady, leaving, late = (Edit(model.run(each)) for each in inputs[:3])
    poisoned = Edit(poison(model, inputs[3]))
    engine, done = Engine(model.denoiser), list[int]()
    events = {3: leaving.future.cancel, 9: lambda: engine.submit([Edit(model.run(inputs[4]))])}
    with torch.inference_mode():
        engine.submit([steady, leaving, late, poisoned])
        for tick in range(16):
            events.get(tick, lambda: None)()
            if tick == 6:
                late.deadline = 0.0
            engine.step()
            done.append(steady.steps)
    assert done == list(range(1, 17))
    assert leaving.future.cancelled()
    assert isinstance(late.future.exception(), DeadlinePassed)
    assert isinstance(poisoned.future.exception(), PoisonError)
    assert engine.running == 2


def test_a_short_edit_is_not_behind_the_long_ones() -> None:
    """Where sharing does not pay; and however long they have been running."""

    class UNet2DConditionModel:
        def forward(self, sample: Tensor, timestep: int) -> Tensor:
            return sample

        def __call__(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return sample

    def steps(count: int) -> Edit:
        def pipeline(host: Host) -> Tensor:
            for step in range(count):
                host.denoiser(torch.zeros(1, 1), step)
                host.on_step(step + 1, count)
            return torch.zeros(1)

        return Edit(pipeline, total=count)

    engine = Engine(UNet2DConditionModel(), max_tokens=1)
    long, short = [steps(1000), steps(1000)], steps(3)
    with torch.inference_mode():
        engine.submit(long)
        for _ in range(300):
            engine.step()
        engine.submit([short])
        for _ in range(5):
            engine.step()
    assert short.future.done()
    assert min(edit.steps for edit in long) >= 300 // (2 * PATIENCE + 1)
