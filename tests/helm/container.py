"""A container as its process would find it: its variables, and its files in a folder."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.helm.chart import Manifest
from tests.helm.objects import Pod, named

Secrets = Mapping[str, Mapping[str, bytes]]


def environment(manifests: list[Manifest], container: Manifest, secrets: Secrets) -> dict[str, str]:
    """Its variables, those of Secrets and ConfigMaps resolved, `$(NAME)` in them replaced."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "secretRef" in source:
            given = secrets[source["secretRef"]["name"]]
            found |= {name: value.decode() for name, value in given.items()}
        else:
            found |= named(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    for each in container.get("env", []):
        if "value" in each:
            value = each["value"]
            for name, known in found.items():
                value = value.replace(f"$({name})", known)
            found[each["name"]] = value
        elif reference := each["valueFrom"].get("secretKeyRef"):
            found[each["name"]] = secrets[reference["name"]][reference["key"]].decode()
        else:
            (kind,) = each["valueFrom"]
            found[each["name"]] = {"fieldRef": "of-the-pod", "resourceFieldRef": "1"}[kind]
    return found


def place(
    manifests: list[Manifest], pod: Pod, container: Manifest, secrets: Secrets, root: Path
) -> dict[Path, Path]:
    """Writes what is mounted below `root`; where each mount path lies there."""
    volumes = {each["name"]: each for each in pod.spec.get("volumes", [])}
    places = {}
    for mount in container.get("volumeMounts", []):
        path = Path(mount["mountPath"])
        places[path] = root / path.relative_to("/")
        places[path].mkdir(parents=True, exist_ok=True)
        for name, content in _files(manifests, volumes[mount["name"]], secrets):
            (places[path] / name).write_bytes(content)
    return places


def _files(
    manifests: list[Manifest], volume: Manifest, secrets: Secrets
) -> Iterator[tuple[str, bytes]]:
    for source in volume.get("projected", {}).get("sources", [volume]):
        if "configMap" in source:
            own = source["configMap"]
            made = named(manifests, "ConfigMap", own["name"])
            content = {name: text.encode() for name, text in made.get("data", {}).items()}
            binary = made.get("binaryData", {})
            content |= {name: base64.b64decode(text) for name, text in binary.items()}
        elif "secret" in source:
            own = source["secret"]
            content = dict(secrets[own.get("secretName") or own["name"]])
        else:
            continue
        items = own.get("items") or [{"key": name, "path": name} for name in content]
        for item in items:
            yield item["path"], content[item["key"]]


def moved(text: str, places: Mapping[Path, Path]) -> str:
    """`text` as it is in the folder, if it is a path below a mount."""
    for mount, place_ in places.items():
        if text == str(mount) or text.startswith(f"{mount}/"):
            return f"{place_}{text[len(str(mount)) :]}"
    return text
