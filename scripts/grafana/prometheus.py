"""Asks a Prometheus what a panel would ask it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from .panels import Dashboard, Query

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Series:
    labels: Labels
    points: tuple[tuple[float, float], ...]
    """Unix seconds and values; a value may be NaN or infinite."""

    @property
    def finite(self) -> list[float]:
        return [value for _, value in self.points if math.isfinite(value)]

    def name(self, legend: str) -> str:
        """What Grafana would call it."""
        if not legend:
            return ", ".join(f"{key}={value}" for key, value in self.labels.items()) or "value"
        return re.sub(r"\{\{(\w+)\}\}", lambda found: self.labels.get(found[1], ""), legend)


def macros(dashboard: Dashboard, window: str) -> dict[str, str]:
    """What Grafana puts for each `$name`: `window` for the rate's, else what is chosen at first, which is all."""
    chosen = {each.name: each.default or ".*" for each in dashboard.variables}
    return {"__rate_interval": window, **chosen}


def filled(expr: str, values: Mapping[str, str]) -> str:
    """Raises KeyError for a variable that the dashboard does not have."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


class Prometheus:
    """The HTTP API of one; raises httpx.HTTPStatusError, with Prometheus' own words, for a query that it refuses."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(
            base_url=url.rstrip("/") + "/api/v1/", timeout=60, trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def at(self, expr: str, time: float) -> list[Series]:
        result = self._get("query", query=expr, time=time)["result"]
        return [_series(each["metric"], [each["value"]]) for each in result]

    def over(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        result = self._get("query_range", query=expr, start=start, end=end, step=step)["result"]
        return [_series(each["metric"], each["values"]) for each in result]

    def label_values(self, label: str, metric: str) -> list[str]:
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return found

    def _get(self, path: str, **params: Any) -> Any:
        reply = self._http.get(path, params=params)
        if reply.status_code != 200:
            raise httpx.HTTPStatusError(reply.text, request=reply.request, response=reply)
        return reply.json()["data"]


def _series(labels: Labels, points: list[tuple[float, str]]) -> Series:
    return Series(labels, tuple((time, float(value)) for time, value in points))


def legends(query: Query) -> set[str]:
    """The labels that its legend wants."""
    return set(re.findall(r"\{\{(\w+)\}\}", query.legend))
