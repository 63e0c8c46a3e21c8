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
from retouch_server.engine.edit import Edit
from retouch_server.engine.engine import Engine
from retouch_server.engine.reuse import Reuse
from retouch_server.loading import load
from retouch_server.models import Inputs, Model
from tests.server.conftest import Load
from tests.server.test_equality import EDITS, TOLERANCE


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
    """Neither the first, nor the last; without a threshold none. What it costs: `test_pocket`."""
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
    assert reuse.guess("cond", inputs[0]) is None
    reuse.learn("cond", inputs[0], answers)
    assert reuse.guess("cond", inputs[1]) is None, "one answer tells no rate"
    reuse.learn("cond", inputs[1], answers + 1)  # a rate of 1, so each input on drifts by 1/11
    assert reuse.guess("uncond", inputs[2]) is None
    assert reuse.guess("cond", inputs[2]) is not None
    guess = reuse.guess("cond", inputs[3])
    assert guess is not None
    assert guess.item() == 11
    assert reuse.guess("cond", inputs[4]) is None
    reuse.learn("cond", inputs[4], answers + 1)  # which has not moved: a rate of 0
    assert all(reuse.guess("cond", each) is not None for each in inputs[5:])


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
