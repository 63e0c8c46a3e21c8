"""Values that contradict each other are refused, by the name of the value to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import cases
from tests.helm.chart import Helm, HelmError, merged
from tests.helm.objects import named

REFUSALS = yaml.safe_load((Path(__file__).parent / "refusals.yaml").read_text())
TOP = ("fullnameOverride",)  # what an entry's case sets beside it
ENTRY = {
    "name": "kontext",
    "gpus": 1,
    "resources": cases.GPU,
    "cache": cases.CACHE,
    "catalog": [cases.KONTEXT],
}
ROOM = {"requests": {"cpu": 1, "memory": "2Gi"}, "limits": {"memory": "2Gi"}}


def whole(of: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values that a case of refusals.yaml is of, with its changes."""
    match of:
        case "model":
            model = {key: value for key, value in merged(cases.KONTEXT, values).items() if value}
            return {"models": [{**ENTRY, "catalog": [model]}]}
        case "entry":
            top = {key: values[key] for key in TOP if key in values}
            own = {key: value for key, value in values.items() if key not in TOP}
            return {"models": [merged(ENTRY, own)], **top}
        case "ingress" | "route":
            return merged(cases.FRONTS[of], {"gateway": {"anonymous": True}}, values)
    return values


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case["name"])
def test_it_is_refused_by_name(helm: Helm, case: dict[str, Any]) -> None:
    with pytest.raises(HelmError, match=case["said"]) as caught:
        helm.text(whole(case.get("of", ""), case["values"]))
    assert "execution error at (retouch/templates/checks.yaml" in str(caught.value)


@pytest.mark.parametrize("of", ["model", "entry", "ingress", "route", ""])
def test_what_they_are_changes_of_is_taken(helm: Helm, of: str) -> None:
    helm.render(whole(of, {}))


def test_every_mistake_is_told_at_once(helm: Helm) -> None:
    values = {"gateway": {"replicas": 2}, "tls": {"clientSecret": "x"}}
    with pytest.raises(HelmError) as caught:
        helm.text(merged(values, whole("model", {"revision": None})))
    for said in ("gateway.store.url", "tls.clientSecret", "models[kontext]"):
        assert said in str(caught.value)


def of_model(**changes: Any) -> dict[str, Any]:
    return {"models": [{"name": "a", "catalog": [{"id": "a", "source": "pocket", **changes}]}]}


@pytest.mark.parametrize(
    "values",
    [
        {"models": []},
        {"models": [{"name": "Kontext", "catalog": [{"id": "a", "source": "pocket"}]}]},
        {"models": [{"name": "a", "catalog": []}]},
        of_model(id="a\nb"),
        of_model(id='a"b'),
        of_model(slots=0),
        of_model(dtype="int8"),
        {"gateway": {"store": {"url": "/data"}}},
        {"gateway": {"store": {"url": "s3://id:secret@bucket"}}},
        {"gateway": {"redis": {"url": "redis://:password@redis:6379"}}},
        {"gateway": {"settings": {"timeout": 0}}},
        {"gateway": {"replicas": 0}},
        {"gateway": {"keys": {"existingSecret": {"name": "x"}}}},
        {"gateway": {"service": {"port": 70000}}},
        {"server": {"gpus": -1}},
        {"server": {"autoscaling": {"minReplicas": 0}}},
        {"server": {"tmpSize": "plenty"}},
        {"server": {"extraEnv": [{"name": "A-B", "value": "c"}]}},
        {"runAsUser": 0},
        {"ingress": {"hosts": ["https://edits.example"]}},
        {"metrics": {"monitor": "Pods"}},
        {"metrics": {"interval": "often"}},
        {"tracing": {"ratio": 2}},
        {"tracing": {"endpoint": "http://user:password@collector:4317"}},
        {"server": {"download": {"endpoint": "https://user:password@hub"}}},
        {"server": {"autoscaling": {"prometheus": "http://user:password@prometheus:9090"}}},
        {"gateway": {"publicUrl": "https://user:password@edits.example"}},
        {"clusterDomain": ""},
        {"fullnameOverride": "Edits_1"},
        {"nameOverride": "a.b"},
    ],
    ids=json.dumps,
)
def test_what_is_wrong_by_itself_the_schema_refuses(helm: Helm, values: dict[str, Any]) -> None:
    with pytest.raises(HelmError, match="schema"):
        helm.text(values)


@pytest.mark.parametrize("text", ["a: b", "{{ .Values }}", "'", '"', "#x", "$(HOME)", "on", "0123"])
def test_odd_texts_stay_texts(helm: Helm, text: str) -> None:
    """What stands in YAML without quotes would be something else, or a way in."""
    odd = {"podAnnotations": {"odd": text}, "extraEnv": [{"name": "ODD", "value": text}]}
    catalog = [{"id": "pocket", "source": "pocket", "examples": [text]}]
    manifests = helm.render(
        {
            "commonLabels": {"odd": "on"},
            "gateway": odd,
            "models": [{"name": "pocket", "catalog": catalog, "resources": ROOM, **odd}],
        }
    )
    for name in ("retouch-gateway", "retouch-server-pocket"):
        template = named(manifests, "Deployment", name)["spec"]["template"]
        assert template["metadata"]["annotations"]["odd"] == text
        assert {"name": "ODD", "value": text} in template["spec"]["containers"][0]["env"]
    data = named(manifests, "ConfigMap", "retouch-server-pocket")["data"]
    assert yaml.safe_load(data["models.yaml"]) == {"models": catalog}
    assert {each["metadata"]["labels"]["odd"] for each in manifests} == {"on"}
