"""What is depended on: pinned, installed as pinned, under licences that are known, and told in an SBOM."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# `make` installs all but these.
INSTALLED = sorted(EXTRAS.keys() - {"train"})
SERVED = sorted(EXTRAS.keys() - {"train", "dev"})
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause"),
    *("BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib"),
}
# File by file: whoever changes a file of theirs and hands it on shows the change. Nobody does.
WEAK_COPYLEFT = {"certifi", "orjson", "tqdm"}


def sbom(*extras: str) -> str:
    run = subprocess.run(
        [sys.executable, ROOT / "scripts/sbom", *extras], capture_output=True, text=True, check=True
    )
    return run.stdout


def components(*extras: str) -> dict[str, dict[str, Any]]:
    """Of the document, by name."""
    return {each["name"]: each for each in json.loads(sbom(*extras))["components"]}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Each line of the constraints must be one: a name and an exact version, none twice."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]:
        name, pinned = re.findall(r"^([\w.-]+)==([\w.]+)$", line)[0]
        assert normal(name) not in found
        found[normal(name)] = pinned
    return found


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    return pins()


def test_all_that_is_needed_is_pinned_and_is_what_is_installed(pinned: dict[str, str]) -> None:
    needed = components(*INSTALLED)
    assert needed.keys() <= pinned.keys()
    assert {name: each["version"] for name, each in needed.items()} == {
        name: pinned[name] for name in needed
    }
    asked = {
        normal(re.split(r"[\[<>=!~ ]", need)[0]) for each in INSTALLED for need in EXTRAS[each]
    }
    assert asked <= needed.keys() | {"retouch"}


@pytest.mark.parametrize("extras", [SERVED, [], ["gateway"], ["server"]], ids=" ".join)
def test_the_sbom_is_cyclonedx(extras: list[str]) -> None:
    text = sbom(*extras)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    known = {each["bom-ref"] for each in document["components"]}
    known.add(document["metadata"]["component"]["bom-ref"])
    assert document["specVersion"] == "1.6"
    assert {each["ref"] for each in document["dependencies"]} == known
    assert {to for each in document["dependencies"] for to in each["dependsOn"]} <= known
    assert document["metadata"]["component"]["version"] == version("retouch")


def test_a_tier_has_its_own_in_it_and_no_others() -> None:
    gateway, server = components("gateway"), components("server")
    assert gateway == components("gateway")
    assert {"starlette", "uvicorn", "grpcio", "httptools"} <= gateway.keys()
    assert {"torch", "diffusers", "transformers", "safetensors"} <= server.keys()
    assert not {"torch", "diffusers", "pytest"} & gateway.keys()
    assert not {"starlette", "uvicorn", "pytest"} & server.keys()


def test_an_unknown_extra_is_refused() -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "scripts/sbom", "gatewy"], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (1, "no such extra: gatewy\n")


def test_licences_are_known_and_ask_for_no_more_than_notice() -> None:
    """Of what is served with; tools of development are handed to nobody."""
    spdx = get_spdx_licensing()
    for name, each in components(*SERVED).items():
        said = each["licenses"][0].get("expression")
        assert said, f"{name}: {each['licenses']}"
        parsed = spdx.parse(said, validate=True)
        asked = {str(key) for key in parsed.symbols} - PERMISSIVE
        assert asked <= ({"MPL-2.0"} if name in WEAK_COPYLEFT else set()), f"{name}: {said}"
