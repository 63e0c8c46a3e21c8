"""A small mask on a large picture: the edit runs on the part around it, at the output's size, and is laid back.

What diffusers' inpaint pipelines call `padding_mask_crop`, for every model that takes a mask, and from the pixels of
the input rather than of the output. A crop has the output's own size, so it shares forwards with edits of that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image

from . import images
from .images import Box, Pixels

PixelBox = tuple[int, int, int, int]

# Of the picture's area; a larger part would gain too little to lose sight of the rest.
LARGEST = 0.5


@dataclass(frozen=True)
class Region:
    """The part of a picture that an edit runs on.

    base, mask: RGB and L (255 = edit), at the output's size. box: the part, in whole pixels of `base`, with its aspect
    to a pixel. source: the same part in pixels of the input.
    """

    base: Image.Image
    mask: Image.Image
    box: PixelBox
    source: Box

    def cut(self, image: Image.Image) -> Image.Image:
        """The part of the input, or of its mask, at the output's size: what the model sees."""
        return images.resample(image, self.base.size, self.source)

    def paste(self, result: Pixels) -> Pixels:
        """What the model made of `cut`, scaled back into `base`; the mask is still to be applied."""
        left, top, right, bottom = self.box
        part = images.to_image(result).resize(
            (right - left, bottom - top), Image.Resampling.LANCZOS
        )
        whole = self.base.copy()
        whole.paste(part, (left, top))
        return np.asarray(whole, dtype=np.float32) / np.float32(255)


def region(
    base: Image.Image, mask: Image.Image, input_size: tuple[int, int], padding: int
) -> Region | None:
    """The smallest part of `base` with its aspect that holds the mask and `padding` pixels of the input around it.

    base, mask: an input of `input_size` (width, height) and its mask, fitted to the output. None where the mask is
    empty, or the part would be more than half of the picture.
    """
    inner = mask.getbbox()
    if inner is None:
        return None
    width, height = base.size
    left, top, right, _ = images.covered(input_size, base.size)
    scale = (right - left) / width  # pixels of the input to one of the output
    box = _widened(inner, ceil(padding / scale), base.size)
    if (box[2] - box[0]) * (box[3] - box[1]) > LARGEST * width * height:
        return None
    corner = left + box[0] * scale, top + box[1] * scale
    far = left + box[2] * scale, top + box[3] * scale
    return Region(base, mask, box, (*corner, *far))


def _widened(inner: PixelBox, padding: int, size: tuple[int, int]) -> PixelBox:
    """A box of the aspect of `size` around `inner` and its padding, within a picture of that size."""
    width, height = size
    left, top = max(inner[0] - padding, 0), max(inner[1] - padding, 0)
    right, bottom = min(inner[2] + padding, width), min(inner[3] + padding, height)
    across = max(right - left, ceil((bottom - top) * width / height))
    down = max(bottom - top, ceil((right - left) * height / width))
    left = min(max((left + right - across) // 2, 0), width - across)
    top = min(max((top + bottom - down) // 2, 0), height - down)
    return left, top, left + across, top + down
