"""From a catalogue entry to a loaded model: where it is, whether it fits, in which dtypes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal, cast
from unittest.mock import MagicMock

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    ModelMixin,
    StableDiffusionInstructPix2PixPipeline,
)
from torch import nn
from transformers import PreTrainedModel

from retouch_server.catalog import Defaults, MaxProfile, ModelEntry
from retouch_server.engine.engine import Engine
from retouch_server.loading import LoadError, load
from retouch_server.memory import GIB, MARGIN, RESERVE
from retouch_server.metrics import Metrics
from tests.server import tiny
from tests.server.conftest import Folder, Load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nwidget:\n- text: make it sepia\n- text: make it night\n---\n# A model\n"


def fails(source: object, **options: Any) -> str:
    with pytest.raises(LoadError) as failure:
        load(ModelEntry(id="m", source=str(source)), "cpu", **options)
    message = str(failure.value)
    assert "\n" not in message
    assert message.startswith("model m: ")
    return message


def pipeline(entry: ModelEntry) -> Any:
    model = load(entry, "cpu")
    return model.pipelines[model.family.edit]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights is an error."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    for cls in (ModelMixin, PreTrainedModel, DiffusionPipeline):
        monkeypatch.setattr(cls, "from_pretrained", read)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "x/model.gguf"])
def test_a_single_file_is_no_folder(tmp_path: Path, name: str) -> None:
    assert "a folder in diffusers' format is needed" in fails(tmp_path / name)
    assert "a folder in diffusers' format is needed" in fails(name)


@pytest.mark.usefixtures("unread")
def test_damage_is_found_before_weights_are_read(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("instruct"), tmp_path / "m"))
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is truncated" in fails(folder)


def test_a_part_of_another_class_than_its_weights(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("instruct"), tmp_path / "m"))
    tiny.rewrite_index(folder, unet=["diffusers", "FluxTransformer2DModel"])
    assert "its unet, a FluxTransformer2DModel, cannot be loaded: " in fails(folder)


@pytest.mark.usefixtures("unread")
def test_a_folder_has_no_revision(tiny_folder: Folder) -> None:
    folder = tiny_folder("instruct")
    with pytest.raises(LoadError, match=f"^model m: revision: it is of the hub; {folder} is a"):
        load(ModelEntry(id="m", source=str(folder), revision="main"), "cpu")


def test_a_device_that_is_not_there(tiny_folder: Folder) -> None:
    for device in ("cuda:77", "nonsense"):
        with pytest.raises(LoadError, match=r"^model m: cannot load "):
            load(ModelEntry(id="m", source=str(tiny_folder("instruct"))), device)


@pytest.mark.usefixtures("unread")
def test_too_little_memory_is_found_before_weights_are_read(tiny_folder: Folder) -> None:
    asked = []

    def free(device: str) -> int:
        asked.append(device)
        return GIB // 8

    words = "needs about 0.3 GiB on cpu, 0.1 GiB are free; lower its dtype"
    assert words in fails(tiny_folder("instruct"), free=free)
    assert asked == ["cpu"]


def test_exactly_enough_memory_is_enough(tiny_folder: Folder, tiny_model: Load) -> None:
    needed = int(tiny_model("kontext").parameters * 4 * MARGIN) + RESERVE["cpu"]
    assert "needs about" in fails(tiny_folder("kontext"), free=lambda device: needed - 1)
    load(ModelEntry(id="m", source=str(tiny_folder("kontext"))), "cpu", lambda device: needed)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to"), MemoryError()]
)
def test_memory_that_runs_out_while_loading(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def to(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(StableDiffusionInstructPix2PixPipeline, "to", to)
    message = fails(tiny_folder("instruct"), free=lambda device: None)
    assert "out of memory: needs about 0.3 GiB on cpu; lower its dtype" in message


def test_memory_of_a_loaded_model(tiny_model: Load, tiny_folder: Folder) -> None:
    entry = ModelEntry(id="m", source=str(tiny_folder("kontext")), dtype="bfloat16")
    model, wide = load(entry, "cpu"), tiny_model("kontext")
    assert model.denoiser.dtype is torch.bfloat16
    floats = 4 * wide.parameters
    buffers = wide.memory_bytes - floats
    assert 0 < buffers < 0.01 * floats
    assert model.memory_bytes - buffers == floats // 2
    metrics = Metrics(["m"])
    metrics.watch(model, cast(Engine, MagicMock(slots=1)))
    sample = metrics.registry.get_sample_value("retouch_server_model_memory_bytes", {"model": "m"})
    assert sample == model.memory_bytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_vae_that_pipelines_would_switch_stays_in_float32(
    tiny_folder: Folder, dtype: Literal["float16", "bfloat16"]
) -> None:
    """Edits share it: one would switch it under another's feet. Its numbers are those that diffusers computes with."""
    folder = tiny_folder("xl")
    pipe = pipeline(ModelEntry(id="m", source=str(folder), dtype=dtype))
    assert pipe.unet.dtype is pipe.text_encoder.dtype is getattr(torch, dtype)
    stock = AutoencoderKL.from_pretrained(folder / "vae", dtype=pipe.unet.dtype).float()
    for name, tensor in pipe.vae.state_dict().items():
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, stock.state_dict()[name]), name


