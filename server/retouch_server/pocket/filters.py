"""Fixed filters of a picture and of noise, which both the true edits and the network are made of.

Images are float tensors [..., C, H, W]. Sizes go by the short side of the whole picture.
"""

from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)
BLOCKS = 32  # along the short side


@dataclass(frozen=True)
class Frame:
    """The whole picture, height x width pixels, and where in it a window begins: training sees windows."""

    height: int
    width: int
    top: int = 0
    left: int = 0

    @property
    def side(self) -> int:
        return min(self.height, self.width)

    def y(self, like: Tensor) -> Tensor:
        """[H, 1], the pixels' centres from -1 at the top of the picture to 1."""
        rows = torch.arange(like.shape[-2], device=like.device, dtype=torch.float32) + self.top
        return ((2 * rows + 1) / self.height - 1).to(like.dtype)[:, None]

    def x(self, like: Tensor) -> Tensor:
        """[1, W], likewise from the left."""
        columns = torch.arange(like.shape[-1], device=like.device, dtype=torch.float32) + self.left
        return ((2 * columns + 1) / self.width - 1).to(like.dtype)[None, :]

    def edge(self, like: Tensor) -> Tensor:
        """[H, W], the distance to the nearest border, in halves of the short side."""
        y, x = 1 - self.y(like).abs(), 1 - self.x(like).abs()
        return torch.minimum(y * (self.height / self.side), x * (self.width / self.side))


def luma(x: Tensor) -> Tensor:
    """[..., 3, H, W] -> [..., 1, H, W]."""
    weights = torch.tensor(LUMA, dtype=x.dtype, device=x.device)
    return (x * weights[:, None, None]).sum(-3, keepdim=True)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """[..., H, W] blurred, sigma in pixels, borders repeated."""
    radius = max(1, round(3 * sigma))
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = x.reshape(-1, 1, *x.shape[-2:])
    planes = functional.pad(planes, (radius,) * 4, mode="replicate")
    planes = functional.conv2d(planes, kernel[None, None, None, :])
    planes = functional.conv2d(planes, kernel[None, None, :, None])
    return planes.reshape(x.shape)


def fine(x: Tensor, frame: Frame) -> Tensor:
    return gaussian(x, max(1.0, frame.side / 350))


def smooth(x: Tensor, frame: Frame) -> Tensor:
    return gaussian(x, max(0.8, frame.side / 85))


def blocky(x: Tensor, frame: Frame) -> Tensor:
    """In squares of one colour, the mean of theirs; 32 of them along the short side."""
    block = max(2, round(frame.side / BLOCKS))
    top, left = frame.top % block, frame.left % block
    height, width = x.shape[-2:]
    bottom, right = -(top + height) % block, -(left + width) % block
    planes = x.reshape(-1, 1, height, width)
    padding = (left, right, top, bottom)
    sums = functional.avg_pool2d(functional.pad(planes, padding), block)
    counts = functional.avg_pool2d(functional.pad(torch.ones_like(planes[:1]), padding), block)
    blocks = (sums / counts).repeat_interleave(block, -2).repeat_interleave(block, -1)
    return blocks[..., top : top + height, left : left + width].reshape(x.shape)


def tones(x: Tensor) -> Tensor:
    """0..1 in four tones a channel."""
    return (x * 4).floor().clamp(max=3) / 3


def lines(x: Tensor, frame: Frame) -> Tensor:
    """0..1 -> pencil lines: the luma divided by its own blur (a colour dodge)."""
    grey = luma(x)
    drawn = (grey + 0.02) / (gaussian(grey, max(1.0, frame.side / 90)) + 0.02)
    return (drawn.clamp(0, 1) ** 2).expand_as(x)


@dataclass(frozen=True)
class Weather:
    """What noise looks like through filters: [..., 1, H, W] each, of mean 0 and deviation about 1.

    Thresholds of `small` and `large` are flakes, of `streaks` rain; `clouds` are banks of fog.
    """

    grain: Tensor
    small: Tensor
    large: Tensor
    streaks: Tensor
    clouds: Tensor

    @classmethod
    def of(cls, noise: Tensor, frame: Frame) -> "Weather":
        """noise [..., 3, H, W], normal."""
        grey = noise.mean(-3, keepdim=True) * sqrt(3)
        return cls(
            grain=grey,
            small=_clumps(grey, max(0.8, frame.side / 420)),
            large=_clumps(grey, max(1.3, frame.side / 180)),
            streaks=_streaks(grey, frame),
            clouds=_clouds(grey, frame),
        )


def _clumps(grey: Tensor, sigma: float) -> Tensor:
    return gaussian(grey, sigma) * (2 * sqrt(pi) * sigma)


def _streaks(grey: Tensor, frame: Frame) -> Tensor:
    """Along a line that leans to the left, a twentieth of the short side long."""
    half = max(3, round(frame.side / 40))
    lean = max(1, round(0.25 * half))
    y = torch.arange(-half, half + 1, device=grey.device, dtype=torch.float32)[:, None]
    x = torch.arange(-lean - 1, lean + 2, device=grey.device, dtype=torch.float32)[None, :]
    across = (x + 0.25 * y) / max(0.55, frame.side / 900)
    kernel = torch.exp(-0.5 * across**2) * torch.exp(-0.5 * (y / (0.5 * half)) ** 2)
    kernel = (kernel / kernel.square().sum().sqrt()).to(grey.dtype)
    planes = functional.pad(
        grey.reshape(-1, 1, *grey.shape[-2:]), (lean + 1, lean + 1, half, half), mode="replicate"
    )
    return functional.conv2d(planes, kernel[None, None]).reshape(grey.shape)


def _clouds(grey: Tensor, frame: Frame) -> Tensor:
    """Banks of an eighth of the short side, wider than high; blurred in small, then enlarged."""
    planes = grey.reshape(-1, 1, *grey.shape[-2:])
    shrink = max(1, frame.side // 48)
    small = functional.avg_pool2d(planes, (shrink, 2 * shrink), ceil_mode=True)
    small = gaussian(small, 4.0) * (2 * sqrt(pi) * 4.0 * shrink * sqrt(2))
    small = small.clamp(-2.5, 2.5)  # a window much smaller than a bank has too little to average
    large = functional.interpolate(small, grey.shape[-2:], mode="bilinear", align_corners=False)
    return large.reshape(grey.shape)
