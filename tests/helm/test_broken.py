"""A chart that is broken on purpose fails the checks: each of them can."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helm import cases, hygiene, test_values, wiring
from tests.helm.chart import CHART, Helm, Manifest
from tests.helm.test_network import (
    test_all_that_serving_needs_gets_through_in_every_case as serving_gets_through,
)
from tests.helm.test_network import test_no_case_opens_more_than_it_says as no_more_gets_through

Check = Callable[[list[Manifest]], None]
SCALED = {"gateways": "scaled", "servers": "keda", "watching": "pods"}
MTLS = {"tls": "mtls", "callers": "keys"}
WIDE = {"policy": "wide"}

# What is written in the templates, what is written in its place, the check that must fail, the case it is seen in.
DAMAGES: list[tuple[str, str, Check, dict[str, str]]] = [
    ("automountServiceAccountToken: false", "automountServiceAccountToken: true", hygiene.hardened, {}),
    ("enableServiceLinks: false", "enableServiceLinks: true", hygiene.hardened, {}),
    ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", hygiene.hardened, {}),
    ("runAsNonRoot: true", "runAsNonRoot: false", hygiene.restricted, {}),
    ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", hygiene.restricted, {}),
    (r"drop: \[ALL\]", "drop: []", hygiene.restricted, {}),
    ("type: RuntimeDefault", "type: Unconfined", hygiene.restricted, {}),
    (r"emptyDir: \{sizeLimit: [^}]*\}\}\}", "emptyDir: {}", hygiene.volumes, {}),
    ("readOnly: true", "readOnly: false", hygiene.volumes, MTLS),
    ("medium: Memory, ", "", hygiene.scratch, {}),
    ("service: retouch.v1.ImageEdit", "service: retouch.v1.Other", hygiene.probes, {}),
    ("path: /healthz, port: http", "path: /readyz, port: http", hygiene.probes, {}),
    (r"terminationGracePeriodSeconds: .*", "terminationGracePeriodSeconds: 30", hygiene.leaving, {}),
    ("maxUnavailable: 0", "maxUnavailable: 1", hygiene.rolling, {}),
    ("clusterIP: None", "clusterIP: null", wiring.upstreams, {}),
    ("port: 50051, targetPort: grpc", "port: 443, targetPort: grpc", wiring.upstreams, {}),
    ("targetPort: http", "targetPort: https", wiring.services, {}),
    ("app.kubernetes.io/component: .*", "app.kubernetes.io/component: one", wiring.selectors, {}),
    ("replacement: retouch-", "replacement: edits-", wiring.monitors, SCALED),
    (r"- port: metrics", "- port: http", wiring.monitors, SCALED),
    (r'\{\{- if eq .autoscaling.kind "none" \}\}', "{{- if true }}", wiring.backends, SCALED),
    (r"ports: \[\{port: 50051", "ports: [{port: 50052", serving_gets_through, {}),
    (r"\{port: 53, protocol: UDP\}", "{port: 54, protocol: UDP}", serving_gets_through, {}),
    (r", except: \[[^\]]*\]", "", no_more_gets_through, WIDE),
    (r"policyTypes: \[Ingress, Egress\]", "policyTypes: [Egress]", no_more_gets_through, WIDE),
]  # fmt: skip


@pytest.fixture
def copy(helm: Helm, tmp_path: Path) -> Helm:
    """A helm before a chart of its own."""
    shutil.copytree(CHART, tmp_path / "retouch")
    return Helm(helm.binary, tmp_path / "retouch")


@pytest.mark.parametrize(
    ("written", "instead", "check", "levels"), DAMAGES, ids=[each[0] for each in DAMAGES]
)
def test_the_damage_is_seen(
    copy: Helm, written: str, instead: str, check: Check, levels: dict[str, str]
) -> None:
    values = cases.values(levels)
    check(copy.render(values))
    count = 0
    for template in (copy.chart / "templates").rglob("*.*"):
        text, found = re.subn(written, instead, template.read_text())
        template.write_text(text)
        count += found
    assert count, f"no template has {written}"
    broken = Helm(copy.binary, copy.chart.rename(copy.chart.with_name("broken")))
    with pytest.raises((AssertionError, KeyError)):
        check(broken.render(values))


def test_a_schema_that_takes_anything_is_seen(copy: Helm) -> None:
    path = copy.chart / "values.schema.json"
    path.write_text(path.read_text().replace('"additionalProperties": false,', "", 30))
    assert len(test_values.accepting(copy)) >= 10
