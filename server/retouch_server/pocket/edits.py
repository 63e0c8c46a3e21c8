"""The edits `pocket` learns, as ground truth: pure functions on images, and how they combine.

Images are float tensors [..., 3, H, W] in 0..1. Sizes go by the short side of the whole picture, so that an edit
looks the same at every size. Snow, rain, grain and fog are drawn from the noise that an edit starts from: which
flake falls where is the seed's, and the network can see it.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from retouch_server.pocket import filters
from retouch_server.pocket.filters import Frame, Weather, luma

Plain = Callable[[Tensor], Tensor]
Edit = Callable[[Tensor, float, Frame, Weather], Tensor]

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
THERMAL = ((0.0, 0.0, 0.15), (0.35, 0.0, 0.55), (0.85, 0.15, 0.3), (1.0, 0.6, 0.1), (1.0, 1.0, 0.8))


def _rgb(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def sepia(x: Tensor) -> Tensor:
    matrix = torch.tensor(SEPIA, dtype=x.dtype, device=x.device)
    return torch.einsum("ij,...jhw->...ihw", matrix, x).clamp(0, 1)


def cinematic(x: Tensor) -> Tensor:
    """Teal shadows, orange lights, a little more contrast."""
    light = luma(x)
    toned = x + (1 - light) * _rgb((-0.10, 0.03, 0.10), x) + light * _rgb((0.12, 0.02, -0.14), x)
    return (0.5 + 1.15 * (toned - 0.5)).clamp(0, 1)


def thermal(x: Tensor) -> Tensor:
    """The luma in the colours of a heat camera, from black over violet and orange to white."""
    at = (luma(x) * (len(THERMAL) - 1)).clamp(0, len(THERMAL) - 1)
    return sum(
        ((1 - (at - i).abs()).clamp(min=0) * _rgb(stop, x) for i, stop in enumerate(THERMAL)),
        torch.zeros_like(x),
    )


def night(x: Tensor) -> Tensor:
    dim = torch.lerp(luma(x), x, 0.5) ** 1.3
    return (dim * _rgb((0.30, 0.38, 0.68), x) + _rgb((0.0, 0.01, 0.05), x)).clamp(0, 1)


def tint(x: Tensor, color: tuple[float, float, float]) -> Tensor:
    return (0.3 * x + 0.8 * luma(x) * _rgb(color, x)).clamp(0, 1)


def sunset(x: Tensor, frame: Frame) -> Tensor:
    """Orange light, strongest along a horizon a little above the middle."""
    glow = torch.exp(-(((frame.y(x) + 0.15) / 0.55) ** 2))
    return (x * _rgb((1.05, 0.72, 0.48), x) + glow * _rgb((0.28, 0.10, 0.0), x)).clamp(0, 1)


def glow(x: Tensor, frame: Frame) -> Tensor:
    """A soft light, as through a mist filter: the picture and its blur, screened."""
    return 1 - (1 - x) * (1 - 0.6 * filters.smooth(x, frame))


def fog(x: Tensor, amount: float, frame: Frame, weather: Weather) -> Tensor:
    """Thicker towards the top, where a photo is usually farther away, and in banks."""
    thickness = (amount * (0.55 - 0.22 * frame.y(x) + 0.09 * weather.clouds)).clamp(0, 0.96)
    return x * (1 - thickness) + 0.85 * thickness


def flakes(weather: Weather, amount: Tensor | float) -> tuple[Tensor, Tensor]:
    """How much of a flake is at each pixel, near ones and far ones, 0..1; more of them with a larger amount."""
    few = 0.6 * (1 - amount)
    near, far = weather.large - 2.1 - few, weather.small - 1.9 - few
    return 0.95 * torch.sigmoid(7 * near), 0.8 * torch.sigmoid(7 * far)


def streaks(weather: Weather, amount: Tensor | float) -> Tensor:
    """The same of rain."""
    return 0.5 * torch.sigmoid(5 * (weather.streaks - 1.7 - 0.6 * (1 - amount)))


def snow(x: Tensor, amount: float, _frame: Frame, weather: Weather) -> Tensor:
    """Flakes of two sizes before a scene that is a little paler."""
    x = torch.lerp(x, 0.6 * luma(x) + _rgb((0.32, 0.34, 0.37), x), 0.3 * min(amount, 1.0))
    near, far = flakes(weather, amount)
    return 1 - (1 - x) * (1 - near) * (1 - far)


def rain(x: Tensor, amount: float, _frame: Frame, weather: Weather) -> Tensor:
    """Slanting streaks before a scene that is dimmer, greyer and bluer."""
    dull = torch.lerp(luma(x), x, 0.6) * _rgb((0.68, 0.76, 0.84), x)
    x = torch.lerp(x, dull, min(amount, 1.0))
    falling = streaks(weather, amount)
    return x * (1 - falling) + falling * _rgb((0.88, 0.92, 0.96), x)


def grain(x: Tensor, amount: float, _frame: Frame, weather: Weather) -> Tensor:
    return (x + 0.09 * amount * weather.grain).clamp(0, 1)


def vignette(x: Tensor, amount: float, frame: Frame, _weather: Weather) -> Tensor:
    edge = ((frame.y(x) ** 2 + frame.x(x) ** 2) / 1.6).clamp(0, 1)
    return x * (1 - (0.9 * amount * edge).clamp(max=1))


def margin(like: Tensor, frame: Frame) -> Tensor:
    """[H, W], 1 in the outer twentieth of the short side, 0 inside."""
    return ((0.1 - frame.edge(like)) * frame.side / 2 + 1).clamp(0, 1)


def border(x: Tensor, _amount: float, frame: Frame, _weather: Weather) -> Tensor:
    """A white frame, a twentieth of the short side wide."""
    return torch.lerp(x, torch.ones_like(x), margin(x, frame))


def mirror(x: Tensor, _amount: float, _frame: Frame, _weather: Weather) -> Tensor:
    return x.flip(-1)


def upside_down(x: Tensor, _amount: float, _frame: Frame, _weather: Weather) -> Tensor:
    return x.flip(-2)


def _by_degree(plain: Plain, most: float = 1.4) -> Edit:
    """`amount` goes so far towards `plain`'s result, and beyond 1 further in the same direction."""

    def edit(x: Tensor, amount: float, _frame: Frame, _weather: Weather) -> Tensor:
        return torch.lerp(x, plain(x), min(amount, most)).clamp(0, 1)

    return edit


