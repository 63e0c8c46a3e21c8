"""Every case's parts fit each other, and every pod is as it should be."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import yaml

from tests.helm import existing, hygiene, wiring
from tests.helm.chart import CHART, OLD, Helm, Manifest
from tests.helm.conftest import rendered
from tests.helm.objects import tier

CHECKS: list[Callable[[list[Manifest]], None]] = [
    wiring.names,
    wiring.selectors,
    wiring.services,
    wiring.backends,
    wiring.upstreams,
    wiring.monitors,
    hygiene.restricted,
    hygiene.hardened,
    hygiene.volumes,
    hygiene.scratch,
    hygiene.resources,
    hygiene.probes,
    hygiene.leaving,
    hygiene.rolling,
    hygiene.environments,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds(
    check: Callable[[list[Manifest]], None], manifests: list[Manifest], case: str
) -> None:
    check(manifests)


def test_every_reference_leads_somewhere(
    manifests: list[Manifest], secrets: dict[str, dict[str, bytes]]
) -> None:
    wiring.references(manifests, secrets, existing.CLAIMS)


def test_the_readmes_five_values_are_all_it_takes(
    helm: Helm, secrets: dict[str, dict[str, bytes]]
) -> None:
    _, _, section = (CHART / "README.md").read_text().partition("## Install it in five values")
    block = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert block
    assert re.findall(r"# (\d):", block[1]) == ["1", "2", "3", "4", "5"]
    manifests = helm.render(yaml.safe_load(block[1]))
    for check in CHECKS:
        check(manifests)
    wiring.references(manifests, secrets, existing.CLAIMS)


def test_old_clusters_sleep_by_a_command(helm: Helm) -> None:
    """The `sleep` action came with 1.30 (beta); before it the image's own means have to do."""
    for pod in [
        *tier(rendered(helm, "defaults", OLD), "server"),
        *tier(rendered(helm, "defaults", OLD), "gateway"),
    ]:
        assert "exec" in pod.main["lifecycle"]["preStop"]
    hygiene.leaving(rendered(helm, "defaults", OLD))
