"""values.yaml, its schema and its table say the same, and say no to everything else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from retouch_gateway.settings import Settings as GatewaySettings
from retouch_server.catalog import ModelEntry
from retouch_server.settings import Settings as ServerSettings
from tests.helm.chart import CHART, ROOT, Helm, HelmError, Values, merged

Schema = dict[str, Any]
SCHEMA: Schema = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
# What Kubernetes or a pipeline knows more of than the chart: nothing in them is refused. By the last two keys.
FREE = {
    "global",
    "commonLabels",
    "nodeSelector",
    "affinity",
    "podAnnotations",
    "podLabels",
    "annotations",
    "labels",
    "tolerations[]",
    "parentRefs[]",
    "valueFrom",
    "arguments",
    "extraVolumes[]",
    "extraVolumeMounts[]",
    "clients[]",
    "egress[]",
    "prometheus[]",
}


def resolved(schema: Schema) -> Schema:
    """The schema behind a reference; its own description wins."""
    while "$ref" in schema or "allOf" in schema:
        (schema,), own = schema.get("allOf", [schema]), schema
        referred = SCHEMA["definitions"][schema["$ref"].removeprefix("#/definitions/")]
        schema = referred | {key: own[key] for key in own if key not in ("$ref", "allOf")}
    return schema


def walk(schema: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """Every level, references followed; `[]` is any item of a list."""
    schema = resolved(schema)
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, (*path, name))
    if isinstance(schema.get("items"), dict):
        yield from walk(schema["items"], (*path[:-1], f"{path[-1]}[]"))


LEVELS = {".".join(path): schema for path, schema in walk(SCHEMA)}
OBJECTS = {path: each for path, each in LEVELS.items() if each.get("type") == "object"}


def at(path: str, value: Any) -> dict[str, Any]:
    """Values that hold only `value`, there."""
    for key in reversed([part for part in path.split(".") if part]):
        value = {key.removesuffix("[]"): [value] if key.endswith("[]") else value}
    made: dict[str, Any] = value
    return made


def test_only_these_maps_are_free() -> None:
    assert len(OBJECTS) > 40
    free = {path for path, each in OBJECTS.items() if each.get("additionalProperties") is not False}
    assert {path.split(".")[-1] for path in free} == FREE


@pytest.mark.parametrize("which", ["helm3", "helm4"])
def test_no_unknown_key_is_accepted(helms: dict[str, Helm], which: str) -> None:
    assert accepting(helms[which]) == []


def accepting(helm: Helm) -> list[str]:
    """Levels at which helm takes a key that is nobody's: each gets one, and helm must name every one of them."""
    closed = [path for path, each in OBJECTS.items() if each["additionalProperties"] is False]
    lists = [path for path in closed if "[]" in path]
    planted: dict[str, Any] = {}
    for number, path in enumerate(closed):
        if path not in lists:
            planted = merged(planted, at(path, {f"nobodys{number}x": 1}))
    told = refused(helm, planted)
    for number, path in enumerate(closed):
        if path in lists:  # two paths into one list would overwrite each other
            told += refused(helm, at(path, {f"nobodys{number}x": 1}))
    return [path for number, path in enumerate(closed) if f"nobodys{number}x" not in told]


def refused(helm: Helm, values: Values) -> str:
    """What helm says against the values."""
    with pytest.raises(HelmError, match="schema") as caught:
        helm.text(values)
    return str(caught.value)


def test_every_key_is_described() -> None:
    named = [path for path in LEVELS if path and not path.endswith("[]")]
    assert [path for path in named if len(LEVELS[path].get("description", "")) < 3] == []


def keys(values: Any, path: str = "") -> Iterator[str]:
    """Every key below, down to lists and to maps that are free."""
    if not isinstance(values, dict) or path.split(".")[-1] in FREE:
        return
    for name, inner in values.items():
        here = f"{path}.{name}" if path else name
        yield here
        yield from keys(inner, here)


def test_the_schema_has_every_key_of_the_values() -> None:
    assert [key for key in keys(DEFAULTS) if key not in LEVELS] == []


def test_the_values_have_every_key_of_the_schema() -> None:
    """But what stands in lists, amounts, and settings, where what is left out is the tier's own default."""
    outside = re.compile(r"\[\]|^global$|\.settings\.|\.resources\.|^$")
    wanted = [path for path in LEVELS if not outside.search(path)]
    free = [path for path in wanted if any(part in FREE for part in path.split(".")[:-1])]
    assert sorted(set(wanted) - set(free)) == sorted(
        key for key in set(keys(DEFAULTS)) if not outside.search(key)
    )


