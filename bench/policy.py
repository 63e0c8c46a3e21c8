"""What the batching policy does on devices of three kinds, in virtual time: `python -m bench.policy`.

Poisson arrivals of mixed edits, the same jobs for every way of serving; each figure is the mean of `--seeds` runs. Load
is in parts of what the device serves one by one.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean

from bench.simulator import (
    Cost,
    Job,
    Report,
    Simulation,
    all_at_once,
    at_most_one,
    linear,
    one_by_one,
    run_to_completion,
)
from retouch_server.engine.batching import Policy, phase_allowed

ROW = 2048
"""Tokens of a row at 512x512: the picture, one reference as large, no text."""

SIZES = (("512", ROW), ("512", ROW), ("512", ROW), ("1024", 4 * ROW))

DEVICES = {
    # The gains at 2, 4 and 8 rows are 1.6, 2.4 and 3.1 times; published for Qwen-Image, H200, 512x512: 1.8, 2.8, 3.1.
    "weights-bound": (0.035, 0.010 / ROW),
    "balanced": (0.010, 0.010 / ROW),
    "compute-bound": (0.002, 0.010 / ROW),
}
"""a and b of `linear`, seconds."""

Way = Callable[[Sequence[Job]], Report]


def poisson(count: int, rate: float, seed: int, steps: tuple[int, int]) -> Iterator[Job]:
    """`count` edits, `rate` per second, with steps from a range, and encodings and decoding that grow with the size."""
    draw, now = random.Random(seed), 0.0
    for _ in range(count):
        now += draw.expovariate(rate)
        key, tokens = draw.choice(SIZES)
        before, after = (0.015, 0.010 * tokens / ROW), (0.020 * tokens / ROW,)
        yield Job(now, draw.randint(*steps), key, 1, tokens, before, after)


def runs(
    cost: Cost, count: int, load: float, steps: tuple[int, int], seeds: int
) -> list[list[Job]]:
    capacity = 1 / fmean(job.alone(cost) for job in poisson(2000, 1.0, seeds, steps))
    return [list(poisson(count, load * capacity, seed, steps)) for seed in range(seeds)]


def budget(a: float, b: float) -> int:
    """A device's `max_tokens`: there `a` is a ninth of a forward's time. Of 1/2 to 32 a/b nearly the best."""
    return int(8 * a / b)


def show(title: str, each: Sequence[Sequence[Job]], ways: Mapping[str, Way]) -> None:
    """Print a row of figures for each way."""
    head = f"{'mean s':>9}{'p95 s':>9}{'stall ms':>9}{'edits/s':>9}{'rows':>6}{'busy':>6}"
    print(f"{title}\n{'':20}{head}")
    for name, way in ways.items():
        reports = [way(jobs) for jobs in each]
        mean, p95, stall, throughput, rows, busy = (
            fmean(getattr(report, figure) for report in reports)
            for figure in ("mean", "p95", "stall", "throughput", "occupancy", "utilisation")
        )
        figures = f"{mean:9.2f}{p95:9.2f}{1000 * stall:9.0f}{throughput:9.2f}{rows:6.2f}{busy:6.0%}"
        print(f"  {name:18}{figures}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    seeds = parser.parse_args().seeds

    def engine(jobs: Sequence[Job], a: float, b: float, rule: Callable[..., bool]) -> Report:
        policy = Policy(max_rows=24, max_tokens=budget(a, b))
        return Simulation(linear(a, b), policy, phase_allowed=rule).run(jobs)

    for device, (a, b) in DEVICES.items():
        cost = linear(a, b)
        ways: dict[str, Way] = {
            "one by one": partial(one_by_one, cost=cost),
            "run to completion": partial(run_to_completion, cost=cost, max_tokens=budget(a, b)),
            "this engine": partial(engine, a=a, b=b, rule=phase_allowed),
        }
        for count in (32, 500):
            for load in (0.5, 0.8, 1.2):
                title = f"{device}, {count} edits of 4 to 30 steps, load {load}"
                show(title, runs(cost, count, load, (4, 30), seeds), ways)
    a, b = DEVICES["weights-bound"]
    for steps in (4, 28):
        for load in (0.8, 1.2):
            show(
                f"phases: weights-bound, 500 edits of {steps} steps, load {load}",
                runs(linear(a, b), 500, load, (steps, steps), seeds),
                {
                    rule.__name__: partial(engine, a=a, b=b, rule=rule)
                    for rule in (at_most_one, phase_allowed, all_at_once)
                },
            )


if __name__ == "__main__":
    main()
