"""Both helms, the cases, and what each is rendered to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helm import binaries, cases, existing
from tests.helm.chart import CHART, EXAMPLES, NEW, Helm, Manifest

CASES = cases.every()


@pytest.fixture(scope="session")
def helms(pytestconfig: pytest.Config) -> dict[str, Helm]:
    """Both, by name, before the chart."""
    cache = pytestconfig.cache
    assert cache is not None
    found = binaries.find(cache.mkdir("helm"))
    return {name: Helm(binary) for name, binary in found.items()}


@pytest.fixture(scope="session")
def helm(helms: dict[str, Helm]) -> Helm:
    """The newer one."""
    return helms["helm4"]


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    return existing.secrets(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(params=[*CASES, *EXAMPLES])
def case(request: pytest.FixtureRequest) -> str:
    """Each case and each example."""
    name: str = request.param
    return name


@pytest.fixture
def manifests(helm: Helm, case: str) -> list[Manifest]:
    """What a case is rendered to on the newest Kubernetes."""
    return rendered(helm, case)


def rendered(helm: Helm, case: str, kubernetes: str = NEW) -> list[Manifest]:
    """The manifests of a case or example."""
    return helm.render(CASES.get(case, {}), kubernetes, example(case))


def example(case: str) -> list[Path]:
    return [CHART / "examples" / f"{case}.yaml"] if case in EXAMPLES else []
