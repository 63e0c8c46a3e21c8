"""Who gets through to whom, by the NetworkPolicies that are rendered."""

from __future__ import annotations

import pytest

from tests.helm import cases
from tests.helm.chart import Helm, Manifest, Values, merged
from tests.helm.conftest import CASES, rendered
from tests.helm.flows import End, allowed
from tests.helm.objects import of, pods, tier

STRANGER = End({"app.kubernetes.io/name": "retouch"}, namespace="elsewhere")
NEIGHBOUR = End({"app": "shop"})
PROMETHEUS = End({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")
CONTROLLER = End({"app": "ingress-nginx"}, namespace="ingress-nginx")
PROXY = End({"app": "envoy"}, namespace="gateways")
DNS = End({"k8s-app": "kube-dns"}, namespace="kube-system")
INTERNET, METADATA = End(address="198.51.100.7"), End(address="169.254.169.254")
METADATA_6, INTERNET_6 = End(address="fd00:ec2::254"), End(address="2001:db8::7")
LINK_LOCAL_6 = End(address="fe80::1")


def ends(manifests: list[Manifest]) -> tuple[End, End, End]:
    """The first server, the gateway, the pod of `helm test`."""
    (gateway,) = tier(manifests, "gateway")
    (test,) = [each for each in pods(manifests) if each.owner["kind"] == "Pod"]
    return End.at(tier(manifests, "server")[0]), End.at(gateway), End.at(test)


def test_all_that_serving_needs_gets_through_in_every_case(manifests: list[Manifest]) -> None:
    _, gateway, test = ends(manifests)
    assert allowed(manifests, test, gateway, 8000)
    for pod in tier(manifests, "server"):
        server = End.at(pod)
        assert allowed(manifests, gateway, server, 50051), "pods' own port, behind a headless name"
        if pod.spec.get("initContainers"):
            assert allowed(manifests, server, INTERNET, 443), "where its checkpoint is"
        assert allowed(manifests, server, DNS, 53, "UDP")
    for protocol in ("UDP", "TCP"):
        assert allowed(manifests, gateway, DNS, 53, protocol)
    if of(manifests, "PodMonitor", "ServiceMonitor"):
        for pod in [*tier(manifests, "server"), *tier(manifests, "gateway")]:
            assert allowed(manifests, PROMETHEUS, End.at(pod), pod.ports["metrics"])


def test_no_case_opens_more_than_it_says(manifests: list[Manifest]) -> None:
    if not of(manifests, "NetworkPolicy"):
        return  # and every case but those named so has some, see below
    server, gateway, _ = ends(manifests)
    for who in (STRANGER, NEIGHBOUR, INTERNET, CONTROLLER):
        assert not allowed(manifests, who, server, 50051)
        assert not allowed(manifests, who, server, 9090)
        assert not allowed(manifests, who, gateway, 9091), "metrics are not public"
    assert not allowed(manifests, gateway, server, 9090)
    assert not allowed(manifests, server, gateway, 8000)
    for own in (server, gateway):
        for address in (METADATA, METADATA_6, LINK_LOCAL_6):
            assert not allowed(manifests, own, address, 80)
            assert not allowed(manifests, own, address, 443)
        assert not allowed(manifests, own, INTERNET, 22)
        assert not allowed(manifests, own, INTERNET, 80)
    assert not allowed(manifests, STRANGER, gateway, 8000)


DENY_ALL: Manifest = {
    "kind": "NetworkPolicy",
    "metadata": {"name": "deny", "namespace": "images"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
}


def test_serving_gets_through_where_the_namespace_denies_all(helm: Helm, case: str) -> None:
    manifests = rendered(helm, case)
    if of(manifests, "NetworkPolicy"):
        test_all_that_serving_needs_gets_through_in_every_case([*manifests, DENY_ALL])
        _, _, test = ends(manifests)
        assert allowed([*manifests, DENY_ALL], test, DNS, 53, "UDP")


def test_only_who_says_so_has_no_policies(helm: Helm, case: str) -> None:
    off = CASES.get(case, {}).get("networkPolicy", {}).get("enabled") is False
    assert (of(rendered(helm, case), "NetworkPolicy") == []) is off


def test_by_default_this_namespace_may_call_the_gateway_and_nothing_leaves(helm: Helm) -> None:
    manifests = helm.render({})
    server, gateway, _ = ends(manifests)
    assert allowed(manifests, NEIGHBOUR, gateway, 8000)
    for own in (server, gateway):
        for where in (INTERNET, INTERNET_6, METADATA, NEIGHBOUR, STRANGER):
            assert not allowed(manifests, own, where, 443)


MATRIX: list[tuple[Values, End, str, int, bool]] = [
    (cases.FRONTS["ingress"], CONTROLLER, "gateway", 8000, True),
    (cases.FRONTS["ingress"], PROXY, "gateway", 8000, False),
    (cases.FRONTS["route"], PROXY, "gateway", 8000, True),
    (cases.FRONTS["route"], CONTROLLER, "gateway", 8000, False),
    ({"networkPolicy": {"gateway": {"clients": []}}}, NEIGHBOUR, "gateway", 8000, False),
    ({"networkPolicy": {"server": {"clients": [{"podSelector": {}}]}}}, NEIGHBOUR, "server", 50051, True),
    ({"networkPolicy": {"server": {"clients": [{"podSelector": {}}]}}}, STRANGER, "server", 50051, False),
    ({"networkPolicy": {"prometheus": cases.MONITORING}}, PROMETHEUS, "server", 9090, True),
    ({"networkPolicy": {"prometheus": cases.MONITORING}}, PROMETHEUS, "server", 50051, False),
    ({"networkPolicy": {"prometheus": cases.MONITORING}}, PROMETHEUS, "gateway", 9091, True),
    ({"networkPolicy": {"prometheus": cases.MONITORING}}, PROMETHEUS, "gateway", 8000, False),
    ({"networkPolicy": {"enabled": False}}, STRANGER, "server", 50051, True),
]  # fmt: skip


@pytest.mark.parametrize(("values", "source", "target", "port", "open_"), MATRIX)
def test_who_may_come_in(
    helm: Helm, values: Values, source: End, target: str, port: int, open_: bool
) -> None:
    manifests = helm.render(merged({"gateway": {"anonymous": True}}, values))
    server, gateway, _ = ends(manifests)
    to = {"server": server, "gateway": gateway}[target]
    assert allowed(manifests, source, to, port) is open_


@pytest.mark.parametrize("which", ["server", "gateway"])
def test_https_reaches_the_world_and_no_credentials_of_the_cloud(helm: Helm, which: str) -> None:
    manifests = helm.render({"networkPolicy": {which: {"https": True}}})
    server, gateway, _ = ends(manifests)
    own, other = (server, gateway) if which == "server" else (gateway, server)
    for where in (INTERNET, INTERNET_6):
        assert allowed(manifests, own, where, 443)
        assert not allowed(manifests, other, where, 443)
    for where in (METADATA, METADATA_6, LINK_LOCAL_6):
        assert not allowed(manifests, own, where, 443)


def test_the_way_to_redis_is_the_gateways_alone(helm: Helm) -> None:
    manifests = helm.render(cases.values({"gateways": "redis"}))
    server, gateway, _ = ends(manifests)
    redis = End({"app": "redis"}, namespace="redis")
    assert allowed(manifests, gateway, redis, 6379)
    assert not allowed(manifests, gateway, redis, 22)
    assert not allowed(manifests, server, redis, 6379)


def test_what_downloads_gets_out_and_its_neighbour_does_not(helm: Helm) -> None:
    manifests = helm.render(cases.values({"models": "several"}))
    kontext, pocket = (End.at(pod) for pod in tier(manifests, "server"))
    assert allowed(manifests, kontext, INTERNET, 443)
    assert not allowed(manifests, kontext, METADATA, 443)
    assert not allowed(manifests, pocket, INTERNET, 443)


def test_the_simulator_knows_the_rules() -> None:
    """The API's own examples, so that what is concluded from it is worth something."""

    def policy(**spec: object) -> list[Manifest]:
        return [{"kind": "NetworkPolicy", "metadata": {}, "spec": spec}]

    web, base = End({"role": "web"}), End({"role": "db"})
    closed = policy(podSelector={}, policyTypes=["Ingress"])
    assert not allowed(closed, web, base, 6379)
    assert allowed(closed, web, INTERNET, 6379), "not a word on egress"
    either = policy(
        podSelector={"matchLabels": {"role": "db"}},
        policyTypes=["Ingress"],
        ingress=[
            {
                "from": [
                    {"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}},
                    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "a"}}},
                    {"podSelector": {"matchLabels": {"role": "web"}}},
                ],
                "ports": [{"protocol": "TCP", "port": 6379}],
            }
        ],
    )
    assert allowed(either, web, base, 6379)
    assert not allowed(either, web, base, 6380)
    assert not allowed(either, web, base, 6379, "UDP")
    assert allowed(either, End({"x": "y"}, namespace="a"), base, 6379)
    assert not allowed(either, End({"role": "web"}, namespace="b"), base, 6379)
    assert allowed(either, End(address="172.17.2.1"), base, 6379)
    assert not allowed(either, End(address="172.17.1.1"), base, 6379)
    assert allowed(either, End({"x": "y"}), web, 6379), "no policy is about it"
    both = policy(
        podSelector={},
        ingress=[{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"r": "w"}}}]}],
    )
    assert allowed(both, End({"r": "w"}, namespace="b"), base, 1)
    assert not allowed(both, End({"r": "x"}, namespace="b"), base, 1)
    named = policy(podSelector={}, ingress=[{"ports": [{"port": "api"}]}])
    assert allowed(named, web, End(ports={"api": 8000}), 8000)
    assert not allowed(named, web, End(ports={"api": 8000}), 8001)
