"""What a dashboard is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .queries import Source

Kind = Literal["heatmap", "stat", "state-timeline", "table", "text", "timeseries"]

COLUMNS = 24


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and what its series are called: a text with `{{label}}`."""

    expr: str
    legend: str = ""
    unit: str = "short"
    """Of its column, in a table; else the panel's unit holds."""


@dataclass(frozen=True)
class Panel:
    """One picture. Its description says what it shows, what is normal, and what to do when it is not."""

    title: str
    description: str
    queries: tuple[Query, ...] = ()
    kind: Kind = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    stacked: bool = False
    limits: tuple[float, float] | None = None
    """From where it is orange, and red; where the second is the smaller, little is bad."""
    top: float | None = None
    """The scale's upper end; None: as the data wants."""
    decimals: int | None = None
    """Shown; None: as Grafana sees fit, which calls 99.96 % a hundred."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """By what the series are called."""
    text: str = ""
    """Markdown, of a text panel."""


def stat(
    title: str,
    description: str,
    expr: str,
    unit: str = "short",
    limits: tuple[float, float] | None = None,
    decimals: int | None = None,
) -> Panel:
    """One figure; six fill a line."""
    return Panel(
        title, description, (Query(expr),), "stat", unit, 4, 4, limits=limits, decimals=decimals
    )


def guide(text: str) -> Panel:
    """Words for who is new here, in Markdown."""
    return Panel("Start here", "How to read this page.", kind="text", width=24, height=3, text=text)


def heatmap(title: str, description: str, expr: str, unit: str) -> Panel:
    """A histogram's buckets over time."""
    return Panel(title, description, (Query(expr, "{{le}}"),), "heatmap", unit)


def percentiles(
    source: Source, name: str, match: str = "", of: tuple[float, ...] = (0.5, 0.95, 0.99)
) -> tuple[Query, ...]:
    """Lines named p50, p95, ..."""
    return tuple(Query(source.quantile(q, name, match), f"p{q * 100:.0f}") for q in of)


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the page: the values of `label` on `metric`, or else fixed `options`, text by value."""

    name: str
    title: str
    metric: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    default: str = ""

    @property
    def query(self) -> str:
        return f"label_values({self.metric}, {self.name})" if self.metric else ""


@dataclass(frozen=True)
class Dashboard:
    name: str
    """Of its file; `retouch-` before it makes the uid, which links rely on."""
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    span: str = "3h"

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


@dataclass(frozen=True)
class Place:
    """In Grafana's grid, whose cells are a 24th of the page wide and 30 pixels high."""

    x: int
    y: int
    w: int
    h: int


def placed(dashboard: Dashboard) -> Iterator[tuple[Row | Panel, Place]]:
    """Each row and panel with its place: from left to right, the next line where one is full."""
    y = 0
    for row in dashboard.rows:
        yield row, Place(0, y, COLUMNS, 1)
        y, x, tallest = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, tallest = y + tallest, 0, 0
            yield panel, Place(x, y, panel.width, panel.height)
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
