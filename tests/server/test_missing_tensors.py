"""A tensor that no file has is never made up; the same weights by other names are whole."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor

from retouch_server.catalog import ModelEntry
from tests.server import tiny
from tests.server.conftest import Folder, Load
from tests.server.test_loading import fails, pipeline

Tensors = dict[str, Tensor]


def rewrite(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "file", "layer", "words"),
    [
        ("instruct", "text_encoder/model", "layers.1.", "16 of its 36"),
        ("kontext", "text_encoder_2/model", "block.0.layer.1.", "3 of its 12"),
        ("klein", "text_encoder/model", "layers.20.", "11 of its 300"),
        ("instruct", "unet/diffusion_pytorch_model", "mid_block.attentions.", "26 of its"),
        ("flux2", "vae/diffusion_pytorch_model", "bn.running_mean", "1 of its"),
    ],
)
def test_a_tensor_that_no_file_has_is_not_made_up(
    tiny_folder: Folder, tmp_path: Path, name: str, file: str, layer: str, words: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder(name), tmp_path / "m"))
    rewrite(
        folder / f"{file}.safetensors",
        lambda tensors: {name: x for name, x in tensors.items() if layer not in name},
    )
    message = fails(folder)
    part = file.split("/")[0]
    assert re.search(rf"its {part} has no [\w.]*{re.escape(layer)}[\w.]* in its files: ", message)
    assert words in message


@pytest.mark.parametrize("kept", ["in the index", "nowhere"])
def test_an_index_that_does_not_say_what_its_shards_have(
    tiny_folder: Folder, tmp_path: Path, kept: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder("instruct"), tmp_path / "m"))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="60KB")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    *others, _ = sorted(set(content["weight_map"].values()))
    content["weight_map"] = {
        name: shard if shard in others else others[0]
        for name, shard in content["weight_map"].items()
        if shard in others or kept == "in the index"
    }
    index.write_text(json.dumps(content))
    assert re.search(r"its unet has no [\w.]+ in its files: \d+ of its \d+", fails(folder))


def old_clip(tensors: Tensors) -> Tensors:
    """SD 1.5's text encoder, and all of its time: nested, with a buffer of positions."""
    positions = {"embeddings.position_ids": torch.arange(77)[None]}
    return {f"text_model.{name}": x for name, x in (tensors | positions).items()}


def both_names(tensors: Tensors) -> Tensors:
    """T5's one embedding, under each of its names."""
    return tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()}


def other_name(tensors: Tensors) -> Tensors:
    rest = {name: x for name, x in tensors.items() if name != "shared.weight"}
    return rest | {"encoder.embed_tokens.weight": tensors["shared.weight"]}


def nested(tensors: Tensors) -> Tensors:
    """Qwen2.5-VL as later transformers saves it."""
    renamed = {}
    for name, x in tensors.items():
        name = name.replace("model.", "model.language_model.", 1)
        renamed[name.replace("visual.", "model.visual.", 1)] = x
    return renamed


def more(tensors: Tensors) -> Tensors:
    return tensors | {"from_training.step": torch.zeros(1)}


@pytest.mark.parametrize(
    ("name", "part", "change"),
    [
        ("instruct", "text_encoder", old_clip),
        ("xl", "text_encoder", old_clip),
        ("kontext", "text_encoder_2", both_names),
        ("kontext", "text_encoder_2", other_name),
        ("qwen-edit", "text_encoder", nested),
        ("instruct", "text_encoder", more),
    ],
)
def test_other_layouts_of_the_same_weights_are_whole(
    tiny_folder: Folder,
    tiny_model: Load,
    tmp_path: Path,
    name: str,
    part: str,
    change: Callable[[Tensors], Tensors],
) -> None:
    folder = Path(shutil.copytree(tiny_folder(name), tmp_path / "m"))
    rewrite(folder / part / "model.safetensors", change)
    model = tiny_model(name)
    wanted = getattr(model.pipelines[model.family.edit], part).state_dict()
    loaded = getattr(pipeline(ModelEntry(id="m", source=str(folder))), part).state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)


def test_a_safety_checker_is_whole_too(
    tiny_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(tiny_folder("instruct"), tmp_path / "m"))
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=size | heads, projection_dim=8))
    checker.save_pretrained(folder / "safety_checker")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    extractor = ["transformers", "CLIPFeatureExtractor"]  # as checkpoints of its time name it
    cls = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    tiny.rewrite_index(folder, safety_checker=cls, feature_extractor=extractor)
    loaded = pipeline(ModelEntry(id="m", source=str(folder))).safety_checker.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in checker.state_dict().items())
    assert "non-standard" not in caplog.text
    rewrite(
        folder / "safety_checker/model.safetensors",
        lambda tensors: {name: x for name, x in tensors.items() if name != "concept_embeds"},
    )
    assert "its safety_checker has no concept_embeds in its files: 1 of its" in fails(folder)