def test_a_vae_that_is_not_switched_is_not_widened(tiny_folder: Folder, tmp_path: Path) -> None:
    never = ModelEntry(id="m", source=str(tiny_folder("instruct")), dtype="float16")
    assert pipeline(never).vae.config.force_upcast
    assert pipeline(never).vae.dtype is torch.float16
    folder = Path(shutil.copytree(tiny_folder("xl"), tmp_path / "m"))
    config = folder / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    safe = ModelEntry(id="m", source=str(folder), dtype="float16")
    assert pipeline(safe).vae.dtype is torch.float16


def test_a_widened_vae_counts_as_such(tiny_folder: Folder, tmp_path: Path) -> None:
    entry = ModelEntry(id="m", source=str(tiny_folder("xl")), dtype="float16")
    model = load(entry, "cpu")
    parts = model.pipelines[model.family.edit].components.values()
    weights = sum(p.nbytes for m in parts if isinstance(m, nn.Module) for p in m.parameters())
    needed = int(weights * MARGIN) + RESERVE["cpu"]
    with pytest.raises(LoadError, match="needs about"):
        load(entry, "cpu", lambda device: needed - 1)
    load(entry, "cpu", lambda device: needed)


@pytest.fixture
def snapshot(tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache that holds org/model, and no network."""
    repository = tmp_path / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return Path(shutil.copytree(tiny_folder("instruct"), repository / "snapshots" / COMMIT))


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hub_id_is_loaded_from_the_cache(
    snapshot: Path, tiny_model: Load, revision: str | None
) -> None:
    model = load(ModelEntry(id="m", source="org/model", revision=revision), "cpu")
    assert model.parameters == tiny_model("instruct").parameters


@pytest.mark.usefixtures("unread")
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_a_hub_ids_files_are_checked_like_a_folders(snapshot: Path) -> None:
    assert "cannot load org/other: " in fails("org/other")
    shard = snapshot / "vae/diffusion_pytorch_model.safetensors"
    shard.unlink()
    assert f"{shard} is missing" in fails("org/model")


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_nothing_is_downloaded_of_what_cannot_be_served(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = snapshot / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"vae": ["evil", "VAE"]}))
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *_, **__: pytest.fail("downloaded"))
    assert "its vae is of evil, which is not trusted" in fails("org/model")


@pytest.mark.parametrize(
    ("card", "said", "shown"),
    [
        (CARD, None, ("make it sepia", "make it night")),
        (CARD, ["paint it"], ("paint it",)),
        (CARD, [], ()),
        ("---\nwidget: [\n---\n", None, ()),
        ("", None, ()),
    ],
)
def test_examples_are_the_catalogues_or_the_cards(
    tiny_folder: Folder, tmp_path: Path, card: str, said: list[str] | None, shown: tuple[str, ...]
) -> None:
    folder = shutil.copytree(tiny_folder("instruct"), tmp_path / "m")
    (folder / "README.md").write_text(card)
    model = load(ModelEntry(id="m", source=str(folder), examples=said), "cpu")
    assert model.examples == shown


@pytest.fixture
def asked(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the hub, which has the card of org/model, was asked for."""
    seen: list[object] = []

    def file_exists(*what: object, **of: object) -> bool:
        seen.append((*what, of))
        return True

    def hf_hub_download(*what: object, **of: object) -> None:
        seen.append((*what, of))
        (snapshot / "README.md").write_text(CARD)

    monkeypatch.setattr(huggingface_hub, "file_exists", file_exists)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return seen


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_the_card_of_a_hub_id_is_downloaded_once_and_of_the_same_commit(
    asked: list[object],
) -> None:
    for _ in range(2):
        model = load(ModelEntry(id="m", source="org/model"), "cpu")
        assert model.examples == ("make it sepia", "make it night")
    assert (
        asked == [("org/model", "README.md", {"revision": COMMIT})] * 2
    )  # is it there, and get it


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_a_card_that_nobody_reads_is_not_downloaded(asked: list[object]) -> None:
    assert load(ModelEntry(id="m", source="org/model", examples=[]), "cpu").examples == ()
    assert not asked


@pytest.mark.usefixtures("snapshot")
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_a_hub_out_of_reach_costs_the_card_and_not_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert load(ModelEntry(id="m", source="org/model"), "cpu").examples == ()
    assert "model m: without its card: " in caplog.text


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("qwen-edit", {"arguments": {"true_cfg_scale": 3.0}}, "arguments.true_cfg_scale"),
        ("klein-distilled", {"defaults": Defaults(guidance_scale=3.0)}, "defaults.guidance_scale"),
        ("klein-kv", {"max": MaxProfile(guidance_scale=3.0)}, "max.guidance_scale: it takes none"),
        ("instruct", {"mask_crop": 8}, "mask_crop: it takes no mask"),
    ],
)
def test_what_a_model_would_ignore_is_refused(
    tiny_folder: Folder, name: str, change: dict[str, Any], words: str
) -> None:
    entry = ModelEntry(id="m", source=str(tiny_folder(name)))
    with pytest.raises(LoadError, match=f"model m: {words}"):
        load(entry.model_copy(update=change), "cpu")


def test_a_checkpoints_options_hold_for_all_its_pipelines(tiny_model: Load) -> None:
    """A distilled klein that did not say so in its masked pipeline would be guided there, at twice the cost."""
    pipelines = tiny_model("klein-distilled").pipelines
    assert len(pipelines) == 2
    assert all(pipe.config.is_distilled for pipe in pipelines.values())
