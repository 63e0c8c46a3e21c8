"""The edits `pocket` learns, as ground truth: name -> a pure function on images.

Every function takes and gives float tensors [..., 3, H, W] in 0..1, H and W multiples of 8.
Most are fixed maps of one pixel, so that a small network can learn them; sizes are in pixels.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Edit = Callable[[Tensor], Tensor]

LUMA = (0.299, 0.587, 0.114)
SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))
TINTS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.25, 0.20),
    "green": (0.30, 1.0, 0.35),
    "blue": (0.25, 0.45, 1.0),
    "yellow": (1.0, 0.92, 0.25),
    "purple": (0.70, 0.30, 1.0),
    "orange": (1.0, 0.60, 0.15),
    "pink": (1.0, 0.50, 0.78),
    "cyan": (0.20, 0.95, 1.0),
}


def _rgb(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _luma(x: Tensor) -> Tensor:
    return (x * _rgb(LUMA, x)).sum(-3, keepdim=True)


def _axis(size: int, like: Tensor) -> Tensor:
    """Pixel centres of one side, in -1..1."""
    return (2 * torch.arange(size, device=like.device, dtype=like.dtype) + 1) / size - 1


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """[..., H, W] blurred, sigma in pixels, borders repeated."""
    radius = round(3 * sigma)
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = x.reshape(-1, 1, *x.shape[-2:])
    planes = functional.pad(planes, (radius,) * 4, mode="replicate")
    planes = functional.conv2d(planes, kernel[None, None, None, :])
    planes = functional.conv2d(planes, kernel[None, None, :, None])
    return planes.reshape(x.shape)


def grayscale(x: Tensor) -> Tensor:
    return _luma(x).expand_as(x)


def sepia(x: Tensor) -> Tensor:
    matrix = torch.tensor(SEPIA, dtype=x.dtype, device=x.device)
    return torch.einsum("ij,...jhw->...ihw", matrix, x).clamp(0, 1)


def invert(x: Tensor) -> Tensor:
    return 1 - x


def brighter(x: Tensor) -> Tensor:
    return 1 - (1 - x) ** 1.9


def darker(x: Tensor) -> Tensor:
    return 0.6 * x**1.3


def contrast(x: Tensor) -> Tensor:
    return (0.5 + 1.75 * (x - 0.5)).clamp(0, 1)


def fade(x: Tensor) -> Tensor:
    return 0.56 + 0.5 * (x - 0.5)


def saturate(x: Tensor) -> Tensor:
    return torch.lerp(_luma(x), x, 2.0).clamp(0, 1)


def desaturate(x: Tensor) -> Tensor:
    return torch.lerp(_luma(x), x, 0.4)


def warm(x: Tensor) -> Tensor:
    return (x * _rgb((1.18, 1.02, 0.72), x)).clamp(0, 1)


def cool(x: Tensor) -> Tensor:
    return (x * _rgb((0.74, 0.97, 1.2), x)).clamp(0, 1)


def sunset(x: Tensor) -> Tensor:
    """Orange light, strongest along a horizon a little above the middle."""
    y = _axis(x.shape[-2], x)[:, None]
    glow = torch.exp(-(((y + 0.15) / 0.55) ** 2))
    return (x * _rgb((1.05, 0.72, 0.48), x) + glow * _rgb((0.28, 0.10, 0.0), x)).clamp(0, 1)


def night(x: Tensor) -> Tensor:
    dim = torch.lerp(_luma(x), x, 0.5) ** 1.3
    return (dim * _rgb((0.30, 0.38, 0.68), x) + _rgb((0.0, 0.01, 0.05), x)).clamp(0, 1)


def fog(x: Tensor) -> Tensor:
    """Thicker towards the top, where a photo is usually farther away."""
    y = _axis(x.shape[-2], x)[:, None]
    thickness = 0.55 - 0.22 * y
    return x * (1 - thickness) + 0.85 * thickness


def vignette(x: Tensor) -> Tensor:
    y, u = _axis(x.shape[-2], x)[:, None], _axis(x.shape[-1], x)[None, :]
    edge = ((y * y + u * u) / 1.6).clamp(0, 1)
    return x * (1 - 0.9 * edge)


def blur(x: Tensor) -> Tensor:
    return gaussian(x, 3.0)


def sharpen(x: Tensor) -> Tensor:
    return (x + 1.5 * (x - gaussian(x, 1.2))).clamp(0, 1)


def sketch(x: Tensor) -> Tensor:
    """Pencil lines: the luma divided by its own blur (a colour dodge)."""
    luma = _luma(x)
    lines = ((luma + 0.02) / (gaussian(luma, 3.0) + 0.02)).clamp(0, 1) ** 2
    return lines.expand_as(x)


def posterize(x: Tensor) -> Tensor:
    return (x * 4).floor().clamp(max=3) / 3


def pixelate(x: Tensor) -> Tensor:
    blocks = functional.avg_pool2d(x.reshape(-1, 1, *x.shape[-2:]), 8)
    return functional.interpolate(blocks, scale_factor=8, mode="nearest").reshape(x.shape)


def tint(x: Tensor, color: tuple[float, float, float]) -> Tensor:
    return (0.3 * x + 0.8 * _luma(x) * _rgb(color, x)).clamp(0, 1)


GLOBAL: dict[str, Edit] = {
    f.__name__: f
    for f in (
        grayscale, sepia, invert, brighter, darker, contrast, fade, saturate, desaturate,
        warm, cool, sunset, night, fog, vignette,
    )
}  # fmt: skip
LOCAL: dict[str, Edit] = {f.__name__: f for f in (blur, sharpen, sketch, posterize, pixelate)}
EDITS: dict[str, Edit] = (
    GLOBAL | {name: partial(tint, color=color) for name, color in TINTS.items()} | LOCAL
)


def apply(name: str, x: Tensor, amount: float = 1.0) -> Tensor:
    """The target for edit `name` on x; amount 0.5 goes half the way. "" leaves x as it is."""
    return torch.lerp(x, EDITS[name](x), amount) if name else x
