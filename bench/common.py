"""What the benchmarks share: pictures, the stock call, how times are summed up."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch_server.models import Inputs


def noise(seed: int, side: int) -> Image.Image:
    """A picture like no other, side x side."""
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    )


def stock(pipe: Any, batch: Sequence[Inputs]) -> Tensor:
    """`pocket` as its documentation has it: one call for edits of equal size, steps and guidance (Nx3xHxW, 0..1)."""
    images: Tensor = pipe(
        prompt=[one.prompt for one in batch],
        image=[one.image for one in batch],
        num_inference_steps=batch[0].steps,
        guidance_scale=batch[0].guidance_scale,
        image_guidance_scale=1.0,
        generator=[torch.Generator("cpu").manual_seed(one.seed) for one in batch],
        output_type="pt",
    ).images
    return images


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> str:
    """The median, and the quartiles, of two or more."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f}, {high:.3f})"


def machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
