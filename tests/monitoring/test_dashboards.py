"""The dashboards: made by the script, of a shape that Grafana imports, and with data in every panel."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import retouch_gateway.metrics
import retouch_server.metrics
from scripts.grafana.dashboards import DASHBOARDS
from scripts.grafana.panels import Dashboard, Panel, Query, placed
from scripts.grafana.pictures import html
from scripts.grafana.prometheus import Series, filled, legends, macros
from scripts.grafana.render import Json, rendered
from tests.monitoring.conftest import Watched
from tests.monitoring.stack import NAMESPACE

ROOT = Path(__file__).parents[2]
FILES = ROOT / "helm/retouch/files/dashboards"
PANELS = [
    pytest.param(dashboard, panel, id=f"{dashboard.name}: {panel.title}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    if panel.kind != "text"
]
EACH = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
# Where a healthy run shows nothing but 0: title, or title and series.
QUIET: set[str | tuple[str, str]] = {
    "Servers not ready",
    "Servers out of reach",
    "Failed",
    "Device errors",
    "Store failures",
    "Limits without Redis",
    "Certificates taken up",
    "Engine without a move",
    ("Refused, by status", "409, repeated while under way"),
    ("Asked to wait, by whom", "no room at a server"),
    ("Asked to wait, by whom", "no room for the body"),
    ("Failures by reason", "500, the model or we failed"),
    ("Failures by reason", "502, server lost on the way"),
    ("Failures by reason", "503, no server ready"),
}


def queries(dashboard: Dashboard) -> Iterator[tuple[Panel, Query]]:
    for panel in dashboard.panels:
        for query in panel.queries:
            yield panel, query


@EACH
def test_the_files_are_what_the_script_writes(dashboard: Dashboard, tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/dashboards", tmp_path], check=True)
    name = f"{dashboard.name}.json"
    assert (FILES / name).read_text() == (tmp_path / name).read_text(), "run scripts/dashboards"


def test_there_is_no_other_file() -> None:
    assert {path.name for path in FILES.iterdir()} == {f"{each.name}.json" for each in DASHBOARDS}


@EACH
def test_what_grafana_needs_of_a_dashboard(dashboard: Dashboard) -> None:
    shown = rendered(dashboard)
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", shown["uid"])
    assert 36 <= shown["schemaVersion"] <= 39
    assert "__inputs" not in shown
    assert "id" not in shown
    ids = [panel["id"] for panel in shown["panels"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    assert all(panel["title"] and panel["gridPos"]["h"] > 0 for panel in shown["panels"])
    names = [variable["name"] for variable in shown["templating"]["list"]]
    assert names[0] == "datasource"
    assert len(set(names)) == len(names)


def test_uids_and_titles_are_each_its_own() -> None:
    for key in ("uid", "title"):
        assert len({rendered(dashboard)[key] for dashboard in DASHBOARDS}) == len(DASHBOARDS)


@EACH
def test_no_panel_lies_over_another_or_over_the_edge(dashboard: Dashboard) -> None:
    places = [place for _, place in placed(dashboard)]
    assert all(place.x >= 0 and place.x + place.w <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one.x + one.w <= other.x or other.x + other.w <= one.x
        above = one.y + one.h <= other.y or other.y + other.h <= one.y
        assert beside or above, (one, other)


@EACH
def test_each_panel_explains_itself_and_is_named_once(dashboard: Dashboard) -> None:
    titles = [panel.title for panel in dashboard.panels]
    assert len(set(titles)) == len(titles)
    for panel in dashboard.panels:
        assert panel.kind == "text" or (panel.queries and len(panel.description) > 100), panel.title
        if len(panel.queries) > 1:
            assert all(query.legend for query in panel.queries), panel.title


@EACH
def test_every_query_asks_the_chosen_datasource(dashboard: Dashboard) -> None:
    def sources(node: Any) -> Iterator[Json]:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "datasource":
                yield value
            elif isinstance(value, dict | list):
                yield from sources(value)

    found = list(sources(rendered(dashboard)))
    assert len(found) > len(dashboard.panels)
    assert {tuple(each.items()) for each in found} == {
        (("type", "prometheus"), ("uid", "${datasource}"))
    }


@EACH
def test_series_are_named_by_labels_that_they_have(dashboard: Dashboard) -> None:
    for panel, query in queries(dashboard):
        kept = re.findall(r"\bby \(([\w, ]+)\)", query.expr)
        for labels in kept:
            assert legends(query) <= set(labels.split(", ")) | {"le"}, (panel.title, query)


@EACH
def test_titles_that_texts_send_the_reader_to_exist(dashboard: Dashboard) -> None:
    """In bold in the guide: a panel or row of this page, or how a figure is called there."""
    names = {part.title for part, _ in placed(dashboard)}
    for panel in dashboard.panels:
        for name in re.findall(r"\*\*([^*]{3,})\*\*", panel.text):
            assert name in names, name


def metrics_of(expr: str) -> set[str]:
    return set(re.findall(r"\bretouch_(?:server|gateway)_\w+", expr))


def exported() -> set[str]:
    """Names of series, as a page has them."""
    tiers = (retouch_server.metrics.Metrics(["pocket"]), retouch_gateway.metrics.Metrics())
    found = set()
    for family in (family for tier in tiers for family in tier.registry.collect()):
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        found |= {family.name + ending for ending in endings.get(family.type, [""])}
    return {name for name in found if name.startswith("retouch_")}


def test_every_metric_is_on_a_dashboard_and_no_other() -> None:
    asked: set[str] = set()
    for dashboard in DASHBOARDS:
        for _, query in queries(dashboard):
            asked |= metrics_of(query.expr)
        for variable in dashboard.variables:
            asked |= metrics_of(variable.metric)
    assert asked <= exported()

    def family(name: str) -> str:
        return re.sub(r"_(bucket|sum|count|total)$", "", name)

    assert {family(name) for name in exported()} == {family(name) for name in asked}


# --- with a real Prometheus, over both tiers under load ---


def answer(watched: Watched, dashboard: Dashboard, panel: Panel, query: Query) -> list[Series]:
    """As the panel asks: a table at one moment, all else over the time of the load."""
    expr = filled(query.expr, macros(dashboard, "10s"))
    if panel.kind == "table":
        return watched.prometheus.at(expr, watched.end)
    return watched.prometheus.over(expr, watched.start, watched.end, 1)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_every_query_has_data(watched: Watched, dashboard: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        found = answer(watched, dashboard, panel, query)
        figures = [figure for series in found for figure in series.finite]
        assert figures, f"no data: {query}"
        if panel.title not in QUIET and (panel.title, query.legend) not in QUIET:
            assert max(map(abs, figures)) > 0, f"0 all the time: {query}"
        names = [series.name(query.legend) for series in found]
        if panel.kind != "table":
            assert len(set(names)) == len(names), f"several series of one name: {names}"


@EACH
def test_every_choice_has_values(watched: Watched, dashboard: Dashboard) -> None:
    for variable in dashboard.variables:
        if variable.metric:
            metric = filled(variable.metric, macros(dashboard, "10s"))
            assert watched.prometheus.label_values(variable.name, metric), variable.name
    assert watched.prometheus.label_values("namespace", "up") == [NAMESPACE]


@EACH
def test_a_choice_of_one_leaves_out_the_others(watched: Watched, dashboard: Dashboard) -> None:
    """Nobody's model, nobody's process: no panel that asks for one may still show something."""
    for name in ("namespace", "instance", "model"):
        values = {**macros(dashboard, "10s"), name: "nobody-s"}
        for panel, query in queries(dashboard):
            if f"${name}" not in query.expr or "vector(0)" in query.expr:
                continue
            found = watched.prometheus.at(filled(query.expr, values), watched.end)
            assert not [series for series in found if series.finite], (name, panel.title)


@EACH
def test_marks(watched: Watched, dashboard: Dashboard) -> None:
    """A process' start is marked at its time; there is no alert, and the question is understood."""
    marks = {each["name"]: each for each in rendered(dashboard)["annotations"]["list"]}
    assert len(marks) == 3
    values = macros(dashboard, "10s")
    for name, mark in marks.items():
        found = watched.prometheus.at(filled(mark["expr"], values), watched.end)
        if name == "Alerts":
            assert not found
        else:
            assert [
                watched.start - 900 < series.finite[0] / 1000 < watched.start for series in found
            ] == [True]


@EACH
def test_a_picture_has_every_panel(watched: Watched, dashboard: Dashboard) -> None:
    page = html(dashboard, watched.prometheus, (watched.start, watched.end))
    for part, _ in placed(dashboard):
        assert escape(part.title) in page
    assert "no data" not in page
    curves = [
        panel for panel in dashboard.panels if panel.kind == "timeseries" and not panel.stacked
    ]
    assert page.count("<polyline") >= len(curves)
