"""Draws a panel's data as SVG: lines, stacks, heatmaps, states. Not Grafana's hand, but the same figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .panels import Panel
from .prometheus import Series

GREY = "#9aa0a8"
PALETTE = (
    "#73bf69",
    "#5794f2",
    "#ff9830",
    "#b877d9",
    "#f2cc0c",
    "#ff7383",
    "#37c2d9",
    "#8ab8ff",
    "#c4162a",
)
NAMED = {
    "green": "#73bf69",
    "red": "#f2495c",
    "dark-red": "#c4162a",
    "orange": "#ff9830",
    "yellow": "#f2cc0c",
    "blue": "#5794f2",
    "purple": "#b877d9",
}
BYTES = ("bytes", "Bps")
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 8, 18


def colour(panel: Panel, name: str, index: int) -> str:
    chosen = panel.colours.get(name, PALETTE[index % len(PALETTE)])
    return NAMED.get(chosen, chosen)


def words(value: float, unit: str) -> str:
    """A value with its unit, as a person reads it."""
    if math.isnan(value):
        return "no traffic"
    if unit == "percentunit":
        return f"{_digits(value * 100, 4)} %"
    if unit in BYTES:
        per = "/s" if unit == "Bps" else ""
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{_digits(value)} {name}{per}"
            value /= 1024
    if unit == "s":
        return _seconds(value)
    if unit.startswith("suffix:"):
        return f"{_short(value)} {unit.removeprefix('suffix:')}"
    return f"{_short(value)}{' req/s' if unit == 'reqps' else ''}"


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_digits(value / size)}{letter}"
    return _digits(value)


def _digits(value: float, digits: int = 3) -> str:
    """So many digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def _seconds(value: float) -> str:
    for size, letter in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(value) >= 2 * size:
            return f"{_digits(value / size)} {letter}"
    return f"{_digits(value * 1000)} ms" if 0 < abs(value) < 1 else f"{_digits(value)} s"


def nice(highest: float, unit: str = "") -> float:
    """The next figure that is round in the unit."""
    if highest <= 0:
        return 1.0
    if unit in BYTES and highest >= 1024:
        return 1024 * nice(highest / 1024, unit)
    size: float = 10.0 ** math.floor(math.log10(highest))
    return next(each * size for each in (1, 2, 2.5, 5, 10) if each * size >= highest * 0.999)


def _axes(
    width: float, height: float, top: float, unit: str, span: tuple[float, float]
) -> list[str]:
    """Lines and figures at quarters of the height, minutes below."""
    drawn = []
    for quarter in range(5):
        y = TOP + height * (1 - quarter / 4)
        drawn.append(
            f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
        if quarter % 2 == 0:
            drawn.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="y">{escape(words(top * quarter / 4, unit))}</text>'
            )
    return drawn + _minutes(width, height, span)


