"""What each container would find is what its program takes: the tiers' own code reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import retouch_gateway.settings
import retouch_server.settings
from retouch_gateway import keys
from retouch_server import catalog
from retouch_server.checkpoint import is_hub_id
from tests.helm import cases, container
from tests.helm.chart import Helm, Manifest
from tests.helm.conftest import rendered
from tests.helm.objects import Pod, pods, tier

Secrets = dict[str, dict[str, bytes]]


def enter(
    manifests: list[Manifest],
    pod: Pod,
    secrets: Secrets,
    root: Path,
    patch: pytest.MonkeyPatch,
) -> None:
    """Makes this process's environment that of the pod's main container, its files below `root`."""
    found = container.environment(manifests, pod.main, secrets)
    places = container.place(manifests, pod, pod.main, secrets, root)
    for name in [name for name in os.environ if name.startswith("RETOUCH_")]:
        patch.delenv(name)
    for name, value in found.items():
        if name.startswith("RETOUCH_"):
            patch.setenv(name, container.moved(value, places))


def test_the_servers_take_their_settings(
    manifests: list[Manifest], secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, pod in enumerate(tier(manifests, "server")):
        enter(manifests, pod, secrets, tmp_path / str(number), monkeypatch)
        assert retouch_server.settings.unknown_variables() == []
        settings = retouch_server.settings.read([])
        assert (settings.port, settings.metrics_port) == (50051, 9090)
        assert settings.host in ("0.0.0.0", "::")
        entries = catalog.read(settings.models)
        # Nothing is fetched by a server: an init container has, or a volume holds it.
        variables = pod.environment
        assert variables["HF_HUB_OFFLINE"] == "1"
        fetched = any(each["name"] == "download" for each in pod.spec.get("initContainers", []))
        claim = "persistentVolumeClaim" in str(pod.spec["volumes"])
        for entry in entries:
            if is_hub_id(entry.source):
                assert fetched or claim, entry.id
                assert entry.revision
                assert len(entry.revision) == 40, "a name of the hub moves"


def test_the_gateway_takes_its_settings(
    manifests: list[Manifest], secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pod,) = tier(manifests, "gateway")
    enter(manifests, pod, secrets, tmp_path, monkeypatch)
    assert retouch_gateway.settings.unknown_variables() == []
    settings = retouch_gateway.settings.load()
    assert (settings.port, settings.metrics_port) == (8000, 9091)
    several = pod.owner["spec"].get("replicas", 2) > 1
    assert not several or "://" in settings.store, "an image in one's folder is a 404 at the others"
    if "://" not in settings.store:
        assert Path(settings.store).is_relative_to(tmp_path), "a folder on a read-only root"
    if settings.keys:
        assert [each.id for each in keys.read(settings.keys)] == ["test"]
    servers = tier(manifests, "server")
    assert len(settings.upstreams) == len(servers)
    assert {pod.environment["RETOUCH_SERVER_MAX_IMAGE_BYTES"] for pod in servers} == {
        str(settings.max_image_bytes)
    }, "the server is the authority"


def test_tls_is_of_both_or_none(
    manifests: list[Manifest], secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gateway,) = tier(manifests, "gateway")
    for number, server in enumerate(tier(manifests, "server")):
        enter(manifests, server, secrets, tmp_path / str(number), monkeypatch)
        theirs = retouch_server.settings.read([])
        enter(manifests, gateway, secrets, tmp_path / "gateway", monkeypatch)
        own = retouch_gateway.settings.load()
        assert bool(theirs.tls_cert) == bool(own.upstream_ca)
        assert bool(theirs.tls_client_ca) == bool(own.upstream_cert)


CATALOG = [cases.KONTEXT, {"id": "pocket", "source": "pocket", "slots": 2, "reuse": 0.05}]


def test_the_catalogue_arrives_as_it_was_given(helm: Helm, tmp_path: Path) -> None:
    """Numbers too, which helm likes to write as 2.68435456e+08."""
    large = {**CATALOG[0], "cache_bytes": 2**40, "max_tokens": 10**9, "arguments": {"a": 1.5e-7}}
    entry = {
        "name": "all",
        "catalog": [large, CATALOG[1]],
        "cache": {"size": "60Gi"},
        "resources": cases.GPU,
    }
    manifests = helm.render({"models": [entry]})
    (pod,) = tier(manifests, "server")
    places = container.place(manifests, pod, pod.main, {}, tmp_path)
    path = container.moved(pod.environment["RETOUCH_SERVER_MODELS"], places)
    first, second = catalog.read(path)
    assert first == catalog.ModelEntry.model_validate(large)
    assert (second.id, second.slots, second.reuse) == ("pocket", 2, 0.05)


@pytest.mark.parametrize(
    ("tier_", "values", "variable", "text"),
    [
        ("gateway", {"maxInFlightBytes": 268435456}, "MAX_IN_FLIGHT_BYTES", "268435456"),
        ("gateway", {"ttl": 1000000000}, "TTL", "1000000000"),
        ("gateway", {"fetchImages": True}, "FETCH_IMAGES", "true"),
        ("gateway", {"playground": False}, "PLAYGROUND", "false"),
        ("gateway", {"rateLimit": "60/minute;1000/day"}, "RATE_LIMIT", "60/minute;1000/day"),
        ("server", {"maxImagePixels": 178000000}, "MAX_IMAGE_PIXELS", "178000000"),
        ("server", {"drainWait": 0}, "DRAIN_WAIT", "0"),
        ("server", {"device": "cuda:0"}, "DEVICE", "cuda:0"),
    ],
)
def test_a_setting_arrives_as_it_was_given(
    helm: Helm, tier_: str, values: dict[str, object], variable: str, text: str
) -> None:
    policy = {"networkPolicy": {"gateway": {"https": True}}}
    (pod,) = tier(helm.render({tier_: {"settings": values}, **policy}), tier_)
    assert pod.environment[f"RETOUCH_{tier_.upper()}_{variable}"] == text


def test_a_server_of_several_has_its_own_settings(helm: Helm) -> None:
    models = [
        {
            "name": name,
            "catalog": [{"id": name, "source": "pocket"}],
            "resources": {"limits": {"memory": "2Gi"}, "requests": {"cpu": 1, "memory": "2Gi"}},
            "settings": settings,
        }
        for name, settings in (("small", {"queueSize": 10}), ("large", {}))
    ]
    given = {"models": models, "server": {"settings": {"queueSize": 99, "threads": 2}}}
    small, large = (pod.environment for pod in tier(helm.render(given), "server"))
    assert (small["RETOUCH_SERVER_QUEUE_SIZE"], large["RETOUCH_SERVER_QUEUE_SIZE"]) == ("10", "99")
    assert small["RETOUCH_SERVER_THREADS"] == large["RETOUCH_SERVER_THREADS"] == "2"


def test_a_changed_catalogue_is_a_new_pod(helm: Helm) -> None:
    """A ConfigMap that changes restarts nobody; its checksum in the pod does. What else changes does not."""

    def templates(values: dict[str, object]) -> dict[str, Manifest]:
        return {pod.name: pod.template for pod in pods(helm.render(values))}

    def model(slots: int) -> dict[str, object]:
        entry = {"id": "pocket", "source": "pocket", "slots": slots}
        limits = {"requests": {"cpu": 1, "memory": "2Gi"}, "limits": {"memory": "2Gi"}}
        return {"models": [{"name": "pocket", "catalog": [entry], "resources": limits}]}

    before, after = templates(model(4)), templates(model(8))
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["Deployment retouch-server-pocket"]
    assert templates({}) == templates({"gateway": {"service": {"annotations": {"a": "b"}}}})


def test_the_download_alone_has_the_hubs_token(helm: Helm) -> None:
    values = cases.values({"models": "gpu", "cache": "hub"})
    (pod,) = tier(helm.render(values), "server")
    (download,) = pod.spec["initContainers"]
    assert "HF_TOKEN" in str(download)
    assert "HF_TOKEN" not in str(pod.main)
    assert "'hub'" not in str(pod.main)
    assert {each["name"]: each.get("value") for each in download["env"]}["HF_HOME"] == (
        pod.environment["HF_HOME"]
    ), "the server looks where the download has put it"


def test_nothing_is_downloaded_for_pocket(helm: Helm) -> None:
    (pod,) = tier(rendered(helm, "defaults"), "server")
    assert "initContainers" not in pod.spec
