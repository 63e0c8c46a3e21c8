"""What the engine costs and gains, on `pocket`, on this machine: `make bench`.

Every figure is a ratio of times taken in turn within this run, since absolute times mean little on a shared machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from PIL import Image

from retouch_server.catalog import POCKET
from retouch_server.engine.edit import Edit
from retouch_server.engine.engine import Engine
from retouch_server.engine.standins import Alone
from retouch_server.loading import load
from retouch_server.models import Inputs, Model


def inputs(seed: int, side: int, steps: int) -> Inputs:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Inputs(
        prompt="make it night",
        image=Image.fromarray(noise),
        steps=steps,
        seed=seed,
        guidance_scale=1.0,
    )


def bare(model: Model, each: Sequence[Inputs]) -> None:
    """diffusers alone, one by one: the pipeline's own call with its own denoiser."""
    with torch.inference_mode():
        for one in each:
            model.run(one)(Alone(model.denoiser))


def engine_run(engine: Engine, model: Model, each: Sequence[Inputs]) -> None:
    edits = [Edit(model.run(one)) for one in each]
    engine.submit(edits)
    for edit in edits:
        edit.future.result()


def seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(name: str, pairs: int, first: Callable[[], None], second: Callable[[], None]) -> float:
    """Median of second/first over alternating pairs, the order within a pair alternating too."""
    first()
    second()
    ratios = []
    for i in range(pairs):
        if i % 2:
            b, a = seconds(second), seconds(first)
        else:
            a, b = seconds(first), seconds(second)
        ratios.append(b / a)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{name}: median {middle:.3f} (min {low:.3f}, max {high:.3f}, {pairs} pairs)", flush=True)
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    model = load(POCKET, "cpu")
    engine = Engine(model.denoiser)
    engine.start()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {model.parameters:,} parameters"
    )
    for side in (64, 256):
        one = [inputs(0, side, options.steps)]
        ratio(
            f"engine with one edit / bare pipeline, {side}x{side}, {options.steps} steps",
            options.pairs,
            partial(bare, model, one),
            partial(engine_run, engine, model, one),
        )
    for side in (64, 128):
        eight = [inputs(i, side, options.steps + i % 4) for i in range(8)]
        ratio(
            f"eight edits of unequal steps in the engine / one by one, {side}x{side}",
            max(3, options.pairs // 3),
            partial(bare, model, eight),
            partial(engine_run, engine, model, eight),
        )
    engine.stop()


if __name__ == "__main__":
    main()
