"""Both helms take the chart, make the same of it, and Kubernetes and its operators take what they make."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest

from tests.helm.chart import CHART, EXAMPLES, KUBERNETES, NEW, Helm, Manifest
from tests.helm.conftest import CASES, example, rendered
from tests.helm.objects import walk

SCHEMAS = Path(__file__).parent / "schemas"
OPERATORS = {path.stem for path in SCHEMAS.glob("*.json")}


@pytest.mark.parametrize("which", ["helm3", "helm4"])
@pytest.mark.parametrize("case", ["defaults", *EXAMPLES])
def test_lint_has_nothing_to_say(helms: dict[str, Helm], which: str, case: str) -> None:
    files = [part for path in example(case) for part in ("-f", str(path))]
    said = helms[which].run("lint", "--strict", CHART, *files)
    assert "1 chart(s) linted, 0 chart(s) failed" in said
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


def test_both_helms_make_the_same_of_it(helms: dict[str, Helm], case: str) -> None:
    assert rendered(helms["helm3"], case) == rendered(helms["helm4"], case)


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_kubernetes_and_its_operators_take_it(helm: Helm, case: str, kubernetes: str) -> None:
    for manifest in rendered(helm, case, kubernetes):
        if manifest["kind"] in OPERATORS:
            schema = json.loads((SCHEMAS / f"{manifest['kind']}.json").read_text())
            jsonschema.Draft7Validator(schema).validate(manifest)
        else:
            valid(json.dumps(manifest), kubernetes)


@functools.cache
def valid(manifest: str, kubernetes: str) -> None:
    """Strict: no field that this version does not know. Many cases have the same ConfigMap: each is looked at once."""
    kubernetes_validate.validate(json.loads(manifest), kubernetes, strict=True)


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_a_field_that_operators_do_not_know_is_seen(helm: Helm, kind: str) -> None:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    found = [each for case in CASES for each in rendered(helm, case) if each["kind"] == kind]
    assert found, f"no case renders a {kind}"
    wrong = {**found[0], "spec": {**found[0]["spec"], "surely_not": 1}}
    with pytest.raises(jsonschema.ValidationError, match="surely_not"):
        jsonschema.validate(wrong, schema)


def test_a_field_that_kubernetes_does_not_know_is_seen(helm: Helm) -> None:
    found = [each for each in rendered(helm, "defaults") if each["kind"] == "Deployment"]
    wrong = {**found[0], "spec": {**found[0]["spec"], "surely_not": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="surely_not"):
        valid(json.dumps(wrong), NEW)


def test_a_bare_cluster_is_enough(helm: Helm) -> None:
    kinds = {each["kind"] for each in rendered(helm, "defaults")}
    assert kinds & OPERATORS == set()
    assert {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= kinds


def test_no_object_is_null_or_empty_by_mistake(manifests: list[Manifest]) -> None:
    """`key:` without a value is null: the API server drops it, and what was meant is not there."""
    for manifest in manifests:
        nothing = [path for path, value in walk(manifest) if value is None]
        assert nothing == [], manifest["metadata"]["name"]


def test_no_template_leaves_marks(helm: Helm, case: str) -> None:
    text = helm.text(CASES.get(case, {}), files=example(case))
    for mark in ("<no value>", "%!", "map["):
        assert mark not in text, mark


def test_it_is_a_package(helm: Helm, tmp_path: Path) -> None:
    helm.run("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("retouch-*.tgz")
    assert package.stat().st_size < 500_000
    # What is installed from it is what is installed from the folder.
    packed = Helm(helm.binary, package)
    assert packed.render({}) == helm.render({})
