"""What the engine costs and gains, on `pocket`, on this machine: `python -m bench.engine`.

Ratios are of times taken in turn within this run, since absolute times mean little on a shared machine. The engine's
own work is timed with a denoiser that does none.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

from bench.common import machine, noise, seconds, spread, stock
from retouch_server.catalog import POCKET
from retouch_server.engine.edit import Edit, Host
from retouch_server.engine.engine import Engine
from retouch_server.loading import load
from retouch_server.models import Inputs, Model


def inputs(seed: int, side: int, steps: int) -> Inputs:
    return Inputs("make it night", noise(seed, side), steps, seed, guidance_scale=1.0)


def bare(model: Model, each: Sequence[Inputs]) -> None:
    """diffusers alone, one by one: the pipeline's own call."""
    with torch.inference_mode():
        for one in each:
            stock(model.pipelines[model.family.edit], [one])


def engine_run(engine: Engine, model: Model, each: Sequence[Inputs]) -> None:
    edits = [Edit(model.run(one), total=one.steps) for one in each]
    engine.submit(edits)
    for edit in edits:
        edit.future.result()


def ratio(name: str, pairs: int, first: Callable[[], None], second: Callable[[], None]) -> None:
    """Print second/first over alternating pairs, the order within a pair alternating too."""
    first()
    second()
    ratios = []
    for i in range(pairs):
        if i % 2:
            b, a = seconds(second), seconds(first)
        else:
            a, b = seconds(first), seconds(second)
        ratios.append(b / a)
    print(f"{name}: median {spread(ratios)}, {pairs} pairs", flush=True)


class UNet2DConditionModel:
    """A denoiser that does nothing, under the name of one whose rows are known."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        return (sample,)

    __call__ = forward


def own_seconds(edits: int, steps: int, like: dict[str, Any]) -> float:
    """Of the engine's work per forward that `edits` share, each with one row `like` this."""
    shared: list[int] = []
    engine = Engine(UNet2DConditionModel(), on_forward=lambda rows, took: shared.append(rows))

    def run(host: Host) -> Tensor:
        for step in range(steps):
            (answer,) = host.denoiser(**like, return_dict=False)
            host.on_step(step + 1, steps)
        return answer  # type: ignore[no-any-return]

    each = [Edit(run, total=steps) for _ in range(edits)]
    engine.submit(each)  # before it starts, so that all of them share every forward

    def work() -> None:
        engine.start()
        for edit in each:
            edit.future.result()

    took = seconds(work)
    engine.stop()
    assert shared == [edits] * steps
    return took / steps


def own_work(runs: int, steps: int) -> None:
    """Print it for rows of the size of InstructPix2Pix's at 512x512, which the engine joins and splits."""
    print(f"the engine's own work, 8x64x64 latents and 77x768 text per row, median of {runs} runs")
    print(f"{'edits':>7}{'us/forward':>12}{'us/row':>9}")
    row = {
        "sample": torch.zeros(1, 8, 64, 64),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.zeros(1, 77, 768),
    }
    for edits in (1, 2, 4, 8):
        us = 1e6 * statistics.median(own_seconds(edits, steps, row) for _ in range(runs))
        print(f"{edits:7}{us:12.0f}{us / edits:9.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=31, help="of lone edits, two or more")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 256], help="of lone edits, sides"
    )
    parser.add_argument("--shared", type=int, nargs="+", default=[64, 128], help="of eight, sides")
    options = parser.parse_args()
    model = load(POCKET, "cpu")
    # Without a cache: the bare pipeline encodes each time too.
    engine = Engine(model.denoiser, cache_bytes=0)
    engine.start()
    print(f"{machine()}; pocket, {model.parameters:,} parameters", flush=True)
    for side in options.sizes:
        one = [inputs(0, side, options.steps)]
        ratio(
            f"engine with one edit / bare pipeline, {side}x{side}, {options.steps} steps",
            options.pairs,
            partial(bare, model, one),
            partial(engine_run, engine, model, one),
        )
    for side in options.shared:
        eight = [inputs(i, side, options.steps + i % 4) for i in range(8)]
        ratio(
            f"eight edits of unequal steps in the engine / one by one, {side}x{side}",
            max(2, options.pairs // 3),
            partial(bare, model, eight),
            partial(engine_run, engine, model, eight),
        )
    engine.stop()
    own_work(runs=options.pairs, steps=200)


if __name__ == "__main__":
    main()
