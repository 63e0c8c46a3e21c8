"""The operator's list of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from retouch_server import catalog
from retouch_server.catalog import CatalogError


def test_the_bare_word_pocket() -> None:
    assert catalog.read("pocket") == [catalog.POCKET]


def test_a_list() -> None:
    entries = catalog.read("pocket, kontext=/models/kontext,ip2p=timbrooks/instruct-pix2pix")
    assert [(e.id, e.source) for e in entries[1:]] == [
        ("kontext", "/models/kontext"),
        ("ip2p", "timbrooks/instruct-pix2pix"),
    ]


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(
        """
        models:
          - id: kontext
            source: black-forest-labs/FLUX.1-Kontext-dev
            revision: main
            dtype: bfloat16
            defaults: {num_inference_steps: 24, guidance_scale: 2.5}
            limits: {max_pixels: 1048576}
            max: {num_inference_steps: 50}
            slots: 4
            mask_crop: 32
            examples: [make it night, " paint it\n  in oil"]
            loras:
              - {source: adapters/sketch.safetensors}
              - {source: owner/adapter, weight_name: ink.safetensors, revision: main, scale: -0.5}
            attention: native
            compile: true
          - {id: small, source: pocket, slots: 2}
        """
    )
    kontext, small = catalog.read(str(path))
    assert kontext.max is not None
    assert (kontext.defaults.num_inference_steps, kontext.max.num_inference_steps) == (24, 50)
    assert small.source == catalog.POCKET.source
    assert small.arguments == catalog.POCKET.arguments
    assert small.slots == 2
    first, second = kontext.loras
    assert (first.source, first.weight_name, first.scale) == (
        "adapters/sketch.safetensors",
        None,
        1.0,
    )
    assert (second.weight_name, second.revision, second.scale) == ("ink.safetensors", "main", -0.5)
    assert (kontext.attention, kontext.compile) == ("native", True)
    assert (small.loras, small.attention, small.compile) == ([], None, False)
    assert (kontext.mask_crop, small.mask_crop) == (32, None)
    assert (kontext.examples, small.examples) == (["make it night", "paint it in oil"], None)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("", "no models"),
        ("nonsense", "neither id=source nor the word pocket"),
        ("a=x/y,a=x/z", "listed twice: a"),
        ("bad id=x/y", "model bad id: id"),
        ("missing.yaml", "cannot read missing.yaml"),
    ],
)
def test_mistakes(models: str, words: str) -> None:
    with pytest.raises(CatalogError, match=words):
        catalog.read(models)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "not YAML"),
        ("- pocket", "one key `models`"),
        ("models: pocket", "models is not a list"),
        ("models: [{id: a, source: b, colour: red}]", "model a: colour: Extra inputs"),
        (
            "models: [{id: a, source: b, defaults: {guidance_scale: 21}}]",
            "model a: defaults.guidance_scale",
        ),
        (
            "models: [{id: a, source: b, limits: {min_pixels: 4096, max_pixels: 100}}]",
            "min_pixels is above",
        ),
        ("models: [{id: a, source: b, mask_crop: -1}]", "model a: mask_crop"),
        ("models: [{id: a, source: b, loras: [{scale: 1}]}]", "model a: loras.0.source"),
        (
            "models: [{id: a, source: b, loras: [{source: c, weight_name: c.bin}]}]",
            "model a: loras.0.weight_name",
        ),
        (
            "models: [{id: a, source: b, loras: [{source: c, scale: .nan}]}]",
            "model a: loras.0.scale",
        ),
        ("models: [{id: a, source: b, attention: ''}]", "model a: attention"),
        ("models: [{id: a, source: b, examples: sepia}]", "model a: examples: "),
        ("models: [{id: a, source: b, examples: [sepia, 7]}]", r"model a: examples\.1: "),
        (
            "models: [{id: a, source: b, examples: [' ']}]",
            r"model a: examples\.0: .*an example has words, and 200 characters at most",
        ),
        (f"models: [{{id: a, source: b, examples: [{'a' * 201}]}}]", r"examples\.0: .*200 char"),
        (f"models: [{{id: a, source: b, examples: [{'a, ' * 25}]}}]", "examples: .* 24 items"),
        ("models: [7]", "model \\?"),
    ],
)
def test_mistakes_in_a_file(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "models.yml"
    path.write_text(content)
    with pytest.raises(CatalogError, match=words):
        catalog.read(str(path))


def test_the_example_in_the_docs_is_a_catalogue(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    path = tmp_path / "models.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    kontext, pocket = catalog.read(str(path))
    assert kontext.loras[0].scale == 0.8
    assert pocket.composite
