"""Pictures of unfinished edits without a VAE: a linear map from latents to colours, learned from finished edits.

A VAE's latents are nearly linear in the colours of what they stand for (as the well-known tables of "latent RGB
factors" show). Here nobody fills in a table: each finished edit is a least-squares problem that is already solved at
one end, so the map fits whatever model is served.
"""

from __future__ import annotations

import threading
from math import log

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .images import Pixels, to_image

Matrix = npt.NDArray[np.float64]

# A cell of latents shows as this many pixels to each side: a token of 2x2 latents as one for each of them.
SIDE = 2
# Of what earlier edits taught; the map follows what is being edited now.
DECAY = 0.9
# Of a channel's mean square: keeps the map small where the edits so far say nothing.
RIDGE = 1e-5
# Cells per coefficient before a first preview.
ENOUGH = 4
# By how much a grid of tokens may differ from the picture's aspect: some pipelines round to sides of their own.
TOLERANCE = 1.2


class Previewer:
    """Learns to see one model's latents. Thread-safe.

    Latents are one image's: 1 x C x h x w, 1 x C x 1 x h x w, or tokens 1 x S x D in rows, of the grid of S cells that
    is nearest to the picture's aspect.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = 0
        self._moments: tuple[Matrix, Matrix] | None = None
        self._map: Matrix | None = None

    @property
    def ready(self) -> bool:
        """Whether enough was learned for a preview; once true, always."""
        return self._map is not None

    def learn(self, latents: Tensor, pixels: Pixels) -> None:
        """Learn from a finished edit: its last latents, and what the model decoded them to.

        What is not finite is passed over. Raises ValueError where the two are not of one picture, or of another model.
        """
        cells = _cells(latents, (pixels.shape[1], pixels.shape[0]))
        if not (np.isfinite(cells).all() and np.isfinite(pixels).all()):
            return
        down, across, _ = cells.shape
        small = to_image(pixels).resize((across * SIDE, down * SIDE), Image.Resampling.BOX)
        inputs = _with_one(cells)
        outputs = _blocks(np.asarray(small, dtype=np.float64) / 255)
        gram, cross = inputs.T @ inputs / len(inputs), inputs.T @ outputs / len(inputs)
        with self._lock:
            if self._moments is not None:
                self._check(len(gram))
                gram, cross = self._moments[0] * DECAY + gram, self._moments[1] * DECAY + cross
            self._moments = gram, cross
            self._seen += len(inputs)
            if self._seen >= ENOUGH * len(gram):
                self._map = _solve(gram, cross)

    def preview(self, latents: Tensor, size: tuple[int, int]) -> Pixels:
        """What clean (or estimated clean) latents look like, at `size` (width, height).

        Raises ValueError before it is `ready`, and for latents of another kind.
        """
        if self._map is None:
            raise ValueError("too little was learned for a preview")
        cells = _cells(latents, size)
        self._check(cells.shape[-1] + 1)
        down, across, _ = cells.shape
        colours = (_with_one(cells) @ self._map).reshape(down, across, SIDE, SIDE, 3)
        small = colours.swapaxes(1, 2).reshape(down * SIDE, across * SIDE, 3)
        picture = to_image(np.nan_to_num(small)).resize(size, Image.Resampling.BICUBIC)
        return np.asarray(picture, dtype=np.float32) / np.float32(255)

    def _check(self, coefficients: int) -> None:
        if self._moments and len(self._moments[0]) != coefficients:
            raise ValueError(
                f"latents of {coefficients - 1} channels, not {len(self._moments[0]) - 1}"
            )


def _cells(latents: Tensor, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Latents as rows x columns x channels."""
    tensor = latents[0].detach().to("cpu", torch.float32)
    if tensor.ndim == 2:
        tensor = tensor.reshape(*_grid(len(tensor), size), -1)
    else:
        tensor = tensor.reshape(len(tensor), *tensor.shape[-2:]).permute(1, 2, 0)
    return np.asarray(tensor.numpy())


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of so many tokens, for a picture of that size (width, height)."""

    def stretch(across: int) -> float:
        return abs(log(across * across / tokens * size[1] / size[0]))

    across = min((n for n in range(1, tokens + 1) if tokens % n == 0), key=stretch)
    if stretch(across) > log(TOLERANCE):
        raise ValueError(f"{tokens} tokens are no picture of {size[0]}x{size[1]}")
    return tokens // across, across


def _blocks(pixels: Matrix) -> Matrix:
    """Pixels as cells x colours, SIDE x SIDE pixels to a cell."""
    down, across = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
    blocks = pixels.reshape(down, SIDE, across, SIDE, 3).swapaxes(1, 2)
    return blocks.reshape(down * across, -1)


def _with_one(cells: npt.NDArray[np.float32]) -> Matrix:
    """Cells x (channels + 1): each with a one for the constant term."""
    flat = cells.reshape(-1, cells.shape[-1]).astype(np.float64)
    return np.column_stack([flat, np.ones(len(flat))])


def _solve(gram: Matrix, cross: Matrix) -> Matrix:
    """Ridge regression from its moments, the last row the constant term, which is free."""
    weight = gram[-1, -1]
    mean, target = gram[-1, :-1] / weight, cross[-1] / weight
    covariance = gram[:-1, :-1] / weight - np.outer(mean, mean)
    square = np.trace(gram[:-1, :-1]) / weight / len(mean)
    ridge = (RIDGE * square + np.finfo(np.float64).tiny) * np.eye(len(mean))
    slope = np.linalg.solve(covariance + ridge, cross[:-1] / weight - np.outer(mean, target))
    return np.vstack([slope, target - mean @ slope])
