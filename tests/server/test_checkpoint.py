"""What is found out about a checkpoint before its weights are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPTextModel, T5EncoderModel

from retouch_server import checkpoint
from retouch_server.checkpoint import Component, LoadError, Stored
from tests.server import tiny
from tests.server.conftest import Folder

UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = f"{UNET}.index.json"


@pytest.fixture
def copied(tiny_folder: Folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder("instruct"), tmp_path / "copied"))


def read(folder: Path) -> dict[str, Component]:
    return checkpoint.read(folder, checkpoint.classes(checkpoint.read_index(folder)))


def fails(folder: Path) -> str:
    with pytest.raises(LoadError) as failure:
        read(folder)
    message = str(failure.value)
    assert "\n" not in message
    return message


def shard(folder: Path) -> list[Path]:
    """Save the UNet anew in several files, the way large ones come."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / UNET).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="60KB")
    return sorted((folder / "unet").glob("*-of-*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_and_bytes_are_those_of_the_loaded_model(
    copied: Path, dtype: torch.dtype
) -> None:
    before = read(copied)
    assert len(shard(copied)) > 1
    components = read(copied)
    assert components["unet"].parameters == before["unet"].parameters
    assert components.keys() == {"unet", "vae", "text_encoder"}
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(copied, dtype=dtype)
    for name, component in components.items():
        loaded = list(getattr(pipe, name).parameters())
        assert component.parameters == sum(p.numel() for p in loaded)
        assert component.bytes_at(dtype) == sum(p.nbytes for p in loaded)
    assert components["vae"].config["latent_channels"] == 4


def test_what_a_class_keeps_in_float32_counts_so(tiny_folder: Folder) -> None:
    folder = tiny_folder("kontext")
    component = read(folder)["text_encoder_2"]
    for dtype in (torch.float16, torch.bfloat16):
        loaded = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=dtype)
        assert component.bytes_at(dtype) == sum(p.nbytes for p in loaded.parameters())


def test_only_floats_are_cast() -> None:
    stored = [Stored("a", "F32", 10, 40), Stored("b", "I64", 10, 80), Stored("c", "BF16", 10, 20)]
    assert Component(CLIPTextModel, {}, stored).bytes_at(torch.float16) == 20 + 80 + 20


def test_an_error_without_words_is_called_by_its_name() -> None:
    assert checkpoint.one_line(AssertionError()) == "AssertionError"
    assert checkpoint.one_line(ValueError("a\n  b")) == "a b"


def test_a_header_says_what_safetensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int64)}
    save_file(tensors, path, metadata={"format": "pt"})
    assert sorted(checkpoint.read_header(path)) == [
        Stored("a", "F32", 6, 24),
        Stored("b", "I64", 1, 8),
    ]


