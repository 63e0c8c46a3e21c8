"""The soft edge of a mask, inside it only: an edit does not end in a hard line. numpy alone, for a thread pool."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Alpha = npt.NDArray[np.float32]
_Bits = npt.NDArray[np.uint8]

# The ramp's width, pixels: a share of the short side, a few pixels at any size.
NARROWEST, WIDEST, SHARE = 2, 16, 64


def soft_edge(mask: Image.Image) -> Alpha:
    """Opacity from a mask (L, 255 = edit): height x width, float32, 0..1, never above the mask's own grey.

    It rises linearly from the mask's border inwards, and reaches the mask's value after 1/64 of the short side (2 to
    16 pixels), or where the shape is at its deepest if that is less: a thin line keeps its full strength. Where the
    mask meets the picture's border there is no edge.
    """
    grey = np.asarray(mask)
    width = min(max(min(grey.shape) // SHARE, NARROWEST), WIDEST)
    # Mirrored, the picture's border is no edge. Rows are joined end to end below; of what that and the limits of the
    # margin make wrong, nothing comes as far as the picture through two widths.
    margin = 2 * width
    inside = np.pad((grey > 0).astype(np.uint8), margin, mode="symmetric")
    ramp = _ramp(inside.ravel(), inside.shape[1], width).reshape(inside.shape)
    return np.minimum(ramp[margin:-margin, margin:-margin], grey / np.float32(255))


def _ramp(inside: _Bits, row: int, width: int) -> Alpha:
    """From rows of `row` pixels, end to end: 0 outside, 1 at `width` pixels from there or where it is deepest."""
    core = inside
    depth = inside.copy()  # steps from outside, at most `width`
    reach = inside.copy()  # the depth of the deepest square within the mask that covers a pixel
    for step in range(2, width + 1):
        across, down = _window(core, 1, 1, np.bitwise_and), _window(core, 1, row, np.bitwise_and)
        # Squares and crosses by turns: an octagon's distance, within 8 % of the true one.
        core = _window(across, 1, row, np.bitwise_and) if step % 2 else across & down
        if not core.any():
            break
        depth += core
        square = _window(core, step - 1, 1, np.bitwise_or)
        square = _window(square, step - 1, row, np.bitwise_or)
        np.maximum(reach, square * np.uint8(step), out=reach)
    ramp: Alpha = np.divide(depth, np.maximum(reach, 1), dtype=np.float32)
    return ramp


def _window(bits: _Bits, by: int, stride: int, join: np.ufunc) -> _Bits:
    """Each pixel joined with `by` pixels before and after it, `stride` apart."""
    out, length = bits.copy(), 1
    while length < 2 * by + 1:
        step = min(length, 2 * by + 1 - length)  # doubling
        join(out[: -step * stride], out[step * stride :], out=out[: -step * stride])
        length += step
    return np.roll(out, by * stride)
