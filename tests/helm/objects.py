"""What is in a render: pods, containers, what selects what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.helm.chart import Manifest

# Where a kind keeps its pod: the chart's workloads and helm's test.
PODS = {"Pod": (), "Deployment": ("spec", "template"), "Job": ("spec", "template")}


@dataclass(frozen=True)
class Pod:
    """A pod as a workload would make it."""

    owner: Manifest
    template: Manifest

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template["metadata"].get("labels", {})
        return labels

    @property
    def spec(self) -> Manifest:
        spec: Manifest = self.template["spec"]
        return spec

    @property
    def containers(self) -> list[Manifest]:
        """All of them, those that run first in front."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Manifest:
        """The one container that serves."""
        (only,) = self.spec["containers"]
        container: Manifest = only
        return container

    @property
    def ports(self) -> dict[str, int]:
        """Numbers of its ports, by name."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", [])
        }

    @property
    def tier(self) -> str:
        """server, gateway, or what else its component label says."""
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the main container that have their value in the render."""
        entries = self.main.get("env", [])
        return {each["name"]: each["value"] for each in entries if "value" in each}


def of(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in kinds]


def named(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one of that kind and name; AssertionError where there is none."""
    found = [each for each in of(manifests, kind) if each["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} x {kind} {name}"
    return found[0]


def pods(manifests: Sequence[Manifest]) -> Iterator[Pod]:
    """Every pod that the render would start."""
    for each in manifests:
        if each["kind"] in PODS:
            template = each
            for key in PODS[each["kind"]]:
                template = template[key]
            yield Pod(each, template)
        else:
            assert "template" not in (each.get("spec") or {}), f"a pod in an unknown {each['kind']}"


def tier(manifests: Sequence[Manifest], which: str) -> list[Pod]:
    """The Deployments' pods of `server` or `gateway`."""
    found = [each for each in pods(manifests) if each.tier == which]
    return [each for each in found if each.owner["kind"] == "Deployment"]


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; None matches nothing, an empty one all."""
    if selector is None:
        return False
    assert selector.keys() <= {"matchLabels", "matchExpressions"}, selector
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(_expression(each, labels) for each in selector.get("matchExpressions", []))


def _expression(wanted: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(wanted["key"])
    match wanted["operator"]:
        case "In":
            return value in wanted["values"]
        case "NotIn":
            return value not in wanted["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(f"no such operator: {wanted['operator']}")


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf and node of nested maps and lists, with its path."""
    yield path, value
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, f"{path}[{index}]")
