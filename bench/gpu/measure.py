"""Timing on one device: a forward, a matrix product, a copy, and a loop with and without the engine around it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from retouch_server.engine.edit import Edit, Host, OnStep
from retouch_server.engine.engine import Engine

GIB = 2**30


def timed(device: str, work: Callable[[], object], budget_ms: float) -> tuple[float, list[float]]:
    """Seconds of a first run, and milliseconds of each of 3 to 20 others, as many as fit `budget_ms`.

    A second run, still slower where code was compiled, is not counted. On CUDA, events around each: what the GPU took,
    and what it waited for the CPU to launch.
    """
    first_s = sum(_timed(device, work, 1)) / 1e3
    (second_ms,) = _timed(device, work, 1)
    return first_s, _timed(device, work, min(20, max(3, round(budget_ms / second_ms))))


def _timed(device: str, work: Callable[[], object], runs: int) -> list[float]:
    if device == "cpu":
        return [_seconds(work) * 1e3 for _ in range(runs)]
    event = partial(torch.cuda.Event, enable_timing=True)
    marks = [event() for _ in range(runs + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matmul_tflops(device: str, dtype: torch.dtype, side: int) -> tuple[float, float]:
    """The device's matrix product of side³, TFLOP/s: (best run, median run)."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    _, times = timed(device, lambda: torch.mm(a, b, out=out), 1000)
    work = 2 * side**3 / 1e9
    return work / min(times), work / statistics.median(times)


def copy_gbps(device: str, mib: int) -> float:
    """Bytes read and written per second by a copy on the device, GB/s, best run."""
    source = torch.ones(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    _, times = timed(device, lambda: target.copy_(source), 500)
    return 2 * source.nbytes / min(times) / 1e6


def free_bytes(device: str) -> int | None:
    """Memory that a model may take; None where nobody counts."""
    return None if device == "cpu" else torch.cuda.mem_get_info()[0]


def peak_gib(device: str) -> float | None:
    """Most memory that tensors held since the last call, GiB; None where nobody counts."""
    if device == "cpu":
        return None
    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 2)


def release(device: str) -> None:
    """Give back what the last model held: compiled code and cycles first, then the allocator's blocks."""
    torch.compiler.reset()
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def engine_overhead(
    denoiser: Any, arguments: dict[str, Any], steps: int, pairs: int
) -> tuple[float, float]:
    """Milliseconds per step of a bare denoising loop, and of the same as the only edit in an engine.

    Medians over pairs taken in turn. No scheduler and no phases: the loop is nothing but forwards.
    """
    engine = Engine(denoiser)
    engine.start()

    def bare() -> None:
        with torch.inference_mode():
            _loop(denoiser, arguments, steps, lambda done, total: None)

    def in_engine() -> None:
        def run(host: Host) -> Tensor:
            return _loop(host.denoiser, arguments, steps, host.on_step)

        edit = Edit(run)
        engine.submit([edit])
        edit.future.result()

    try:
        bare()
        in_engine()
        times: dict[Callable[[], None], list[float]] = {bare: [], in_engine: []}
        for pair in range(pairs):
            for work in (bare, in_engine) if pair % 2 else (in_engine, bare):
                times[work].append(_seconds(work) * 1e3 / steps)
    finally:
        engine.stop()
    return statistics.median(times[bare]), statistics.median(times[in_engine])


def _loop(denoiser: Any, arguments: dict[str, Any], steps: int, on_step: OnStep) -> Tensor:
    output = torch.empty(0)
    for step in range(steps):
        output = denoiser(**arguments)[0]
        on_step(step + 1, steps)
    return output.float().cpu()  # waits for the device
