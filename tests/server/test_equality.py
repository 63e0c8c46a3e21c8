"""Batched = alone: each edit of a busy engine equals the same edit through plain diffusers, to 1e-5 (fp32, CPU)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from retouch_server.engine.edit import Edit, EditCancelled, Host, OnStep
from retouch_server.engine.engine import Engine
from retouch_server.models import Inputs, Model
from tests.server.conftest import Folder, Load
from tests.server.stock import STOCK, plain

TOLERANCE = 1e-5


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def mask(size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("L", size, 0)
    image.paste(255, (16, 8, 48, 40))
    return image


EDITS = (
    Inputs(prompt="make it red", image=picture(0), steps=3, seed=11, guidance_scale=4.0),
    Inputs(prompt="night", image=picture(1), steps=6, seed=12, guidance_scale=7.5),
    Inputs(prompt="a sunset behind it", image=picture(2), steps=5, seed=13, guidance_scale=1.5),
    Inputs(prompt="snow", image=picture(3), steps=7, seed=14, guidance_scale=2.5),
    Inputs(prompt="no", image=picture(4), steps=4, seed=2**64 - 1, guidance_scale=9.0),
)


def run_all(engine: Engine, edits: Sequence[Edit], on_tick: Callable[[int], None]) -> None:
    """Submit one edit a tick, and step until all have ended."""
    waiting = list(edits)
    with torch.inference_mode():
        for tick in range(200):
            if waiting:
                engine.submit([waiting.pop(0)])
            on_tick(tick)
            engine.step()
            if all(edit.future.done() for edit in edits):
                return
    raise AssertionError("edits did not end")


def variants(name: str) -> tuple[Inputs, ...]:
    """Five edits, with all that the tiny model of that name takes: strengths, masks, references, a negative prompt."""
    stock = STOCK[name]
    first, second, third, fourth, fifth = (replace(each, steps=each.steps + 4) for each in EDITS)
    wide = picture(8, (96, 64))
    if stock.strength:
        first = replace(first, strength=0.7)
    if stock.negative:
        second = replace(second, negative_prompt="dull and grey")
    if stock.masked:
        third, fourth = replace(third, mask=mask()), replace(fourth, strength=0.4, mask=mask())
    if stock.reference:
        third = replace(third, references=(wide,))
    if stock.images > 1:
        fifth = replace(fifth, references=(wide, picture(9)))
    return first, second, third, fourth, fifth


def served(load: Load, name: str) -> Model:
    """The tiny model, its catalogue entry with the arguments that the stock pipeline is called with too."""
    model = load(name)
    arguments = dict(STOCK[name].arguments)
    return replace(model, entry=model.entry.model_copy(update={"arguments": arguments}))


@pytest.mark.parametrize("name", STOCK)
def test_batched_equals_alone(name: str, tiny_model: Load, tiny_folder: Folder) -> None:
    model, rows = served(tiny_model, name), list[int]()
    engine = Engine(model.denoiser, cache_bytes=2**26, on_forward=lambda n, seconds: rows.append(n))
    leaving = Edit(model.run(replace(EDITS[0], steps=20, seed=99)))
    poisoned = Edit(poison(model, replace(EDITS[1], steps=10, seed=98)))
    survivors = [Edit(model.run(inputs)) for inputs in variants(name)]
    edits = [survivors[0], leaving, survivors[1], poisoned, *survivors[2:]]

    def on_tick(tick: int) -> None:
        if leaving.steps >= 4:
            leaving.future.cancel()

    run_all(engine, edits, on_tick)

    alone = STOCK[name].rows
    if name == "klein-kv":  # its cache of keys and values is each edit's own
        assert set(rows) == {1}
    else:
        assert max(rows) >= 3 * alone, "edits did not share forwards"
    assert leaving.future.cancelled()
    assert leaving.steps < 20
    assert isinstance(poisoned.future.exception(), PoisonError)
    assert engine.running == engine.queued == 0
    for edit, inputs in zip(survivors, variants(name), strict=True):
        result, stock = edit.future.result(), plain(name, inputs, tiny_folder)
        assert (result - stock).abs().max() <= TOLERANCE
        # Were both clipped to black and white, equality would say little.
        assert ((stock > 0.01) & (stock < 0.99)).float().mean() > 0.3
        assert edit.steps == edit.total
    results = [edit.future.result() for edit in survivors]
    assert min((results[0] - other).abs().max() for other in results[1:]) > 0.01


@pytest.mark.parametrize("name", STOCK)
def test_the_tiny_models_heed_their_prompt(name: str, tiny_folder: Folder) -> None:
    """Or what becomes of the text in a shared forward would not show."""
    one, other = (
        plain(name, replace(EDITS[0], steps=10, prompt=words), tiny_folder)
        for words in ("make it red", "a sunset behind it")
    )
    assert (one - other).abs().max() > 300 * TOLERANCE


class PoisonError(Exception):
    pass


@dataclass(frozen=True)
class Poisoned:
    """A host with another `on_step`."""

    host: Host
    on_step: OnStep

    def __getattr__(self, name: str) -> Any:
        return getattr(self.host, name)


def poison(model: Model, inputs: Inputs) -> Any:
    """An edit whose pipeline fails in its second step."""
    run = model.run(inputs)

    def failing(host: Host) -> Tensor:
        def step(done: int, total: int) -> None:
            if done == 2:
                raise PoisonError
            host.on_step(done, total)

        return run(Poisoned(host, step))

    return failing


def test_a_failing_batch_is_retried_member_by_member(tiny_model: Load, tiny_folder: Folder) -> None:
    """A forward that fails for one edit's rows fails that edit alone; the others' results do not change."""
    model = tiny_model("instruct")
    bad = model.run(replace(EDITS[0], prompt="bad"))
    with torch.inference_mode():
        marker = model.pipelines[model.family.edit]._encode_prompt("bad", "cpu", 1, True)[0]
    forwards: list[int] = []

    class Fussy:
        """The real denoiser, but for one prompt, which it cannot bear."""

        forward = staticmethod(model.denoiser.forward)

        def __getattr__(self, name: str) -> Any:
            return getattr(model.denoiser, name)

        def __call__(self, **arguments: Any) -> Any:
            forwards.append(len(arguments["sample"]))
            if any(torch.equal(text, marker) for text in arguments["encoder_hidden_states"]):
                raise RuntimeError("out of memory, say")
            return model.denoiser(**arguments)

    fussy = type("UNet2DConditionModel", (Fussy,), {})()
    engine = Engine(fussy)
    edits = [Edit(model.run(EDITS[0])), Edit(bad), Edit(model.run(EDITS[1]))]
    engine.submit(edits)
    drain(engine, edits)

    with pytest.raises(RuntimeError, match="out of memory"):
        edits[1].future.result()
    assert forwards[0] == 9
    assert forwards[1:4] == [3, 3, 3]
    for edit, inputs in ((edits[0], EDITS[0]), (edits[2], EDITS[1])):
        assert (
            edit.future.result() - plain("instruct", inputs, tiny_folder)
        ).abs().max() <= TOLERANCE


def drain(engine: Engine, edits: Sequence[Edit]) -> None:
    with torch.inference_mode():
        for _ in range(100):
            if all(edit.future.done() for edit in edits):
                return
            engine.step()
    raise AssertionError("edits did not end")


@pytest.mark.parametrize("name", ["kontext", "klein-distilled", "qwen-plus"])
def test_equal_shapes_with_other_position_ids_do_not_share(
    name: str, tiny_model: Load, tiny_folder: Folder
) -> None:
    """128x64 and 64x128 have equally many tokens in other places: one forward for both would be silently wrong."""
    model, rows = served(tiny_model, name), list[int]()
    engine = Engine(model.denoiser, on_forward=lambda n, seconds: rows.append(n))
    wide = replace(EDITS[0], image=picture(7, (128, 64)), steps=3, guidance_scale=1.0)
    tall = replace(wide, image=picture(8, (64, 128)), prompt="night")
    edits = [Edit(model.run(wide)), Edit(model.run(tall)), Edit(model.run(replace(wide, seed=5)))]
    engine.submit(edits)
    drain(engine, edits)
    assert sorted(rows) == [1, 1, 1, 2, 2, 2]
    for edit, inputs in zip(edits, (wide, tall), strict=False):
        assert (edit.future.result() - plain(name, inputs, tiny_folder)).abs().max() <= TOLERANCE


def test_a_denoiser_without_a_table_runs_alone(tiny_model: Load, tiny_folder: Folder) -> None:
    model, rows = tiny_model("instruct"), list[int]()
    engine = Engine(Unknown(model.denoiser), on_forward=lambda n, seconds: rows.append(n))
    edits = [Edit(model.run(EDITS[0])), Edit(model.run(EDITS[1]))]
    engine.submit(edits)
    drain(engine, edits)
    assert set(rows) == {1}
    assert (
        edits[0].future.result() - plain("instruct", EDITS[0], tiny_folder)
    ).abs().max() <= TOLERANCE


class Unknown:
    """A denoiser of a class that no table names."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        self.forward = denoiser.forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, **arguments: Any) -> Any:
        return self._denoiser(**arguments)


def test_cancelling_is_not_swallowed_by_a_pipeline() -> None:
    assert not issubclass(EditCancelled, Exception)
