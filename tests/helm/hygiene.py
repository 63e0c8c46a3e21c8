"""Checks of what each pod is allowed, given and asked: privileges, room, probes, time to leave.

Each takes the manifests, and raises AssertionError.
"""

from __future__ import annotations

import re

from tests.helm.chart import Manifest
from tests.helm.objects import Pod, named, pods, tier
from tests.helm.restricted import violations

SERVICE = "retouch.v1.ImageEdit"
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
TMP, SHARED = "/tmp", "/dev/shm"  # noqa: S108 - in the pod
# What one gateway takes before the first request comes.
GATEWAY_BASE_BYTES = 150 * 2**20


def quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number: bytes, or cores."""
    found = re.fullmatch(r"([\d.]+)(\w*)", str(text))
    assert found, text
    return float(found[1]) * UNITS[found[2]]


def restricted(manifests: list[Manifest]) -> None:
    """Pod Security "restricted" admits every pod."""
    for pod in pods(manifests):
        assert violations(pod.spec) == [], pod.name


def hardened(manifests: list[Manifest]) -> None:
    """Beyond that: no token, a read-only root, a numbered user, no variables of other Services."""
    for pod in pods(manifests):
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        assert pod.spec["enableServiceLinks"] is False, pod.name
        account = named(manifests, "ServiceAccount", pod.spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False, pod.name
        for container in pod.containers:
            own = {**pod.spec["securityContext"], **container["securityContext"]}
            assert own["readOnlyRootFilesystem"] is True, pod.name
            # None: the platform's own, which is no root either, as `restricted` sees to.
            assert own.get("runAsUser") in (65532, None), pod.name
            assert own.get("runAsGroup") == own.get("runAsUser"), pod.name
    assert [each for each in manifests if "Role" in each["kind"]] == [], "nobody needs the API"


def volumes(manifests: list[Manifest]) -> None:
    """Each mount has its volume and each volume a mount; emptyDirs are sized; what is not scratch is read-only."""
    for pod in pods(manifests):
        known = {each["name"]: each for each in pod.spec.get("volumes", [])}
        mounted = set()
        for container in pod.containers:
            mounts = container.get("volumeMounts", [])
            paths = [each["mountPath"] for each in mounts]
            assert len(paths) == len(set(paths)), f"{pod.name}: {paths}"
            mounted |= {each["name"] for each in mounts}
            for each in mounts:
                if known[each["name"]].keys() & {"configMap", "secret", "projected"}:
                    assert each["readOnly"] is True, f"{pod.name}: {each}"
                    assert "subPath" not in each, "a file mounted so never changes again"
        assert mounted == known.keys(), pod.name
        for name, volume in known.items():
            if "emptyDir" in volume:
                assert quantity(volume["emptyDir"]["sizeLimit"]) > 0, f"{pod.name}: {name}"
            if "secret" in volume:
                mode = volume["secret"]["defaultMode"]
                assert mode & 0o007 == 0, f"{pod.name}: {name} is readable by all"


def scratch(manifests: list[Manifest]) -> None:
    """HOME and /tmp can be written; a server has shared memory of its own size, in memory."""
    for pod in [*tier(manifests, "server"), *tier(manifests, "gateway")]:
        known = {each["name"]: each for each in pod.spec["volumes"]}
        at = {each["mountPath"]: known[each["name"]] for each in pod.main["volumeMounts"]}
        assert "emptyDir" in at[TMP], pod.name
        assert pod.environment.get("HOME", TMP) in at, "a HOME on a read-only root"
        if pod.tier == "server":
            assert at[SHARED]["emptyDir"]["medium"] == "Memory", pod.name
            assert "/cache" in at, pod.name


def resources(manifests: list[Manifest]) -> None:
    """Every container asks for CPU and memory, and may not take all memory; GPUs are asked as they are limited."""
    for pod in pods(manifests):
        for container in pod.containers:
            given = container["resources"]
            name = f"{pod.name}, {container['name']}"
            assert quantity(given["requests"]["cpu"]) > 0, name
            assert quantity(given["requests"]["memory"]) > 0, name
            assert quantity(given["limits"]["memory"]) >= quantity(given["requests"]["memory"]), (
                name
            )
            for key in given["limits"].keys() | given["requests"].keys():
                if "/" in key:
                    assert given["limits"][key] == given["requests"].get(key, given["limits"][key])
    for pod in tier(manifests, "gateway"):
        limit = quantity(pod.main["resources"]["limits"]["memory"])
        bodies = int(pod.environment.get("RETOUCH_GATEWAY_MAX_IN_FLIGHT_BYTES", 2**30))
        assert 3 * bodies + GATEWAY_BASE_BYTES <= limit, "bodies take three times their bytes"


def probes(manifests: list[Manifest]) -> None:
    """Alive is not ready: liveness asks the process alone, readiness whether it serves, at the ports that there are."""
    for pod in tier(manifests, "server"):
        main, tls = pod.main, "RETOUCH_SERVER_TLS_CERT" in pod.environment
        alive, ready, start = (
            _asked(pod, main[f"{kind}Probe"]) for kind in ("liveness", "readiness", "startup")
        )
        if tls:  # which Kubernetes' own gRPC probes do not speak
            assert alive == ("http", 9090, "/healthz")
            assert ready == ("http", 9090, "/readyz")
        else:
            assert alive == ("grpc", 50051, "")
            assert ready == ("grpc", 50051, SERVICE)
        assert start in (alive, ready), pod.name
        if start == ready:
            cold = main["startupProbe"]
            seconds = cold["failureThreshold"] * cold.get("periodSeconds", 10)
            assert seconds >= 60, f"{pod.name} gets {seconds} s to load"
    for pod in tier(manifests, "gateway"):
        assert _asked(pod, pod.main["livenessProbe"]) == ("http", 8000, "/healthz")
        assert _asked(pod, pod.main["readinessProbe"]) == ("http", 8000, "/readyz")
        # Until servers have loaded a gateway is not ready; it must not be killed for that.
        start = _asked(pod, pod.main.get("startupProbe") or pod.main["livenessProbe"])
        assert start == ("http", 8000, "/healthz")


def _asked(pod: Pod, probe: Manifest) -> tuple[str, int, str]:
    if "grpc" in probe:
        assert isinstance(probe["grpc"]["port"], int), "a gRPC probe knows no names of ports"
        return "grpc", probe["grpc"]["port"], probe["grpc"].get("service", "")
    asked = probe["httpGet"]
    port = asked["port"]
    number = pod.ports[port] if isinstance(port, str) else port
    assert number in pod.ports.values(), pod.name
    assert asked.get("scheme", "HTTP") == "HTTP"
    return "http", number, asked["path"]


def leaving(manifests: list[Manifest]) -> None:
    """SIGKILL comes after the sleep before SIGTERM, the wait for clients, and the longest edit; and edits may be
    as long as the gateway lets them."""
    (gateway,) = tier(manifests, "gateway")
    edit = float(gateway.environment.get("RETOUCH_GATEWAY_TIMEOUT", 300))
    wait = float(gateway.environment.get("RETOUCH_GATEWAY_DRAIN_WAIT", 0.2))
    assert gateway.spec["terminationGracePeriodSeconds"] > _sleep(gateway) + wait + edit
    for pod in tier(manifests, "server"):
        wait = float(pod.environment.get("RETOUCH_SERVER_DRAIN_WAIT", 0.2))
        drain = float(pod.environment.get("RETOUCH_SERVER_DRAIN_TIMEOUT", 300))
        grace = pod.spec["terminationGracePeriodSeconds"]
        assert grace > _sleep(pod) + wait + drain, pod.name
        assert drain >= edit, f"{pod.name} gives up edits that the gateway waits for"


def _sleep(pod: Pod) -> float:
    """Seconds from a pod being told to go until SIGTERM: for so long others may still send to it."""
    hook = pod.main["lifecycle"]["preStop"]
    if "sleep" in hook:
        seconds = float(hook["sleep"]["seconds"])
    else:
        word, number = hook["exec"]["command"]
        assert word == "sleep", word
        seconds = float(number)
    assert seconds > 0, pod.name
    return seconds


def rolling(manifests: list[Manifest]) -> None:
    """A roll takes nobody away before there is another, unless the values say that there is no room for one."""
    for pod in [*tier(manifests, "server"), *tier(manifests, "gateway")]:
        strategy = pod.owner["spec"]["strategy"]
        if strategy["type"] == "RollingUpdate":
            roll = strategy["rollingUpdate"]
            assert (roll["maxUnavailable"], roll["maxSurge"]) != (0, 0), "such a roll stands still"
            if pod.tier == "gateway":
                assert roll["maxUnavailable"] == 0
        else:
            assert strategy == {"type": "Recreate"}
            assert pod.tier == "server"
    for each in manifests:
        if each["kind"] == "PodDisruptionBudget":
            assert len(each["spec"].keys() & {"minAvailable", "maxUnavailable"}) == 1


def environments(manifests: list[Manifest]) -> None:
    """No variable twice, no literal secret, and nothing that could be one in a ConfigMap."""
    for pod in pods(manifests):
        for container in pod.containers:
            names = [each["name"] for each in container.get("env", [])]
            assert len(names) == len(set(names)), f"{pod.name}: {names}"
            for index, each in enumerate(container.get("env", [])):
                used = re.findall(r"\$\((\w+)\)", each.get("value", ""))
                assert set(used) <= set(names[:index]), f"{pod.name}: {each} is not replaced"
                if counted := each.get("valueFrom", {}).get("resourceFieldRef"):
                    kind, name = counted["resource"].split(".")
                    assert name in container["resources"][kind], "it would be all of the node's"
                if re.search(
                    r"(SECRET|TOKEN|PASSWORD|SIGNING_KEY|API_KEY|ACCESS_KEY)(?!_FILE)", each["name"]
                ):
                    assert "value" not in each, f"{pod.name}: {each['name']} is there for all"
