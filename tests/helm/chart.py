"""The chart, rendered: what helm makes of it, as dictionaries, each render made once a session."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes_validate.utils import all_versions

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/retouch"
EXAMPLES = sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))


def _kubernetes() -> tuple[str, str, str]:
    """The oldest version that Chart.yaml allows, one between, and the newest that there are schemas of."""
    allowed = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    oldest = tuple(map(int, re.findall(r"\d+", allowed)[:2]))
    known = sorted({tuple(map(int, each.split(".")[:2])) for each in all_versions()})
    supported = [f"{major}.{minor}" for major, minor in known if (major, minor) >= oldest]
    return supported[0], supported[len(supported) // 2], supported[-1]


KUBERNETES = OLD, _, NEW = _kubernetes()
RELEASE, NAMESPACE = "retouch", "images"
# What the cluster says it can do: the chart may look, and must not render what no cluster would take.
APIS = (
    "monitoring.coreos.com/v1",
    "keda.sh/v1alpha1",
    "gateway.networking.k8s.io/v1/HTTPRoute",
)

Manifest = dict[str, Any]
Values = Mapping[str, Any]


class HelmError(Exception):
    """What helm said on stderr when it would not."""


@dataclass(frozen=True)
class Helm:
    """A helm binary before a chart; `render` caches."""

    binary: Path
    chart: Path = CHART

    def run(self, *arguments: str | Path, stdin: str = "") -> str:
        """Its output. Raises HelmError."""
        done = subprocess.run(
            [self.binary, *arguments], input=stdin, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise HelmError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def text(self, values: Values, kubernetes: str = NEW, files: Sequence[Path] = ()) -> str:
        """What `helm template` prints, with the example files under `values`. Raises HelmError."""
        return _text(self, json.dumps(values), kubernetes, tuple(files))

    def render(
        self, values: Values, kubernetes: str = NEW, files: Sequence[Path] = ()
    ) -> list[Manifest]:
        """The manifests that it prints, in order; not to be changed. Raises HelmError."""
        return _parsed(self.text(values, kubernetes, files))


@functools.cache
def _parsed(text: str) -> list[Manifest]:
    return list(documents(text))


@functools.cache
def _text(helm: Helm, values: str, kubernetes: str, files: tuple[Path, ...]) -> str:
    # Examples first: what comes later wins.
    given = [f"--values={path}" for path in (*files, "-")]
    apis = [f"--api-versions={api}" for api in APIS]
    command = ["template", RELEASE, str(helm.chart), f"--namespace={NAMESPACE}", *given, *apis]
    return helm.run(*command, f"--kube-version=v{kubernetes}.0", stdin=values)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that is there twice, which YAML's own loader takes the last of."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key twice in {keys}, {node.start_mark}"
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def documents(text: str) -> Iterator[Manifest]:
    """The manifests in `text`; empty ones are left out."""
    return (each for each in yaml.load_all(text, _Loader) if each)


def merged(*layers: Values) -> dict[str, Any]:
    """Values as helm merges them: maps by key, everything else whole, the last wins."""
    made: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
            made[key] = merged(made[key], value) if both else value
    return made
