"""The benchmarks: what they compare is what they say, and their small modes print what they promise."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import compare as comparison
from bench.common import noise
from bench.compare import MIXES, compare, draw_edits, poisson
from bench.serving import Forwards, Loop, Served, Submit, parameters, serve
from bench.switches import SWITCHES, psnr
from retouch_server.models import Inputs

ROOT = Path(__file__).parents[1]
WAYS = ("diffusers one by one", "run to completion", "this engine")


def lines(module: str, *arguments: str) -> list[str]:
    """What a benchmark prints."""
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def numbers(printed: list[str], name: str) -> list[list[float]]:
    """Those of each row that begins with `name`."""
    found = [line.strip() for line in printed if line.strip().startswith(name)]
    return [[float(word.strip("(),")) for word in row[len(name) :].split()] for row in found]


def test_engine() -> None:
    small = ("--pairs", "2", "--steps", "2", "--sizes", "32", "--shared", "32")
    printed = lines("bench.engine", *small)
    ratios = [line.split(": median ")[1] for line in printed if ": median " in line]
    assert len(ratios) == 2
    assert all(0.05 < float(ratio.split()[0]) < 20 for ratio in ratios)
    for edits in (1, 2, 4, 8):
        ((forward, row),) = numbers(printed, f"{edits} ")
        assert 0 < row <= forward
        assert row == pytest.approx(forward / edits, abs=1)


def test_compare() -> None:
    loads = ("2", "8")
    small = ("--edits", "5", "--sizes", "32", "--steps", "2", "6", "--repeat", "2")
    printed = lines("bench.compare", "--loads", *loads, *small)
    assert [line.split(":")[0] for line in printed if " kinds" in line] == list(MIXES)
    tables = {way: numbers(printed, way) for way in WAYS}
    for way, found in tables.items():
        assert len(found) == len(MIXES) * len(loads)
        for rate, mean, median, p95, cpu, rows, *ratios in found:
            assert rate > 0 < cpu
            assert 0 < mean < p95
            assert median <= p95
            assert 1 <= rows <= 24
            assert len(ratios) == 5
            assert way != WAYS[0] or set(ratios) == {1}
    alone, engine = (tables[way][3] for way in (WAYS[0], WAYS[2]))  # presets at the higher load
    assert alone[5] == 1 < engine[5]
    differences = [float(line.split()[-1]) for line in printed if "largest difference" in line]
    assert len(differences) == len(MIXES)
    assert max(differences) < 1e-3


def test_switches() -> None:
    printed = lines("bench.switches", "--quick")
    measured = [name for name in SWITCHES if name != "compiled"]
    for name in measured:
        found = numbers(printed, name)
        assert [row[:2] for row in found] == [[64, 6], [64, 20]][: 2 if "reuse" in name else 1]
        for _, steps, first, middle, low, high, forwards, mean, least in found:
            assert first > 0
            assert low <= middle <= high
            assert forwards < steps if "reuse" in name else forwards == steps
            assert 20 < least <= mean < 120
    assert "attention: PocketUNet has no choice of backends" in printed
    assert "a tiny FluxTransformer2DModel" in printed[-1]


def inputs(seed: int, steps: int, side: int = 16) -> Inputs:
    return Inputs(f"edit {seed}", noise(seed, side), steps, seed, guidance_scale=1.0)


class Pipe:
    """Gives each picture its seed for a colour, once it may."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.open = threading.Event()

    def __call__(self, prompt: list[str], generator: list[Any], **more: Any) -> Any:
        self.calls.append(prompt)
        assert self.open.wait(10)
        if more["num_inference_steps"] == 13:
            raise ValueError("unlucky")
        return SimpleNamespace(images=torch.tensor([g.initial_seed() for g in generator])[:, None])