def _in_frame(framed: Callable[[Tensor, Frame], Tensor]) -> Edit:
    def edit(x: Tensor, amount: float, frame: Frame, _weather: Weather) -> Tensor:
        return torch.lerp(x, framed(x, frame), min(amount, 1.0)).clamp(0, 1)

    return edit


# In the order in which they are applied: what turns the picture, what is drawn anew, colours, light, weather.
TURNS: dict[str, Edit] = {"mirror": mirror, "upside_down": upside_down}
DRAWN: dict[str, Edit] = {
    "blur": _in_frame(filters.smooth),
    "sharpen": _in_frame(lambda x, frame: x + 1.5 * (x - filters.fine(x, frame))),
    "pixelate": _in_frame(filters.blocky),
    "posterize": _in_frame(lambda x, _frame: filters.tones(x)),
    "sketch": _in_frame(filters.lines),
    "glow": _in_frame(glow),
}
COLOURS: dict[str, Edit] = {
    "grayscale": _by_degree(lambda x: luma(x).expand_as(x), 1.0),
    "sepia": _by_degree(sepia, 1.0),
    "invert": _by_degree(lambda x: 1 - x, 1.0),
    "thermal": _by_degree(thermal, 1.0),
    "brighter": _by_degree(lambda x: 1 - (1 - x) ** 1.9),
    "darker": _by_degree(lambda x: 0.6 * x**1.3),
    "contrast": _by_degree(lambda x: (0.5 + 1.75 * (x - 0.5)).clamp(0, 1)),
    "fade": _by_degree(lambda x: 0.56 + 0.5 * (x - 0.5)),
    "saturate": _by_degree(lambda x: torch.lerp(luma(x), x, 2.0).clamp(0, 1)),
    "desaturate": _by_degree(lambda x: torch.lerp(luma(x), x, 0.4)),
    "warm": _by_degree(lambda x: x * _rgb((1.18, 1.02, 0.72), x)),
    "cool": _by_degree(lambda x: x * _rgb((0.74, 0.97, 1.2), x)),
    "cinematic": _by_degree(cinematic),
} | {name: _by_degree(partial(tint, color=color), 1.2) for name, color in TINTS.items()}
LIGHT: dict[str, Edit] = {"sunset": _in_frame(sunset), "night": _by_degree(night, 1.2), "fog": fog}
OVER: dict[str, Edit] = {
    "snow": snow, "rain": rain, "grain": grain, "vignette": vignette, "border": border,
}  # fmt: skip
EDITS: dict[str, Edit] = TURNS | DRAWN | COLOURS | LIGHT | OVER
NAMES: tuple[str, ...] = tuple(EDITS)
# Of each row at most one is asked for at a time.
RIVALS: tuple[tuple[str, ...], ...] = (
    *((turn,) for turn in TURNS),
    tuple(DRAWN),
    ("grayscale", "sepia", "thermal", "cinematic", "saturate", "desaturate", *TINTS),
    ("invert",),
    ("brighter", "darker", "sunset", "night"),
    ("contrast", "fade"),
    ("warm", "cool"),
    ("fog",),
    ("snow", "rain"),
    ("grain",),
    ("vignette",),
    ("border",),
)

SLIGHTLY, PLAINLY, STRONGLY = 0.5, 1.0, 1.4


def apply(amounts: Mapping[str, float], x: Tensor, frame: Frame, weather: Weather) -> Tensor:
    """The target for x with all of `amounts` (edit -> 0.5 slightly, 1, 1.4 strongly); {} leaves x as it is."""
    for name, edit in EDITS.items():
        if name in amounts:
            x = edit(x, amounts[name], frame, weather)
    return x
