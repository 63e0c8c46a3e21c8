"""Whether NetworkPolicies let a connection through, by the rules of the API:
https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.helm.chart import NAMESPACE, Manifest
from tests.helm.objects import Pod, of, selects

Rule = Mapping[str, Any]


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or with `address` somebody outside of the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    address: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def at(cls, pod: Pod) -> End:
        return cls(pod.labels, ports=pod.ports)


def allowed(
    manifests: Iterable[Manifest], source: End, target: End, port: int, protocol: str = "TCP"
) -> bool:
    """Whether `source` may send, and `target` may take."""
    policies = of(list(manifests), "NetworkPolicy")
    sends = _open(policies, "Egress", source, target, target, port, protocol)
    return sends and _open(policies, "Ingress", target, source, target, port, protocol)


def _open(
    policies: list[Manifest],
    way: str,
    own: End,
    other: End,
    target: End,
    port: int,
    protocol: str,
) -> bool:
    """A pod that no policy selects is open; else one rule of any of them must let it through."""
    mine = [each for each in policies if _applies(each, way, own)]
    if not mine:
        return True
    key, side = ("egress", "to") if way == "Egress" else ("ingress", "from")
    return any(
        _peer(rule.get(side), other) and _port(rule.get("ports"), target, port, protocol)
        for each in mine
        for rule in each["spec"].get(key) or []
    )


def _applies(policy: Manifest, way: str, own: End) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return (
        not own.address
        and own.namespace == policy["metadata"].get("namespace", NAMESPACE)
        and way in types
        and selects(spec["podSelector"], own.labels)
    )


def _peer(peers: list[Rule] | None, other: End) -> bool:
    return not peers or any(_is(peer, other) for peer in peers)


def _is(peer: Rule, other: End) -> bool:
    if block := peer.get("ipBlock"):
        return bool(other.address) and _in(block, other.address)
    if other.address:
        return False
    if "namespaceSelector" in peer:
        its = {"kubernetes.io/metadata.name": other.namespace}
        if not selects(peer["namespaceSelector"], its):
            return False
    elif other.namespace != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def _in(block: Rule, address: str) -> bool:
    found = ipaddress.ip_address(address)
    if found not in ipaddress.ip_network(block["cidr"]):
        return False
    return not any(found in ipaddress.ip_network(each) for each in block.get("except", []))


def _port(ports: list[Rule] | None, target: End, port: int, protocol: str) -> bool:
    if not ports:
        return True
    for each in ports:
        first = each.get("port")
        number = target.ports.get(first) if isinstance(first, str) else first
        if each.get("protocol", "TCP") == protocol and (
            first is None or (number is not None and number <= port <= each.get("endPort", number))
        ):
            return True
    return False
