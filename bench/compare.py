"""The same edits served three ways, on `pocket`, in one run: `python -m bench.compare`.

1. diffusers one by one: the stock pipeline, first come, first served.
2. run to completion: dynamic batching, the usual way. Edits of equal size, steps and guidance that came within a few
   milliseconds, or meanwhile, go into one call of the stock pipeline, which ends before the next begins.
3. this engine, with the budget that it measures and the caches as the catalogue has them, empty at first.

Edits arrive in real time, as a Poisson process at a part of the capacity: edits per second of the first way, always
busy, measured in the same run. Every result is compared with the one from there. `cpu s` is what an edit took of the
processor, which tells least of who else was using it.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

from bench.common import machine, noise
from bench.serving import Forwards, Loop, Served, Way, parameters, serve, this_engine
from retouch_server.catalog import POCKET
from retouch_server.loading import load
from retouch_server.models import Inputs
from retouch_server.pocket.evaluate import WORDINGS
from retouch_server.previews import Previewer
from retouch_server.warmup import warm_up

WINDOW = 0.01
"""Seconds that run-to-completion batching waits for company."""

TOLERANCE = 1e-3
"""Largest difference from the stock pipeline's result, of values in 0..1."""

PROMPTS = [wording for wordings in WORDINGS.values() for wording in wordings]

MIXES: Mapping[str, tuple[Callable[[int, int], Sequence[int]], Sequence[float]]] = {
    # Any number of steps; with guidance 1 an edit has one row, above it three.
    "mixed": (lambda low, high: range(low, high + 1), (1.0, 1.0, 1.5, 3.0)),
    # Three presets of steps and one guidance, so that equal parameters are common.
    "presets": (lambda low, high: (low, (low + high) // 2, high), (1.0,)),
}
"""From the least and the most steps, those that edits have; and their guidance."""


def draw_edits(
    count: int, sides: Sequence[int], steps: Sequence[int], guidance: Sequence[float]
) -> list[Inputs]:
    """The same at every call; each with a picture and a seed of its own."""
    draw = random.Random(0)
    return [
        Inputs(
            prompt=PROMPTS[i % len(PROMPTS)],
            image=noise(i, draw.choice(sides)),
            steps=draw.choice(steps),
            seed=i,
            guidance_scale=draw.choice(guidance),
        )
        for i in range(count)
    ]


def poisson(count: int, rate: float, seed: int) -> list[float]:
    """Seconds at which edits come, `rate` of them per second; the first at 0."""
    draw = random.Random(seed)
    return list(accumulate((draw.expovariate(rate) for _ in range(count - 1)), initial=0.0))


def show(title: str, each: Mapping[str, Served]) -> None:
    """Print the figures of every way, and what they are of the first way's."""
    names = list(next(iter(each.values())).figures)
    heads = "".join(f"{name:>10}" for name in names)
    print(f"{title}\n{'':22}{heads}{'rows':>7}{heads}  of the first")
    first = next(iter(each.values())).figures
    for name, served in each.items():
        figures = served.figures
        absolute = "".join(f"{figure:10.2f}" for figure in figures.values())
        ratios = "".join(f"{figures[name] / first[name]:10.2f}" for name in names)
        print(f"  {name:20}{absolute}{served.rows / served.forwards:7.2f}{ratios}")
    print(flush=True)


def compare(
    ways: Mapping[str, Way],
    edits: Sequence[Inputs],
    loads: Sequence[float],
    repeat: int,
    forwards: Forwards,
) -> float:
    """Print a table per load. Returns the largest difference between a way's result and the stock pipeline's."""
    first = next(iter(ways.values()))
    serve(first, edits[:4], [0.0] * len(edits[:4]), forwards, Served())  # the first calls are slow
    busy = Served()
    expected = serve(first, edits, [0.0] * len(edits), forwards, busy)
    capacity = len(edits) / busy.makespan
    print(f"capacity of the first way: {capacity:.2f} edits/s, {1 / capacity:.2f} s each\n")
    differences: list[Tensor] = []
    for part in loads:
        each = {name: Served() for name in ways}
        for turn in range(repeat):
            arrivals = poisson(len(edits), part * capacity, turn)
            order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
            for name in order:
                results = serve(ways[name], edits, arrivals, forwards, each[name])
                differences += map(_difference, results, expected)
        show(f"load {part}", each)
    return torch.stack(differences).max().item()  # of which a NaN is the largest


def _difference(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().max()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=32, help="two or more")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96], help="sides, pixels")
    parser.add_argument("--steps", type=int, nargs=2, default=[4, 30], help="least and most")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--repeat", type=int, default=1, help="arrivals drawn this many times")
    options = parser.parse_args()
    model = load(POCKET, "cpu")
    sharing = warm_up(model, Previewer())
    pipe, most = model.pipelines[model.family.edit], model.entry.slots
    ways: dict[str, Way] = {
        "diffusers one by one": partial(Loop, pipe, most=1, window=0.0),
        "run to completion": partial(Loop, pipe, most=most, window=WINDOW),
        "this engine": partial(this_engine, model, sharing, queue_size=options.edits),
    }
    forwards = Forwards(model.denoiser)
    print(f"{machine()}; pocket, budget {sharing.max_tokens} tokens")
    for name in options.mixes:
        steps, guidance = MIXES[name]
        edits = draw_edits(options.edits, options.sizes, steps(*options.steps), guidance)
        low, high = options.steps
        sides = " and ".join(map(str, options.sizes))
        print(f"\n{name}: {len(edits)} edits of {low} to {high} steps, sides {sides},", end=" ")
        print(f"of {len(set(map(parameters, edits)))} kinds")
        worst = compare(ways, edits, options.loads, options.repeat, forwards)
        print(f"largest difference from the stock pipeline: {worst:.1e}")
        if not worst <= TOLERANCE:
            raise SystemExit(f"that is more than {TOLERANCE:.0e}: these are other edits")


if __name__ == "__main__":
    main()
