"""Checks that what a render's parts say of each other is so: names, labels, ports, references.

Each takes the manifests, and raises AssertionError.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from tests.helm.chart import NAMESPACE, Manifest
from tests.helm.objects import Pod, named, of, pods, selects

Secrets = Mapping[str, Mapping[str, object]]
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def names(manifests: list[Manifest]) -> None:
    """No object twice, every name a DNS label, everything in the release's namespace and labelled as Helm's."""
    counted = Counter((each["kind"], each["metadata"]["name"]) for each in manifests)
    assert [each for each, count in counted.items() if count > 1] == []
    for each in manifests:
        metadata = each["metadata"]
        assert DNS_LABEL.fullmatch(metadata["name"]), metadata["name"]
        assert metadata.get("namespace") in (None, NAMESPACE), metadata
        wanted = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"}
        assert wanted <= metadata["labels"].keys(), metadata
        for labels in (metadata["labels"], *[pod.labels for pod in pods([each])]):
            for value in labels.values():
                assert re.fullmatch(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", value), value


def selectors(manifests: list[Manifest]) -> None:
    """Each Deployment selects its own pods alone; what else selects pods selects some."""
    everyone = list(pods(manifests))
    for deployment in of(manifests, "Deployment"):
        spec = deployment["spec"]
        found = [pod.name for pod in everyone if selects(spec["selector"], pod.labels)]
        assert found == [f"Deployment {deployment['metadata']['name']}"]
        assert "helm.sh/chart" not in spec["selector"]["matchLabels"], "a selector cannot change"
        (own,) = pods([deployment])
        spread = own.spec.get("topologySpreadConstraints", [])
        affinity = own.spec.get("affinity", {}).get("podAntiAffinity", {})
        preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
        terms = [each["podAffinityTerm"] for each in preferred]
        for each in [*spread, *terms]:
            assert selects(each["labelSelector"], own.labels), own.name
    for each in of(manifests, "PodDisruptionBudget"):
        one = [pod for pod in everyone if selects(each["spec"]["selector"], pod.labels)]
        assert len(one) == 1, each["metadata"]["name"]
    for each in of(manifests, "NetworkPolicy"):
        # An empty selector is a policy for all; others must be about somebody.
        assert any(selects(each["spec"]["podSelector"], pod.labels) for pod in everyone)


def services(manifests: list[Manifest]) -> None:
    """Each Service selects pods of one workload that listen at its target ports."""
    for service in of(manifests, "Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        chosen = [
            pod for pod in pods(manifests) if selects({"matchLabels": spec["selector"]}, pod.labels)
        ]
        assert len(chosen) == 1, f"Service {name} selects {[pod.name for pod in chosen]}"
        for port in spec["ports"]:
            target = port.get("targetPort", port["port"])
            known = chosen[0].ports
            assert target in known or target in known.values(), f"{name}: {target} not in {known}"


def backends(manifests: list[Manifest]) -> None:
    """Ingress, HTTPRoute, scalers and the gateway's upstream name what is there."""
    for ingress in of(manifests, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                _has_port(manifests, backend["name"], backend["port"])
    for route in of(manifests, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            for each in rule["backendRefs"]:
                _has_port(manifests, each["name"], {"number": each["port"]})
    scaled = [
        each["spec"]["scaleTargetRef"]
        for each in of(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert len({each["name"] for each in scaled}) == len(scaled), "a workload with two scalers"
    for deployment in of(manifests, "Deployment"):
        is_scaled = deployment["metadata"]["name"] in [each["name"] for each in scaled]
        assert ("replicas" in deployment["spec"]) is not is_scaled, deployment["metadata"]["name"]
    for each in scaled:
        named(manifests, "Deployment", each["name"])
        assert each.get("kind", "Deployment") == "Deployment"
        assert each.get("apiVersion", "apps/v1") == "apps/v1"


def _has_port(manifests: list[Manifest], service: str, wanted: Manifest) -> None:
    for port in named(manifests, "Service", service)["spec"]["ports"]:
        if wanted in ({"number": port["port"]}, {"name": port.get("name")}):
            return
    raise AssertionError(f"Service {service} has no port {wanted}")


def upstreams(manifests: list[Manifest]) -> None:
    """The gateway calls a headless Service of each server, in the order of the models."""
    (gateway,) = [each for each in pods(manifests) if each.tier == "gateway"]
    targets = gateway.environment["RETOUCH_GATEWAY_UPSTREAM"].split(",")
    called = []
    for target in targets:
        found = re.fullmatch(r"dns:///([^.]+)\.([^.]+)\.svc\.([\w.-]+):(\d+)", target)
        assert found, target
        assert found[2] == NAMESPACE
        service = named(manifests, "Service", found[1])
        assert service["spec"]["clusterIP"] == "None", "one address, so no balancing"
        assert int(found[4]) in [port["port"] for port in service["spec"]["ports"]]
        # What a client balances over are pods' own addresses: their port, not the Service's.
        (pod,) = [
            each
            for each in pods(manifests)
            if selects({"matchLabels": service["spec"]["selector"]}, each.labels)
        ]
        assert pod.tier == "server"
        assert int(found[4]) in pod.ports.values(), "a headless Service maps no ports"
        called.append(pod.name)
    assert called == [pod.name for pod in pods(manifests) if pod.tier == "server"]


def monitors(manifests: list[Manifest]) -> None:
    """Each ServiceMonitor and PodMonitor finds the metrics port of one tier, under the job its rules ask for."""
    everyone = list(pods(manifests))
    for monitor in of(manifests, "PodMonitor", "ServiceMonitor"):
        spec = monitor["spec"]
        assert "namespaceSelector" not in spec or spec["namespaceSelector"] == {
            "matchNames": [NAMESPACE]
        }
        if monitor["kind"] == "PodMonitor":
            chosen = [pod for pod in everyone if selects(spec["selector"], pod.labels)]
            (endpoint,) = spec["podMetricsEndpoints"]
            numbers = {pod.ports[endpoint["port"]] for pod in chosen}
        else:
            chosen, numbers, (endpoint,) = [], set(), spec["endpoints"]
            for service in of(manifests, "Service"):
                if selects(spec["selector"], service["metadata"]["labels"]):
                    (port,) = [p for p in service["spec"]["ports"] if p["name"] == endpoint["port"]]
                    (pod,) = [
                        each
                        for each in everyone
                        if selects({"matchLabels": service["spec"]["selector"]}, each.labels)
                    ]
                    assert pod not in chosen, f"{pod.name} is scraped twice"
                    chosen.append(pod)
                    target = port.get("targetPort", port["port"])
                    numbers.add(pod.ports.get(target, target))
        (tier,) = {pod.tier for pod in chosen}
        assert numbers == {{"server": 9090, "gateway": 9091}[tier]}
        assert _job(spec, endpoint) == f"retouch-{tier}", monitor["metadata"]["name"]
        assert len(chosen) == len([pod for pod in everyone if pod.tier == tier])


def _job(spec: Manifest, endpoint: Manifest) -> str | None:
    """The job label that relabelling leaves; without any it is the Service's or the monitor's name."""
    job = None
    for rule in endpoint.get("relabelings", []):
        if rule.get("targetLabel") == "job" and "sourceLabels" not in rule:
            job = rule["replacement"]
    assert "jobLabel" not in spec or job
    return job


def references(manifests: list[Manifest], secrets: Secrets, claims: set[str]) -> None:
    """What a pod names is in the render, or is a Secret, with its keys, or a claim that somebody else made."""
    for pod in pods(manifests):
        account = pod.spec["serviceAccountName"]
        made = [each["metadata"]["name"] for each in of(manifests, "ServiceAccount")]
        assert account in made, f"{pod.name}: {account}"
        for each in pod.spec.get("imagePullSecrets", []):
            assert each["name"] in secrets, each
        for kind, name, keys in _named_by(pod):
            if kind == "Secret":
                assert name in secrets, f"{pod.name}: Secret {name} is nobody's"
                assert keys <= secrets[name].keys(), f"{pod.name}: {keys} in Secret {name}"
            elif kind == "ConfigMap":
                data = named(manifests, kind, name).get("data", {})
                assert keys <= data.keys(), f"{pod.name}: {keys} in ConfigMap {name}"
            elif name not in claims:
                named(manifests, kind, name)
    for ingress in of(manifests, "Ingress"):
        for tls in ingress["spec"].get("tls", []):
            assert tls["secretName"] in secrets, tls


def _named_by(pod: Pod) -> Iterator[tuple[str, str, set[str]]]:
    for volume in pod.spec.get("volumes", []):
        for each in volume.get("projected", {}).get("sources", [volume]):
            if "configMap" in each:
                items = each["configMap"].get("items", [])
                yield "ConfigMap", each["configMap"]["name"], {item["key"] for item in items}
            if "secret" in each:
                name = each["secret"].get("secretName") or each["secret"]["name"]
                yield "Secret", name, {item["key"] for item in each["secret"].get("items", [])}
        if "persistentVolumeClaim" in volume:
            name = volume["persistentVolumeClaim"]["claimName"]
            yield "PersistentVolumeClaim", name, set()
    for container in pod.containers:
        for source in container.get("envFrom", []):
            kind = "Secret" if "secretRef" in source else "ConfigMap"
            yield kind, (source.get("secretRef") or source["configMapRef"])["name"], set()
        for variable in container.get("env", []):
            given = variable.get("valueFrom", {})
            optional = any(each.get("optional") for each in given.values())
            for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if key in given and not optional:
                    yield kind, given[key]["name"], {given[key]["key"]}
