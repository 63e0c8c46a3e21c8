"""The JSON that Grafana 10 to 12 imports."""

from __future__ import annotations

from dataclasses import asdict
from string import ascii_uppercase
from typing import Any

from .looks import LOOKS
from .panels import Dashboard, Panel, Place, Query, Row, Variable, placed

Json = dict[str, Any]

SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA = 38  # Grafana 10.0's; later ones bring it up to date when they load it


def rendered(dashboard: Dashboard) -> Json:
    """What Grafana imports."""
    return {
        "uid": f"retouch-{dashboard.name}",
        "title": f"Retouch / {dashboard.name.capitalize()}",
        "description": dashboard.description,
        "tags": ["retouch"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": f"now-{dashboard.span}", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "links": [_between_dashboards()],
        "annotations": {
            "list": [_restarts("server", "purple"), _restarts("gateway", "blue"), _alerts()]
        },
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "panels": [
            _row(part, number, place) if isinstance(part, Row) else _panel(part, number, place)
            for number, (part, place) in enumerate(placed(dashboard), 1)
        ],
    }


def _row(row: Row, number: int, place: Place) -> Json:
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "collapsed": False,
        "gridPos": asdict(place),
        "panels": [],
    }


def _panel(panel: Panel, number: int, place: Place) -> Json:
    shown: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": asdict(place),
        **LOOKS[panel.kind](panel),
    }
    if panel.queries:
        shown["datasource"] = SOURCE
        shown["targets"] = [
            _target(panel, query, letter)
            for query, letter in zip(panel.queries, ascii_uppercase, strict=False)
        ]
    return shown


def _target(panel: Panel, query: Query, letter: str) -> Json:
    now = panel.kind == "table"
    formats = {"table": "table", "heatmap": "heatmap"}
    return {
        "refId": letter,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": formats.get(panel.kind, "time_series"),
        "instant": now,
        "range": not now,
    }


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
    }


def _variable(variable: Variable) -> Json:
    shown: Json = {"name": variable.name, "label": variable.title, "hide": 0}
    if not variable.metric:
        options = [
            {"text": text, "value": value, "selected": value == variable.default}
            for value, text in variable.options.items()
        ]
        return shown | {
            "type": "custom",
            "query": ", ".join(f"{text} : {value}" for value, text in variable.options.items()),
            "includeAll": False,
            "multi": False,
            "options": options,
            "current": next(option for option in options if option["selected"]),
        }
    return shown | {
        "type": "query",
        "datasource": SOURCE,
        "definition": variable.query,
        "query": {"qryType": 1, "query": variable.query, "refId": "A"},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",  # outside Kubernetes there is no namespace; this matches none, too
        "multi": True,
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _between_dashboards() -> Json:
    return {
        "title": "Retouch",
        "type": "dashboards",
        "tags": ["retouch"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "dashboard",
        "tooltip": "The other dashboards, for the same time",
        "url": "",
    }


def _restarts(tier: str, colour: str) -> Json:
    """A line where a process started: its start time is the time of the mark."""
    started = f'process_start_time_seconds{{job="retouch-{tier}",namespace=~"$namespace"}}'
    return {
        "name": f"Starts of {tier}s",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": f"max by (instance) ({started}) * 1000",
        "step": "60s",
        "useValueForTime": True,
        "titleFormat": f"A {tier} started",
        "textFormat": "{{instance}}",
    }


def _alerts() -> Json:
    """A span for each alert while it fires."""
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Retouch.*",alertstate="firing"}',
        "step": "60s",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}}",
    }
