"""Pictures of the dashboards for the docs: each panel's real data, laid out as Grafana does, drawn by Chromium."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from html import escape
from operator import itemgetter
from pathlib import Path

from playwright.sync_api import sync_playwright

from .panels import Dashboard, Panel, Place, Row, placed
from .prometheus import Prometheus, Series, filled, macros
from .svg import NAMED, colour, heatmap, lines, states, words

Named = list[tuple[str, Series]]
COLUMN, LINE, GAP = 58, 30, 8
STYLE = Path(__file__).with_name("pictures.css").read_text()


def draw(
    dashboards: Sequence[Dashboard], url: str, seconds: float, chromium: str, folder: Path
) -> list[Path]:
    """NAME.png of each: what the Prometheus at `url` holds of the last `seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    prometheus, end = Prometheus(url), time.time()
    drawn = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for dashboard in dashboards:
            bottom = max(place.y + place.h for _, place in placed(dashboard))
            page = browser.new_page(
                viewport={"width": 24 * COLUMN + GAP, "height": bottom * LINE + GAP}
            )
            page.set_content(html(dashboard, prometheus, (end - seconds, end)))
            drawn.append(folder / f"{dashboard.name}.png")
            page.screenshot(path=drawn[-1])
            page.close()
        browser.close()
    prometheus.close()
    return drawn


def html(dashboard: Dashboard, prometheus: Prometheus, span: tuple[float, float]) -> str:
    parts = []
    for part, place in placed(dashboard):
        style = (
            f"left:{place.x * COLUMN + GAP}px;top:{place.y * LINE + GAP}px;"
            f"width:{place.w * COLUMN - GAP}px;height:{place.h * LINE - GAP}px"
        )
        if isinstance(part, Row):
            parts.append(f'<div class="row" style="{style}">{escape(part.title)}</div>')
        elif part.kind == "text":
            shown = f"<h3>{escape(part.title)}</h3>{_bold(part.text)}"
            parts.append(f'<div class="panel text" style="{style}">{shown}</div>')
        else:
            shown = _panel(part, place, _asked(dashboard, part, prometheus, span), span)
            parts.append(
                f'<div class="panel" style="{style}"><h3>{escape(part.title)}</h3>{shown}</div>'
            )
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{''.join(parts)}"


def _bold(markdown: str) -> str:
    pieces = escape(markdown, quote=False).split("**")
    return "".join(f"<b>{piece}</b>" if i % 2 else piece for i, piece in enumerate(pieces))


def _asked(
    dashboard: Dashboard, panel: Panel, prometheus: Prometheus, span: tuple[float, float]
) -> list[Named]:
    """Per query, its series by what they are called."""
    values = macros(dashboard, "20s")
    answers = []
    for query in panel.queries:
        expr = filled(query.expr, values)
        if panel.kind == "table":
            found = prometheus.at(expr, span[1])
        else:
            found = prometheus.over(expr, *span, step=5 if panel.kind == "heatmap" else 2)
        named = ((each.name(query.legend), each) for each in found)
        answers.append(sorted(named, key=itemgetter(0)))
    return answers


def _panel(panel: Panel, place: Place, answers: list[Named], span: tuple[float, float]) -> str:
    if not any(answers):
        return '<div class="figure">no data</div>'
    if panel.kind == "stat":
        return "".join(_figures(panel, answers))
    if panel.kind == "table":
        return _table(panel, answers)
    series = [each for answer in answers for each in answer]
    legend = "" if panel.kind in ("heatmap", "state-timeline") else _legend(panel, series)
    width, height = place.w * COLUMN - GAP - 18, place.h * LINE - GAP - 28
    if legend:
        height -= 15 * math.ceil(sum(len(name) + 6 for name, _ in series) * 6 / width)
    if panel.kind == "heatmap":
        shown = heatmap(panel, [each for _, each in series], span, (width, height))
    elif panel.kind == "state-timeline":
        shown = states(series, span, (width, height))
    else:
        shown = lines(panel, series, span, (width, height))
    return f'<svg width="{width}" height="{height}">{shown}</svg>{legend}'


def _legend(panel: Panel, series: Named) -> str:
    entries = (
        f'<span><i style="background:{colour(panel, name, index)}"></i>{escape(name)}</span>'
        for index, (name, _) in enumerate(series)
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def _figures(panel: Panel, answers: list[Named]) -> Iterator[str]:
    named = [each for answer in answers for each in answer]
    for name, series in named:
        value = series.points[-1][1]
        label = f"<small>{escape(name)}</small>" if len(named) > 1 else ""
        shown = escape(words(value, panel.unit)) + label
        style = f"color:{_verdict(panel, value)};font-size:{30 if len(named) < 3 else 20}px"
        yield f'<div class="figure" style="{style}">{shown}</div>'


def _verdict(panel: Panel, value: float) -> str:
    """Green, orange or red by the panel's limits."""
    if not panel.limits or math.isnan(value):
        return NAMED["green"]
    orange, red = panel.limits
    over = value.__ge__ if orange <= red else value.__lt__
    return NAMED["red" if over(red) else "orange" if over(orange) else "green"]


def _table(panel: Panel, answers: list[Named]) -> str:
    rows: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for query, answer in zip(panel.queries, answers, strict=True):
        for _, series in answer:
            cells = rows.setdefault(tuple(sorted(series.labels.items())), [])
            cells.append(words(series.points[-1][1], query.unit))
    keys = [name for name, _ in next(iter(rows))]
    head = "".join(
        f"<th>{escape(name)}" for name in (*keys, *(query.legend for query in panel.queries))
    )
    lines = (
        "<tr>"
        + "".join(f"<td>{escape(cell)}" for cell in (*(value for _, value in labels), *cells))
        for labels, cells in rows.items()
    )
    return f"<table><tr>{head}{''.join(lines)}</table>"