def test_a_loop_calls_with_equal_parameters_and_runs_each_call_to_its_end() -> None:
    pipe = Pipe()
    with Loop(pipe, most=2, window=0.0) as submit:
        futures = [submit(inputs(0, steps=4))]
        while not pipe.calls:
            time.sleep(0.001)
        others = [(1, 6, 16), (2, 6, 24), (3, 6, 16), (4, 6, 16), (5, 13, 16)]
        futures += [submit(inputs(*other)) for other in others]
        pipe.open.set()
    assert [future.result().tolist() for future in futures[:5]] == [[[i]] for i in range(5)]
    with pytest.raises(ValueError, match="unlucky"):
        futures[5].result()
    named = [[f"edit {i}" for i in call] for call in ([0], [1, 3], [2], [4], [5])]
    assert pipe.calls == named


def test_a_loop_waits_for_company_but_not_once_it_is_full() -> None:
    pipe = Pipe()
    pipe.open.set()
    with Loop(pipe, most=2, window=30.0) as submit:
        futures = [submit(inputs(i, steps=4)) for i in range(2)]
        assert [int(future.result(10)) for future in futures] == [0, 1]
    assert len(pipe.calls) == 1


@contextmanager
def answering(value: float, seconds: float = 0.0) -> Iterator[Submit]:
    """Answers each edit with `value`, and takes no other for so long."""

    def submit(inputs: Inputs) -> Future[Tensor]:
        denoiser(torch.zeros(3, 1))
        time.sleep(seconds)
        future: Future[Tensor] = Future()
        future.set_result(torch.tensor(value))
        return future

    yield submit


class Denoiser(torch.nn.Module):
    def forward(self, sample: Tensor) -> tuple[Tensor]:
        return (sample,)


denoiser = Denoiser()


def test_latency_is_from_when_an_edit_was_due() -> None:
    served, edits = Served(), [inputs(i, steps=4) for i in range(3)]
    arrivals = [0.0, 0.01, 0.02]
    results = serve(lambda: answering(0.5, 0.1), edits, arrivals, Forwards(denoiser), served)
    assert results == [0.5] * 3
    for turn, (latency, due) in enumerate(zip(served.latencies, arrivals, strict=True)):
        assert latency >= 0.1 * (turn + 1) - due
    assert served.makespan == pytest.approx(served.latencies[-1] + arrivals[-1])
    assert (served.forwards, served.rows) == (3, 9)


@pytest.mark.parametrize("wrong", [0.52, math.nan])
def test_a_way_that_makes_other_pictures_is_found(wrong: float) -> None:
    ways = {"one": lambda: answering(0.5), "other": lambda: answering(wrong)}
    edits = [inputs(i, steps=4) for i in range(3)]
    worst = compare(ways, edits, [100.0], 1, Forwards(denoiser))
    assert worst == pytest.approx(abs(wrong - 0.5), nan_ok=True)


def test_and_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", "--edits", "2"])
    monkeypatch.setattr(comparison, "compare", lambda *given: math.nan)
    with pytest.raises(SystemExit, match="other edits"):
        comparison.main()


def test_edits_come_as_often_as_asked() -> None:
    arrivals = poisson(4000, 5.0, seed=1)
    assert arrivals[0] == 0
    assert arrivals == sorted(arrivals)
    assert len(arrivals) / arrivals[-1] == pytest.approx(5.0, rel=0.05)


def test_mixes() -> None:
    drawn = {name: draw_edits(32, (64, 128), steps(4, 30), g) for name, (steps, g) in MIXES.items()}
    for edits in drawn.values():
        assert {edit.image.size for edit in edits} == {(64, 64), (128, 128)}
        assert all(4 <= edit.steps <= 30 for edit in edits)
        assert len({edit.prompt for edit in edits}) == len({edit.seed for edit in edits}) == 32
    kinds = {name: len(set(map(parameters, edits))) for name, edits in drawn.items()}
    assert kinds["mixed"] > 24
    assert kinds["presets"] == 2 * 3


def test_psnr() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(grey, grey + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(grey, grey) == math.inf