def _minutes(width: float, height: float, span: tuple[float, float]) -> list[str]:
    start, end = span
    whole = max(1, round((end - start) / 60))
    step = max(1, whole // 5)
    return [
        f'<text x="{_x(start + minute * 60, width, span):.1f}" y="{TOP + height + 14:.1f}" class="x">'
        f"{minute} min</text>"
        for minute in range(0, whole + 1, step)
    ]


def _x(time: float, width: float, span: tuple[float, float]) -> float:
    return LEFT + width * (time - span[0]) / (span[1] - span[0])


def lines(
    panel: Panel,
    series: Sequence[tuple[str, Series]],
    span: tuple[float, float],
    size: tuple[float, float],
) -> str:
    """Of a time series panel; a stack is drawn from the topmost layer down."""
    width, height = size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM
    layers = _stacked(series) if panel.stacked else [dict(each.points) for _, each in series]
    values = [value for layer in layers for value in layer.values() if math.isfinite(value)]
    top = panel.top or nice(max(values, default=0), panel.unit)
    drawn = _axes(width, height, top, panel.unit, span)
    floor = TOP + height
    for index in reversed(range(len(layers))):
        hue = colour(panel, series[index][0], index)
        for run in _runs(layers[index]):
            places = [
                (_x(time, width, span), floor - height * min(value / top, 1)) for time, value in run
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            if panel.stacked:
                ends = f"{places[0][0]:.1f},{floor} {path} {places[-1][0]:.1f},{floor}"
                drawn.append(f'<polygon points="{ends}" fill="{hue}"/>')
            else:
                drawn.append(f'<polyline points="{path}" stroke="{hue}" class="line"/>')
    for limit, name in zip(panel.limits or (), ("orange", "red"), strict=False):
        if limit < top:
            y = f"{floor - height * limit / top:.1f}"
            ends = f'x1="{LEFT}" x2="{LEFT + width}" y1="{y}" y2="{y}"'
            drawn.append(f'<line {ends} stroke="{NAMED[name]}" class="limit"/>')
    return "".join(drawn)


def _stacked(series: Sequence[tuple[str, Series]]) -> list[dict[float, float]]:
    """Each layer's upper edge."""
    layers: list[dict[float, float]] = []
    edge: dict[float, float] = {}
    times = sorted({time for _, each in series for time, _ in each.points})
    for _, each in series:
        own = {time: value for time, value in each.points if math.isfinite(value)}
        edge = {time: edge.get(time, 0) + own.get(time, 0) for time in times}
        layers.append(edge)
    return layers


def _runs(layer: dict[float, float]) -> list[list[tuple[float, float]]]:
    """Its pieces between values that are no figures."""
    runs: list[list[tuple[float, float]]] = [[]]
    for time, value in layer.items():
        if math.isfinite(value):
            runs[-1].append((time, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def heatmap(
    panel: Panel, series: Sequence[Series], span: tuple[float, float], size: tuple[float, float]
) -> str:
    """Of cumulative buckets: a row each, the brighter the more fell between it and the one below."""
    width, height = size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM
    rows = _buckets(series)
    most = max((count for _, cells in rows for count in cells.values()), default=1)
    tall, drawn = height / max(1, len(rows)), []
    wide = width / max((len(cells) for _, cells in rows), default=1)
    for index, (bound, cells) in enumerate(rows):
        y = TOP + height - (index + 1) * tall
        drawn += [
            f'<rect x="{_x(time, width, span):.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall - 1:.1f}" '
            f'fill="{NAMED["orange"]}" opacity="{(count / most) ** 0.5:.2f}"/>'
            for time, count in cells.items()
            if count > 0
        ]
        label = "more" if math.isinf(bound) else words(bound, panel.unit)
        drawn.append(
            f'<text x="{LEFT - 6}" y="{y + tall / 2 + 4:.1f}" class="y">{escape(label)}</text>'
        )
    return "".join(drawn + _minutes(width, height, span))


def _buckets(series: Sequence[Series]) -> list[tuple[float, dict[float, float]]]:
    """Bound, and by time how many fell into that bucket alone; without the empty ones at either end."""
    rows: list[tuple[float, dict[float, float]]] = []
    below: dict[float, float] = {}
    for each in sorted(series, key=lambda one: float(one.labels["le"])):
        upto = dict(each.points)
        alone = {time: max(0.0, count - below.get(time, 0)) for time, count in upto.items()}
        rows.append((float(each.labels["le"]), alone))
        below = upto
    used = [
        index for index, (_, cells) in enumerate(rows) if any(count > 0 for count in cells.values())
    ]
    return rows[used[0] : used[-1] + 1] if used else rows


def states(
    series: Sequence[tuple[str, Series]], span: tuple[float, float], size: tuple[float, float]
) -> str:
    """A bar for each, green while it was ready."""
    width, height = size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM
    tall, drawn = height / max(1, len(series)), []
    for index, (name, each) in enumerate(series):
        y = TOP + index * tall
        wide = width / max(1, len(each.points)) + 0.5
        drawn += [
            f'<rect x="{_x(time, width, span):.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall - 4:.1f}" '
            f'fill="{NAMED["green" if ready else "red"]}"/>'
            for time, ready in each.points
        ]
        drawn.append(
            f'<text x="{LEFT + 8}" y="{y + tall / 2 + 2:.1f}" class="state">{escape(name)}</text>'
        )
    return "".join(drawn + _minutes(width, height, span))
