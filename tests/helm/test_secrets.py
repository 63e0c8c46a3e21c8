"""Secrets are others' objects, and each gets to those alone who need it."""

from __future__ import annotations

import re

from tests.helm import cases, existing
from tests.helm.chart import Helm, Manifest, merged
from tests.helm.conftest import CASES, example, rendered
from tests.helm.objects import Pod, of, pods, tier, walk

# What a secret looks like, wherever it stands.
SECRET = re.compile(
    r"-----BEGIN|\bAKIA[0-9A-Z]{16}\b|\bhf_[0-9A-Za-z]{20}|\brt_[\w-]{16}|://[^/\s]*:[^/\s]*@|hash = "
)


def used(where: object) -> set[str]:
    """Names of the Secrets that a pod's spec or a container names."""
    names = set()
    for path, value in walk(where):
        if path.endswith((".secretName", "secretKeyRef.name", "secretRef.name", "secret.name")):
            names.add(value)
    return names


def test_the_chart_makes_no_secret_and_shows_none(helm: Helm, case: str) -> None:
    assert of(rendered(helm, case), "Secret") == []
    found = SECRET.findall(helm.text(CASES.get(case, {}), files=example(case)))
    assert found == []


def test_config_maps_hold_catalogues_and_dashboards_alone(manifests: list[Manifest]) -> None:
    for each in of(manifests, "ConfigMap"):
        (name,) = each["data"]
        assert name == "models.yaml" or name.endswith(".json"), name
        if name == "models.yaml":
            assert each["data"][name].startswith("models:")


def test_what_looks_like_a_secret_is_seen() -> None:
    for secret in (
        "-----BEGIN PRIVATE KEY-----",
        "redis://:pass@redis:6379",
        existing.KEYS,
        existing.API_KEY,
    ):
        assert SECRET.search(f"value: {secret}")


def whole(helm: Helm) -> tuple[Pod, Pod, Pod]:
    """A server, the gateway and the pod of `helm test`, of a chart that uses each Secret there is."""
    levels = {
        "models": "gpu",
        "cache": "hub",
        "gateways": "redis",
        "callers": "keys",
        "tls": "mtls",
        "extras": "all",
    }
    signed = {"gateway": {"signingKey": {"existingSecret": "retouch-signing"}}}
    manifests = helm.render(merged(cases.values(levels), signed))
    (server,), (gateway,) = tier(manifests, "server"), tier(manifests, "gateway")
    (test,) = [each for each in pods(manifests) if each.owner["kind"] == "Pod"]
    return server, gateway, test


def test_each_gets_to_those_who_need_it(helm: Helm) -> None:
    server, gateway, test = whole(helm)
    assert used(server.main) == set()
    assert used(server.spec["volumes"]) == {
        *("retouch-server-tls", "retouch-gateway-tls", "retouch-c2pa"),
    }
    (download,) = server.spec["initContainers"]
    assert used(download) == {"hub"}
    assert {mount["name"] for mount in download["volumeMounts"]} & {"tls", "c2pa"} == set()
    assert used(gateway.spec) == {
        *("retouch-keys", "retouch-signing", "retouch-store", "retouch-redis"),
        *("retouch-server-tls", "retouch-gateway-tls"),
    }
    assert used(test.spec) == {"retouch-keys"}


def files(pod: Pod) -> dict[tuple[str, str], str]:
    """What of which Secret is in a file of which name."""
    found = {}
    for volume in pod.spec["volumes"]:
        for source in volume.get("projected", {}).get("sources", [volume]):
            if "secret" in source:
                own = source["secret"]
                for item in own["items"]:  # without it all of the Secret would be there
                    found[own.get("secretName") or own["name"], item["key"]] = item["path"]
    return found


def test_nobody_has_anothers_private_key_nor_an_api_key_in_plain(helm: Helm) -> None:
    server, gateway, test = whole(helm)
    assert files(server) == {
        ("retouch-server-tls", "tls.crt"): "tls.crt",
        ("retouch-server-tls", "tls.key"): "tls.key",
        ("retouch-gateway-tls", "ca.crt"): "client-ca.crt",
        ("retouch-c2pa", "tls.crt"): "tls.crt",
        ("retouch-c2pa", "tls.key"): "tls.key",
    }
    assert files(gateway) == {
        ("retouch-keys", "keys.toml"): "keys.toml",
        ("retouch-signing", "signing-key"): "signing-key",
        ("retouch-server-tls", "ca.crt"): "ca.crt",
        ("retouch-gateway-tls", "tls.crt"): "tls.crt",
        ("retouch-gateway-tls", "tls.key"): "tls.key",
    }
    (key,) = [each for each in test.main["env"] if each["name"] == "RETOUCH_API_KEY"]
    assert key["valueFrom"]["secretKeyRef"]["key"] == "test-key"
