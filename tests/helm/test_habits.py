"""What clusters and their keepers have of their own: odd names, what denies all, labels, several releases, upgrades."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helm import cases
from tests.helm.chart import CHART, NEW, Helm, HelmError, Manifest, Values, documents, merged
from tests.helm.conftest import CASES, rendered
from tests.helm.objects import named, of, pods, selects, tier
from tests.helm.test_render import valid


def released(helm: Helm, release: str, namespace: str, values: Values) -> list[Manifest]:
    """What such a release is rendered to. Raises HelmError."""
    command = ["template", release, str(CHART), f"--namespace={namespace}", "--values=-"]
    return list(documents(helm.run(*command, f"--kube-version=v{NEW}.0", stdin=json.dumps(values))))


NAMES: dict[str, Any] = {
    "image": {"pullSecrets": ["123"], "tag": "1e3"},
    "server": {
        "priorityClassName": "1",
        "runtimeClassName": "on",
        "rollout": "replace",
        "serviceAccount": {"name": "77"},
        "cache": {"persistent": True, "storageClass": "2e2", "size": "60Gi"},
        "download": {"tokenSecret": "0123", "tokenKey": "yes"},
    },
    "gateway": {
        "publicUrl": "https://edits.example",
        "priorityClassName": "null",
        "keys": {"existingSecret": "123", "key": "1", "testKey": "off"},
        "signingKey": {"existingSecret": "1e5", "key": "on"},
        "store": {"url": "s3://pictures", "credentialsSecret": "12"},
        "redis": {"existingSecret": "0x1", "key": "no"},
        "serviceAccount": {"name": "7"},
        "topologySpread": [{"topologyKey": "3"}],
    },
    "ingress": {
        "enabled": True,
        "className": "123",
        "tlsSecret": "5",
        "controllerNamespace": "10",
    },
    "tls": {"serverSecret": "8", "clientSecret": "9"},
    "networkPolicy": {"gateway": {"https": True, "egress": cases.WAYS}},
    "models": [
        {
            "name": "on",
            "catalog": [cases.KONTEXT],
            "resources": cases.GPU,
            "nodeSelector": {"gpu": "true"},
        }
    ],
}


def test_names_that_yaml_takes_for_something_else_stay_names(helm: Helm) -> None:
    manifests = released(helm, "true", "123", NAMES)
    assert len(manifests) > 12
    for manifest in manifests:
        valid(json.dumps(manifest), NEW)
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "true"


@pytest.mark.parametrize("release", ["1abc", "a.b"])
def test_a_release_of_which_no_service_can_be_named_is_refused(helm: Helm, release: str) -> None:
    with pytest.raises(HelmError, match="fullnameOverride: must be set"):
        released(helm, release, "images", {})
    assert released(helm, release, "images", {"fullnameOverride": "edits"})


def test_an_objects_own_labels_win_over_those_of_all(helm: Helm) -> None:
    mine = {"team": "watchers"}
    watched = {
        "metrics": {"labels": mine},
        "alerts": {"labels": mine},
        "dashboards": {"labels": mine},
        "gateway": {"podLabels": mine},
        "commonLabels": {"team": "pictures"},
    }
    manifests = helm.render(merged(cases.values({"watching": "services"}), watched))
    own = of(manifests, "ServiceMonitor", "PrometheusRule")
    own += [each for each in of(manifests, "ConfigMap") if "dashboard" in each["metadata"]["name"]]
    assert len(own) == 6
    for each in manifests:
        team = "watchers" if each in own else "pictures"
        assert each["metadata"]["labels"]["team"] == team
    assert tier(manifests, "gateway")[0].labels["team"] == "watchers"
    assert tier(manifests, "server")[0].labels["team"] == "pictures"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HF_HUB_DISABLE_TELEMETRY", "TZ"])
def test_a_variable_of_ones_own_is_the_only_one_of_its_name(helm: Helm, name: str) -> None:
    """Twice, the API server takes the last by one way of applying, and refuses it by another."""
    given = {"server": {"extraEnv": [{"name": name, "value": "7"}]}}
    manifests = helm.render(merged(cases.values({"models": "gpu"}), given))
    (server,) = tier(manifests, "server")
    for container in server.containers:
        found = [each for each in container["env"] if each["name"] == name]
        assert found == [{"name": name, "value": "7"}], container["name"]


def test_the_test_runs_where_gateways_do(helm: Helm) -> None:
    """Elsewhere it may find an architecture that its image is not for, or nobody who takes it."""
    where = {
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    }
    manifests = helm.render({"gateway": where})
    (test,) = [each for each in pods(manifests) if each.owner["kind"] == "Pod"]
    (gateway,) = tier(manifests, "gateway")
    assert {key: test.spec[key] for key in where} == {key: gateway.spec[key] for key in where}


def test_two_releases_in_one_namespace_leave_each_other_alone(helm: Helm) -> None:
    day, night = (
        released(helm, release, "images", cases.values({"models": "several"}))
        for release in ("retouch", "retouch-night")
    )
    both = [{(each["kind"], each["metadata"]["name"]) for each in one} for one in (day, night)]
    assert both[0] & both[1] == set()
    theirs = [pod.labels for pod in pods(night)]
    for each in day:
        spec = each.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {"matchLabels": {"none": ""}}
        plain = selector if "matchLabels" in selector else {"matchLabels": selector}
        assert not any(selects(plain, labels) for labels in theirs), each["metadata"]["name"]


def test_no_values_change_what_cannot_be_changed(helm: Helm) -> None:
    """A selector and a Service's missing address are for good: an upgrade from any case to any other must do."""
    kept: dict[tuple[str, str], Any] = {}
    for case in CASES:
        for each in rendered(helm, case):
            name = (each["kind"], each["metadata"]["name"])
            if each["kind"] == "Deployment":
                fixed = each["spec"]["selector"]
            elif each["kind"] == "Service":
                fixed = each["spec"].get("clusterIP")
            else:
                continue
            assert kept.setdefault(name, fixed) == fixed, (case, name)