def test_null_over_what_says_nothing_changes_nothing_and_over_the_rest_is_refused(
    helm: Helm,
) -> None:
    """`key: null` takes a key away; a template would find nothing where it wants a number or a name."""
    outside = re.compile(r"\.settings\.|\.resources\b|^(runAsUser|fsGroup)$")
    given = {path: value for path, value in leaves(DEFAULTS) if not outside.search(path)}
    empty: dict[str, Any] = {}
    telling: dict[str, Any] = {}
    for path, value in given.items():
        where = telling if value else empty
        where.update(merged(where, at(path, None)))
    assert helm.render(empty) == helm.render({})
    told = refused(helm, telling)
    names = [path.split(".")[-1] for path, value in given.items() if value]
    assert len(names) > 40
    assert [name for name in names if f"'{name}'" not in told] == []


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no map or an empty one, with its path; no lists that say something, no free maps that do."""
    for name, inner in values.items():
        here = f"{path}.{name}" if path else name
        if inner and isinstance(inner, dict):
            yield from () if name in FREE else leaves(inner, here)
        elif not (inner and isinstance(inner, list)):
            yield here, inner


def test_the_readmes_table_is_current(tmp_path: Path) -> None:
    fresh = Path(shutil.copy(CHART / "README.md", tmp_path))
    subprocess.run([sys.executable, ROOT / "scripts/chart-doc", fresh], check=True)
    said = "run scripts/chart-doc and commit what it changes"
    assert (CHART / "README.md").read_text() == fresh.read_text(), said
    table = fresh.read_text().replace("\\|", "|").lower()
    leaves = [each for path, each in LEVELS.items() if path and not path.endswith("[]")]
    told = [each["description"].lower() for each in leaves if "properties" not in each]
    missed = [each for each in told if each not in table]
    assert missed == []


def snake(camel: str) -> str:
    return re.sub(r"([A-Z])", r"_\1", camel).lower()


@pytest.mark.parametrize(
    ("path", "settings"),
    [("gateway.settings", GatewaySettings), ("server.settings", ServerSettings)],
)
def test_settings_are_the_tiers_own_within_their_bounds(path: str, settings: Any) -> None:
    properties = LEVELS[path]["properties"]
    known = settings.model_json_schema()["properties"]
    for name, schema in properties.items():
        compare(resolved(schema), known[snake(name)], f"{path}.{name}")
    # What no other value sets can be set here.
    elsewhere = {
        *("host", "port", "metrics_port", "max_image_bytes", "anonymous"),
        *("models", "tls_cert", "tls_key", "tls_client_ca", "c2pa_cert", "c2pa_key"),
        *("upstream", "upstream_tls", "upstream_ca", "upstream_cert", "upstream_key"),
        *("public_url", "store", "keys", "limits_store", "signing_key", "signing_key_file"),
    }
    assert {snake(name) for name in properties} == known.keys() - elsewhere


def test_the_catalogue_is_the_servers_own() -> None:
    whole = ModelEntry.model_json_schema()
    same("models[].catalog[]", whole, whole.get("$defs", {}))


def same(path: str, known: Schema, definitions: dict[str, Schema]) -> None:
    """The chart's schema at `path` has the properties and bounds of `known`, all the way down."""
    known = plain(known, definitions)
    own = LEVELS[path]
    if "properties" not in known:
        compare(own, known, path)
        return
    assert own["properties"].keys() == known["properties"].keys(), path
    assert sorted(own.get("required", [])) == sorted(known.get("required", [])), path
    for name, inner in known["properties"].items():
        inner = plain(inner, definitions)
        if inner.get("type") == "array" and "properties" in plain(inner["items"], definitions):
            same(f"{path}.{name}[]", inner["items"], definitions)
        else:
            same(f"{path}.{name}", inner, definitions)


def plain(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Without null as an alternative and without references."""
    for each in schema.get("anyOf", [schema]):
        if each != {"type": "null"}:
            while "$ref" in each:
                each = definitions[each["$ref"].removeprefix("#/$defs/")]
            return {**each}
    raise AssertionError(schema)


NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum")
WORDS = ("pattern", "minLength", "maxLength", "minItems", "maxItems")


def compare(own: Schema, known: Schema, path: str) -> None:
    """The same numbers are allowed, and no words more: the chart may ask more of them."""
    known = plain(known, {})
    assert own.get("type") == known.get("type") or "enum" in own, (path, own, known)
    for bound in NUMBERS:
        assert own.get(bound) == known.get(bound), (path, bound)
    for bound in WORDS:
        assert known.get(bound) in (None, own.get(bound)), (path, bound)
    if "items" in known:
        compare(resolved(own["items"]), known["items"], f"{path}[]")
