"""Training and evaluation pictures: photos that ship inside Python wheels, and procedural ones.

Only photos that are in the public domain, CC0 or CC BY; the model card lists authors and sources.
All pictures are float32 tensors [3, H, W] in 0..1.
"""

import importlib.util
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from retouch_server.pocket.filters import Frame

TRAINING_PHOTOS = (
    "sklearn/datasets/images/china.jpg",
    "skimage/data/rocket.jpg",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/retina.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "skimage/data/camera.png",
    "skimage/data/brick.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/cell.png",
    "skimage/data/clock_motion.png",
    "skimage/data/microaneurysms.png",
)
WEIGHTS = (8, 3, 1, 1, 4, 3, 1, 1, 1, 1, 1, 0.5)  # by how much there is to see
HELD_OUT = ("astronaut", "chelsea", "coffee", "flower")
PHOTOS_DIR = Path(__file__).parent / "photos"


def package_folder(package: str) -> Path:
    """Where an installed package is, without importing it. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is needed to train pocket", name=package)
    return Path(spec.origin).parent


def photo(name: str) -> Tensor:
    """The picture at "package/path/in/it" as RGB."""
    package, _, path = name.partition("/")
    return to_tensor(Image.open(package_folder(package) / path))


def held_out(name: str) -> Tensor:
    """One of HELD_OUT, square, 300 to 512 pixels a side."""
    return to_tensor(Image.open(PHOTOS_DIR / f"{name}.jpg"))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def to_image(x: Tensor) -> Image.Image:
    array = (x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def square(x: Tensor, size: int) -> Tensor:
    """The middle square of a picture, [3, size, size]."""
    side = min(x.shape[-2:])
    top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
    return _resize(x[:, top : top + side, left : left + side], size)


def _resize(x: Tensor, size: int) -> Tensor:
    return functional.interpolate(
        x[None], (size, size), mode="bilinear", antialias=True, align_corners=False
    )[0].clamp(0, 1)


class Pictures:
    """An endless source of random square crops, about three photos to one procedural picture."""

    def __init__(self, seed: int, procedural: int = 400) -> None:
        self.rng = random.Random(seed)
        self.photos = [photo(name) for name in TRAINING_PHOTOS]
        self.procedural = [
            dead_leaves(160, random.Random(f"{seed}/{i}")) for i in range(procedural)
        ]

    def window(self, size: int) -> Frame:
        """Where a crop of so many pixels lies in a picture of any size: the crop is all of it, or a part."""
        if self.rng.random() < 0.5:
            return Frame(size, size)
        side = round(size * 2 ** self.rng.uniform(0, 2.6))
        height, width = side, round(side * self.rng.choice((1, 1, 4 / 3, 3 / 2, 16 / 9)))
        if self.rng.random() < 0.4:
            height, width = width, height
        return Frame(
            height, width, self.rng.randint(0, height - size), self.rng.randint(0, width - size)
        )

    def crop(self, size: int) -> Tensor:
        """[3, size, size], flipped and recoloured at random."""
        if self.rng.random() < 0.75:
            source = self.rng.choices(self.photos, WEIGHTS)[0]
        else:
            source = self.rng.choice(self.procedural)
        side = min(*source.shape[-2:], round(size * self.rng.choice((1, 1.5, 2, 3, 4, 5))))
        top = self.rng.randint(0, source.shape[-2] - side)
        left = self.rng.randint(0, source.shape[-1] - side)
        x = _resize(source[:, top : top + side, left : left + side], size)
        if self.rng.random() < 0.5:
            x = x.flip(-1)
        if self.rng.random() < 0.2:
            x = x.flip(-2)
        return recolor(x, self.rng)


def recolor(x: Tensor, rng: random.Random) -> Tensor:
    """Often as it is; else other channels, hues and exposure: few photos give many colours."""
    if rng.random() < 0.35:
        return x
    if rng.random() < 0.6:
        x = x[rng.sample(range(3), 3)]
    if rng.random() < 0.5:
        mix = torch.eye(3) + 0.35 * torch.tensor(
            [[rng.gauss(0, 1) for _ in range(3)] for _ in range(3)]
        )
        x = torch.einsum("ij,jhw->ihw", mix / mix.sum(1, keepdim=True).clamp(min=0.4), x)
        x = x.clamp(0, 1)
    if rng.random() < 0.3:  # black to white through a colour: what gives gray photos a hue
        middle = torch.tensor([rng.random() for _ in range(3)])[:, None, None]
        luma = x.mean(0, keepdim=True)
        x = torch.where(luma < 0.5, 2 * luma * middle, middle + (2 * luma - 1) * (1 - middle))
    gamma = 2 ** rng.uniform(-0.9, 0.9)
    return (x.clamp(min=1e-4) ** gamma) * rng.uniform(0.75, 1.0)


def dead_leaves(size: int, rng: random.Random) -> Tensor:
    """Shapes that hide one another, gradients and textures: statistics much like a photo's."""
    x = _gradient(size, rng)
    axis = torch.linspace(-1, 1, size)
    for _ in range(rng.randint(4, 50)):
        radius = 0.06 * (1 - rng.random()) ** -0.7  # few large, many small
        y, u = axis[:, None] - rng.uniform(-1, 1), axis[None, :] - rng.uniform(-1, 1)
        cosine, sine = np.cos(angle := rng.uniform(0, 3.14)), np.sin(angle)
        a, b = cosine * u + sine * y, (cosine * y - sine * u) * rng.uniform(1, 3)
        distance = torch.maximum(a.abs(), b.abs()) if rng.random() < 0.5 else torch.hypot(a, b)
        alpha = ((radius - distance) * size / rng.uniform(2, 8)).clamp(0, 1)
        fill = _gradient(size, rng)
        if rng.random() < 0.4:
            fill = (fill + rng.uniform(0.05, 0.25) * _noise(size, rng)).clamp(0, 1)
        x = torch.lerp(x, fill, alpha)
    return x


def _gradient(size: int, rng: random.Random) -> Tensor:
    """A linear blend of two colours in a random direction."""
    axis = torch.linspace(-1, 1, size)
    angle = rng.uniform(0, 6.28)
    ramp = (0.5 + 0.5 * (np.cos(angle) * axis[:, None] + np.sin(angle) * axis[None, :])).clamp(0, 1)
    first, second = (torch.tensor([rng.random() ** 1.3 for _ in range(3)]) for _ in range(2))
    if rng.random() < 0.5:
        second = (first + 0.3 * (second - 0.5)).clamp(0, 1)
    return torch.lerp(first[:, None, None], second[:, None, None], ramp.float())


def _noise(size: int, rng: random.Random) -> Tensor:
    """[1, size, size] smooth noise of a random scale, about -1..1."""
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    cells = rng.choice((4, 10, 25, 60, size))
    coarse = torch.randn(1, 1, cells, cells, generator=generator)
    return functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)[0]
