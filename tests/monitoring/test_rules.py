"""The alerts: each fires and is silent when it should, asks for what there is, and has its page in the runbook."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample

import retouch_gateway.metrics
import retouch_server.metrics
from tests.e2e.conftest import tool
from tests.test_docs import anchors

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm/retouch/files/rules/retouch.yaml"
CASES = sorted(Path(__file__).with_name("rules").glob("*.yaml"))
OPERATING = ROOT / "docs/operating.md"

_GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
EVERY = [rule for group in _GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in EVERY if "alert" in rule}
RECORDED = {rule["record"] for rule in EVERY if "record" in rule}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_file() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_are_silent_when_they_should(cases: Path) -> None:
    promtool("test", "rules", cases)


def test_every_alert_has_a_case_where_it_fires_and_one_where_it_is_silent() -> None:
    seen: dict[str, set[bool]] = defaultdict(set)
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for alert in case["alert_rule_test"]:
                seen[alert["alertname"]].add(bool(alert["exp_alerts"]))
    assert seen == {name: {True, False} for name in ALERTS}


def test_every_alert_says_how_bad_it_is_what_it_means_and_what_to_do() -> None:
    text, used = OPERATING.read_text(), set()
    for name, rule in ALERTS.items():
        assert name.startswith("Retouch")
        assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"}), name
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, name
        # With the figure, but for what has none.
        assert "$value" in rule["annotations"]["description"] or not _counts(rule["expr"]), name
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert ROOT / page == OPERATING
        assert anchor in anchors(OPERATING), f"{name}: {OPERATING.name} has no section {anchor}"
        used.add(anchor)
    sections = {each.lower() for each in re.findall(r"^#+ (Retouch\w+)$", text, re.MULTILINE)}
    assert sections == used, "a section that no alert leads to"


def _counts(expr: str) -> bool:
    """Whether the value of an alert says more than yes."""
    return "==" not in expr and "absent" not in expr and "accelerator" not in expr


@cache
def samples() -> list[Sample]:
    """Of both tiers as they are just after the start, with TLS."""
    server = retouch_server.metrics.Metrics(["pocket"])
    server.certificate_expiry.labels("tls_cert")
    gateway = retouch_gateway.metrics.Metrics()
    gateway.certificate_expiry.labels("upstream_ca")
    gateway.upstream_ready.labels("localhost:50051")
    found = []
    registries: dict[str, CollectorRegistry] = {
        "server": server.registry,
        "gateway": gateway.registry,
    }
    for tier, registry in registries.items():
        for family in registry.collect():
            for each in family.samples:
                labels = {**each.labels, "job": f"retouch-{tier}"}
                found.append(Sample(each.name, labels, each.value))
    return found


SELECTOR = re.compile(r"([a-z_:]+[\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def matches(sample: Sample, name: str, matchers: str) -> bool:
    if sample.name != name:
        return False
    for label, operator, value in MATCHER.findall(matchers):
        given = sample.labels.get(label, "")
        same = bool(re.fullmatch(value, given)) if "~" in operator else given == value
        if same == operator.startswith("!"):
            return False
    return True


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_series_that_a_rule_asks_for_is_there_from_the_start(rule: dict[str, Any]) -> None:
    """So that no alert is silent for a name or a label that nothing has."""
    expr = rule["expr"]
    asked = SELECTOR.findall(expr)
    for name, matchers in asked:
        if name != "up":  # which Prometheus makes itself
            assert any(matches(each, name, matchers) for each in samples()), f"{name}{{{matchers}}}"
            assert 'job="retouch-' in matchers or "job=~" in matchers, name
    named = set(re.findall(r"\b(?:namespace\w*:)?retouch_[\w:]+", expr))
    assert named == {name for name, _ in asked if "retouch_" in name} | (named & RECORDED)


def test_each_job_is_asked_for_by_the_name_that_it_has() -> None:
    text = RULES.read_text()
    for tier in ("server", "gateway"):
        for matchers in re.findall(rf"retouch_{tier}_\w+\{{([^}}]*)\}}", text):
            assert f'job="retouch-{tier}"' in matchers