def limits(helm: Helm, values: Values) -> dict[str, str]:
    """What the Ingress has of ingress-nginx's annotations, by the word behind its prefix."""
    manifests = helm.render(
        merged(cases.FRONTS["ingress"], {"gateway": {"anonymous": True}}, values)
    )
    annotations = named(manifests, "Ingress", "retouch-gateway")["metadata"]["annotations"]
    return {name.partition("proxy-")[2]: value for name, value in annotations.items()}


def test_ingress_nginx_cuts_nothing_off(helm: Helm) -> None:
    """By its own defaults a photo beyond 1 MiB is a 413, and an edit beyond a minute a 504."""
    usual = {"body-size": "103m", "read-timeout": "310", "buffering": "off"}
    assert limits(helm, {"ingress": {"annotations": None}}) == usual
    longer = {
        "maxImageBytes": 2**23,
        "gateway": {"settings": {"timeout": 600}},
        "server": {"settings": {"drainTimeout": 600}},
    }
    assert limits(helm, {**longer, "ingress": {"annotations": None}}) == {
        **usual,
        "body-size": "205m",
        "read-timeout": "610",
    }
    own = {"nginx.ingress.kubernetes.io/proxy-body-size": "7m"}
    assert limits(helm, {"ingress": {"annotations": own}})["body-size"] == "7m"


def test_room_for_what_is_downloaded_is_asked_of_the_node(helm: Helm) -> None:
    """Else a pod is put onto a disk that is too small, and evicted while it downloads."""

    def asked(levels: dict[str, str], **server: Any) -> Any:
        (pod,) = tier(helm.render(merged(cases.values(levels), {"server": server})), "server")
        return pod.main["resources"]["requests"].get("ephemeral-storage")

    assert asked({"models": "gpu"}) == "60Gi"
    assert asked({"models": "gpu", "cache": "claim"}) is None
    assert asked({}) is None, "nothing is downloaded"
    own = {"requests": {"ephemeral-storage": "9Gi"}}
    assert asked({"models": "gpu"}, resources=own) == "9Gi"
