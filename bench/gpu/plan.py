"""What is measured, how large, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .architectures import ARCHITECTURES, Architecture
from .report import Record


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    sides, edits:       of the pictures, in pixels, and how many edits share a forward; ascending.
    matrix, copy_mib:   what the device's own speed is measured on.
    cell_ms, loop_ms:   about how long to measure one forward, and how long one denoising loop takes, milliseconds.
    """

    architectures: Sequence[Architecture]
    device: str
    dtype: torch.dtype
    backend: str
    sides: Sequence[int]
    edits: Sequence[int]
    matrix: int
    copy_mib: int
    cell_ms: float
    loop_ms: float


FULL = Scale(
    architectures=ARCHITECTURES,
    device="cuda",
    dtype=torch.bfloat16,
    backend="inductor",
    sides=(512, 1024),
    edits=(1, 2, 4, 8),
    matrix=8192,
    copy_mib=4096,
    cell_ms=1000,
    loop_ms=500,
)
TINY = Scale(
    architectures=tuple(architecture.shrunk() for architecture in ARCHITECTURES),
    device="cpu",
    dtype=torch.float32,
    backend="aot_eager",  # needs no C++ compiler
    sides=(64,),
    edits=(1, 2),
    matrix=256,
    copy_mib=8,
    cell_ms=20,
    loop_ms=20,
)


@dataclass(frozen=True)
class Cell:
    """One figure: the forward of so many edits at once."""

    architecture: Architecture
    mode: str
    side: int
    edits: int

    @property
    def rows(self) -> int:
        return self.edits * self.architecture.rows

    @property
    def about(self) -> Record:
        return {
            "architecture": self.architecture.name,
            "mode": self.mode,
            "side": self.side,
            "edits": self.edits,
            "rows": self.rows,
            "tokens": self.rows * self.architecture.tokens(self.side),
        }


def plan(scale: Scale) -> list[Cell]:
    """All cells, what is cheap and valued most first; those of one model and mode stay together within a pass.

    Eager; compiled with one edit; then the compiled batches, small pictures first, where sharing a forward gains most.
    """
    one, *more = scale.edits
    passes: list[tuple[str, Sequence[int], Sequence[int]]] = [
        ("eager", scale.sides, scale.edits),
        ("compiled", scale.sides, [one]),
        *(("compiled", [side], more) for side in scale.sides),
    ]
    return [
        Cell(architecture, mode, side, edits)
        for mode, sides, batches in passes
        for architecture in scale.architectures
        for side in sides
        for edits in batches
    ]