def missing_folder(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def missing_config(folder: Path) -> None:
    (folder / "unet/config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "vae/config.json").write_text("{")


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[1]")


def not_utf8(folder: Path) -> None:
    (folder / "model_index.json").write_bytes(b"\xff\xfe{}")


def missing_weights(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")


def pickled(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").unlink()
    torch.save({}, folder / "text_encoder/pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    shard(folder)[1].unlink()


def no_weight_map(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).write_text("{}")


def empty_weight_map(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).write_text('{"metadata": {}, "weight_map": {}}')


def index_beside_the_whole_file(folder: Path) -> None:
    """diffusers reads what the index names."""
    whole = (folder / UNET).read_bytes()
    shard(folder)[1].unlink()
    (folder / UNET).write_bytes(whole)


def broken_link(folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / UNET).symlink_to("../gone")


def a_folder_instead(folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / UNET).mkdir()


def deep_config(folder: Path) -> None:
    (folder / "vae/config.json").write_text("[" * 200_000)


def deep_header(folder: Path) -> None:
    text = b"[" * 200_000
    (folder / UNET).write_bytes(len(text).to_bytes(8, "little") + text)


def huge_header(folder: Path) -> None:
    """In a file that has room for it: sparse, it takes none on the disk."""
    length = 100_000_001
    with (folder / UNET).open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(8 + length)


def truncated(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[:-1])


def truncated_shard(folder: Path) -> None:
    path = shard(folder)[1]
    path.write_bytes(path.read_bytes()[:-5])


def truncated_header(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[:100])


def empty(folder: Path) -> None:
    (folder / UNET).write_bytes(b"")


def not_safetensors(folder: Path) -> None:
    (folder / UNET).write_bytes(b"\x02" + bytes(7) + b"[]")


def a_page_instead(folder: Path) -> None:
    (folder / UNET).write_text("<!doctype html><p>Not found")


def lfs_pointer(folder: Path) -> None:
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")


def unknown_class(folder: Path) -> None:
    tiny.rewrite_index(folder, unet=["diffusers", "FutureUNet"])


def no_class(folder: Path) -> None:
    tiny.rewrite_index(folder, scheduler=["transformers", "pipeline"])


def untrusted(folder: Path) -> None:
    tiny.rewrite_index(folder, unet=["os", "system"])


def half_a_class(folder: Path) -> None:
    tiny.rewrite_index(folder, unet=["diffusers"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing_folder, "/scheduler is missing; model_index.json names it"),
        (missing_config, "unet/config.json is missing"),
        (broken_config, "vae/config.json is not JSON"),
        (broken_index, "model_index.json is not a JSON object"),
        (not_utf8, "model_index.json is not JSON"),
        (missing_weights, f"{UNET} is missing; it has diffusion_pytorch_model.fp16.safetensors"),
        (pickled, "text_encoder/pytorch_model.bin: only safetensors are read; convert it"),
        (missing_shard, f"-00002-of-00005.safetensors is missing; {Path(INDEX).name} names it"),
        (no_weight_map, f"{INDEX} has no weight_map"),
        (empty_weight_map, f"{INDEX} has an empty weight_map"),
        (
            index_beside_the_whole_file,
            f"-00002-of-00005.safetensors is missing; {Path(INDEX).name}",
        ),
        (broken_link, f"{UNET} is a link to ../gone, which is not there"),
        (a_folder_instead, f"{UNET} is a folder, not a file"),
        (deep_config, "vae/config.json is not JSON"),
        (deep_header, f"{UNET} is not a safetensors file: its header"),
        (huge_header, f"{UNET} is not a safetensors file"),
        (truncated, f"{UNET} is truncated: "),
        (truncated_shard, "-00002-of-00005.safetensors is truncated: "),
        (truncated_header, f"{UNET} is truncated: 100 bytes"),
        (empty, f"{UNET} is truncated: 0 bytes"),
        (not_safetensors, f"{UNET} is not a safetensors file: its header"),
        (a_page_instead, f"{UNET} is not a safetensors file"),
        (lfs_pointer, f"{UNET} is a Git LFS pointer"),
        (unknown_class, "its unet is a FutureUNet, which is no class of the installed diffusers"),
        (no_class, "its scheduler is a pipeline, which is no class of the installed transformers"),
        (half_a_class, "its unet is ['diffusers'] in model_index.json, not a library and a class"),
        (untrusted, "its unet is of os, which is not trusted"),
    ],
)
def test_damage(copied: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(copied)
    assert words in fails(copied)


def test_transformers_reads_the_whole_file_beside_an_index(copied: Path) -> None:
    (copied / "text_encoder/model.safetensors.index.json").write_text("{}")
    assert read(copied)["text_encoder"].parameters
    CLIPTextModel.from_pretrained(copied / "text_encoder", use_safetensors=True)


def test_a_class_that_has_another_name_now() -> None:
    index = {"feature_extractor": ["transformers", "CLIPFeatureExtractor"]}
    assert checkpoint.classes(index) == {"feature_extractor": CLIPImageProcessor}


def test_what_an_index_holds_beside_its_parts_is_no_part() -> None:
    index: dict[str, Any] = {
        "_class_name": "X",
        "_ignore_files": ["a.bin", "b.bin"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "layers": [9, 18, 27],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    assert checkpoint.classes(index) == {"text_encoder": CLIPTextModel}
