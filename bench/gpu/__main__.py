"""Full-size denoisers with random weights on one GPU: what a step costs, and what batching and compiling gain.

    python -m bench.gpu --out FOLDER

from the repository's root, with the `server` extra installed (or `server` on PYTHONPATH beside torch, diffusers and
greenlet), takes under 9 minutes. It needs no checkpoint and no network. What is cheap and valued most is measured
first. What there was no time or memory for, or what failed, is in the results with its reason.
FOLDER/gpu.jsonl has a line as soon as something is known, FOLDER/gpu.txt the tables.
`--tiny` does the same with tiny configs on a CPU in seconds, to test this program; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import diffusers
import torch

from . import STARTED
from .architectures import ARCHITECTURES, Architecture
from .measure import (
    GIB,
    copy_gbps,
    engine_overhead,
    free_bytes,
    matmul_tflops,
    peak_gib,
    release,
    timed,
)
from .plan import FULL, TINY, Cell, Scale, plan
from .report import Record, Report

RESERVE = 6 * GIB
"""Beside the weights: activations, and CUDA's own."""


@dataclass
class Bench:
    """One run. `deadline` in `time.monotonic()` seconds; `longest`: what took longest so far, by mode, seconds."""

    scale: Scale
    report: Report
    deadline: float
    ceiling: float = 0.0
    longest: dict[str, float] = field(default_factory=dict)
    flops: dict[tuple[str, int], int] = field(default_factory=dict)

    def run(self) -> None:
        self.report.add(self.machine())
        try:
            for (architecture, mode), group in groupby(
                plan(self.scale), key=lambda cell: (cell.architecture, cell.mode)
            ):
                self.model(architecture, mode, list(group))
                release(self.scale.device)
        finally:
            self.report.finish()

    def machine(self) -> Record:
        scale = self.scale
        self.ceiling, sustained = matmul_tflops(scale.device, scale.dtype, scale.matrix)
        cuda = scale.device == "cuda"
        return {
            "kind": "machine",
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "memory_gib": torch.cuda.mem_get_info()[1] / GIB if cuda else None,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "dtype": str(scale.dtype),
            "matmul_side": scale.matrix,
            "matmul_tflops": self.ceiling,
            "matmul_tflops_median": sustained,
            "copy_gbps": copy_gbps(scale.device, scale.copy_mib),
        }

    def model(self, architecture: Architecture, mode: str, group: list[Cell]) -> None:
        """Build one model and measure its cells; it is gone when this returns."""
        works: list[tuple[Record, Callable[[Any], Record]]] = [
            ({"kind": "cell", **cell.about}, partial(self.cell, cell)) for cell in group
        ]
        if mode == "eager":
            about = {"kind": "overhead", "architecture": architecture.name}
            works.append((about, partial(self.overhead, group[0])))
        model, reason = self.attempt(mode, partial(self.build, architecture, mode))
        for about, work in works:
            figures = None
            if model is not None:
                figures, reason = self.attempt(mode, partial(work, model))
            self.report.add(about | (figures or {"reason": reason}))

    def attempt(self, mode: str, work: Callable[[], Any]) -> tuple[Any, str]:
        """What `work` gave, or why it gave nothing. It is not begun if it might not end in time."""
        left = self.deadline - time.monotonic()
        longest = self.longest.get(mode, 0.0)
        if left <= longest:
            return None, f"no time: {left:.0f} s left, {longest:.0f} s may be needed"
        started = time.monotonic()
        try:
            return work(), ""
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        finally:
            self.longest[mode] = max(longest, time.monotonic() - started)
        release(self.scale.device)  # out here, where the error's traceback holds nothing any more
        return None, reason

    def build(self, architecture: Architecture, mode: str) -> Any:
        needed = architecture.parameters * 1e9 * self.scale.dtype.itemsize + RESERVE
        free = free_bytes(self.scale.device)
        if free is not None and free < needed:
            raise MemoryError(f"{needed / GIB:.0f} GiB needed, {free / GIB:.0f} GiB free")
        torch.manual_seed(0)
        model = architecture.build(self.scale.device, self.scale.dtype)
        if mode == "compiled":
            model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=self.scale.backend)
        return model

    def cell(self, cell: Cell, model: Any) -> Record:
        """`first_s`: the first forward, compiling included; `spread`: (slowest - fastest) / median."""
        torch.compiler.reset()  # a fixed shape each, and no limit on how many
        arguments = cell.architecture.inputs(model, cell.rows, cell.side)
        peak_gib(self.scale.device)
        with torch.inference_mode():
            first_s, times = timed(
                self.scale.device, lambda: model(**arguments), self.scale.cell_ms
            )
        ms = statistics.median(times)
        tflops = self.row_flops(cell) * cell.rows / ms / 1e9
        return {
            "ms": ms,
            "ms_per_row": ms / cell.rows,
            "runs": len(times),
            "spread": (max(times) - min(times)) / ms,
            "first_s": first_s,
            "tflops": tflops,
            "of_matmul": tflops / self.ceiling,
            "peak_gib": peak_gib(self.scale.device),
        }

    def row_flops(self, cell: Cell) -> int:
        key = cell.architecture.name, cell.side
        if key not in self.flops:
            self.flops[key] = cell.architecture.flops(cell.side)
        return self.flops[key]

    def overhead(self, cell: Cell, model: Any) -> Record:
        """One edit of the smallest size, where the engine's own work weighs most."""
        arguments = cell.architecture.inputs(model, cell.rows, cell.side)
        with torch.inference_mode():
            _, times = timed(self.scale.device, lambda: model(**arguments), budget_ms=0)
        steps = min(50, max(4, round(self.scale.loop_ms / statistics.median(times))))
        bare_ms, engine_ms = engine_overhead(model, arguments, steps, pairs=5)
        return {
            "side": cell.side,
            "steps": steps,
            "bare_ms": bare_ms,
            "engine_ms": engine_ms,
            "ratio": engine_ms / bare_ms,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="begin nothing that might end later"
    )
    names = [architecture.name for architecture in ARCHITECTURES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="of these alone")
    parser.add_argument("--tiny", action="store_true", help="tiny configs on the CPU")
    options = parser.parse_args()
    scale = TINY if options.tiny else FULL
    if scale.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --tiny needs none")
    chosen = [a for a in scale.architectures if a.name in options.only]
    deadline = STARTED + 60 * options.minutes
    Bench(replace(scale, architectures=chosen), Report(options.out), deadline).run()


if __name__ == "__main__":
    main()
