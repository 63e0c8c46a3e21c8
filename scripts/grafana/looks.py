"""What makes each kind of panel look as it does: Grafana's options and field settings."""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .panels import Panel

Json = dict[str, Any]

PHASES = {"queue": "orange", "encode": "blue", "denoise": "green", "decode": "purple"}
OUTCOMES = {
    "done": "green",
    "failed": "red",
    "expired": "orange",
    "blocked": "purple",
    "rejected": "yellow",
    "cancelled": "#8e8e8e",
}
SERVED = {"ok": "green", "expired": "orange", "unknown": "blue", "failed": "red"}
NO_TRAFFIC = {
    "type": "special",
    "options": {"match": "nan", "result": {"text": "no traffic", "index": 0}},
}
READY = {
    "type": "value",
    "options": {
        "0": {"text": "not ready", "color": "red", "index": 0},
        "1": {"text": "ready", "color": "green", "index": 1},
    },
}


def _thresholds(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.limits:
        orange, red = panel.limits
        if orange <= red:
            steps += [{"color": "orange", "value": orange}, {"color": "red", "value": red}]
        else:  # little is bad
            steps = [{"color": "red", "value": None}, {"color": "orange", "value": red}]
            steps.append({"color": "green", "value": orange})
    return {"mode": "absolute", "steps": steps}


def _field(panel: Panel, colour: str, **custom: Any) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": colour},
        "thresholds": _thresholds(panel),
        "mappings": [],
        "custom": custom,
    }
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    overrides = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in panel.colours.items()
    ]
    return {"defaults": defaults, "overrides": overrides}


def _timeseries(panel: Panel) -> Json:
    field = _field(
        panel,
        "palette-classic",
        drawStyle="line",
        lineInterpolation="linear",
        lineWidth=1,
        fillOpacity=40 if panel.stacked else 8,
        gradientMode="none",
        showPoints="auto",
        pointSize=4,
        spanNulls=False,
        stacking={"mode": "normal" if panel.stacked else "none", "group": "A"},
        axisPlacement="auto",
        axisLabel="",
        scaleDistribution={"type": "linear"},
        thresholdsStyle={"mode": "dashed" if panel.limits else "off"},
    )
    legend = {
        "showLegend": True,
        "displayMode": "table",
        "placement": "bottom",
        "calcs": ["mean", "max", "lastNotNull"],
    }
    return {
        "fieldConfig": field,
        "options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
    }


def _stat(panel: Panel) -> Json:
    field = _field(panel, "thresholds")
    field["defaults"] |= {"mappings": [NO_TRAFFIC], "noValue": "no data"}
    options = {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return {"fieldConfig": field, "options": options}


def _states(panel: Panel) -> Json:
    field = _field(panel, "thresholds", lineWidth=0, fillOpacity=70)
    field["defaults"]["mappings"] = [READY]
    options = {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.8,
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return {"fieldConfig": field, "options": options}


def _heatmap(panel: Panel) -> Json:
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "steps": 64,
            "exponent": 0.5,
            "fill": "dark-orange",
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": panel.unit},
    }
    custom = {
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "scaleDistribution": {"type": "linear"},
    }
    return {"fieldConfig": {"defaults": {"custom": custom}, "overrides": []}, "options": options}


def _table(panel: Panel) -> Json:
    """One line per set of labels, one column per query, named as its legend says."""
    field = _field(panel, "thresholds", align="auto", filterable=False)
    del field["defaults"]["min"]
    letters = dict(zip(ascii_uppercase, panel.queries, strict=False))
    organize = {
        "excludeByName": {"Time": True},
        "indexByName": {},
        "renameByName": {f"Value #{letter}": query.legend for letter, query in letters.items()},
    }
    field["overrides"] = [
        {
            "matcher": {"id": "byName", "options": query.legend},
            "properties": [{"id": "unit", "value": query.unit}],
        }
        for query in panel.queries
    ]
    return {
        "fieldConfig": field,
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
        },
        "transformations": [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": organize},
        ],
    }


def _text(panel: Panel) -> Json:
    return {"transparent": True, "options": {"mode": "markdown", "content": panel.text}}


LOOKS: dict[str, Callable[[Panel], Json]] = {
    "heatmap": _heatmap,
    "stat": _stat,
    "state-timeline": _states,
    "table": _table,
    "text": _text,
    "timeseries": _timeseries,
}
