"""Kubernetes' Pod Security Standard "restricted", baseline included, as its page lists the rules:
https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
}
Spec = dict[str, Any]


def violations(pod: Spec) -> list[str]:
    """What the standard says against a pod's `spec`, a line each; an empty list is a pod that it admits."""
    return [*_of_pod(pod), *_of_containers(pod)]


def _of_pod(pod: Spec) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{key} is set"
    for volume in pod.get("volumes", []):
        if forbidden := volume.keys() - VOLUMES - {"name"}:
            yield f"volume {volume['name']} is a {', '.join(sorted(forbidden))}"
    context = pod.get("securityContext", {})
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _of_context("the pod", context)


def _of_containers(pod: Spec) -> Iterator[str]:
    whole = pod.get("securityContext", {})
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(kind, []):
            name, own = f"container {container['name']}", container.get("securityContext", {})
            yield from _of_context(name, own)
            yield from _privileges(name, own)
            if {**whole, **own}.get("runAsNonRoot") is not True:
                yield f"{name} may run as root"
            profile = {**whole, **own}.get("seccompProfile", {}).get("type")
            if profile not in ("RuntimeDefault", "Localhost"):
                yield f"{name} has the seccomp profile {profile}"
            if any(port.get("hostPort") for port in container.get("ports", [])):
                yield f"{name} has a port of the host"
            if _hosts(container):
                yield f"{name} has a probe or hook of another host"


def _privileges(name: str, own: Spec) -> Iterator[str]:
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} may escalate privileges"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{name} keeps capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if own.get("procMount", "Default") != "Default":
        yield f"{name} has another /proc"


def _of_context(name: str, context: Spec) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield f"{name} runs as root"
    if context.get("runAsNonRoot") is False:
        yield f"{name} asks to run as root"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{name} is a process of the host"
    linux = context.get("seLinuxOptions", {})
    if linux.get("type", "") not in SELINUX or linux.get("user") or linux.get("role"):
        yield f"{name} has SELinux options of its own"
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield f"{name} is without AppArmor"


def _hosts(container: Spec) -> bool:
    hooks = container.get("lifecycle", {})
    probes = [container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")]
    return any(
        each.get(way, {}).get("host")
        for each in [*probes, *hooks.values()]
        for way in ("httpGet", "tcpSocket")
    )
