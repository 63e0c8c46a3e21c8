"""LoRA adapters, attention backends and compilation of a loaded model."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import FluxKontextPipeline
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from safetensors.torch import save_file
from torch import Tensor, nn

from retouch_server import tuning
from retouch_server.catalog import POCKET, Lora, ModelEntry
from retouch_server.checkpoint import LoadError
from retouch_server.engine.standins import Alone
from retouch_server.loading import load
from retouch_server.models import Model
from tests.server.conftest import Folder, Load
from tests.server.test_equality import EDITS, TOLERANCE


def adapter(
    module: nn.Module, prefix: str, layer: str | tuple[str, ...], seed: int = 0
) -> dict[str, Tensor]:
    """A LoRA of rank 2, as diffusers names its tensors, for every linear `layer` of a module."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and name.endswith(layer):
            down = torch.randn(2, part.in_features, generator=generator)
            up = torch.randn(part.out_features, 2, generator=generator)
            tensors[f"{prefix}.{name}.lora_A.weight"] = down
            tensors[f"{prefix}.{name}.lora_B.weight"] = 0.3 * up
    assert tensors
    return tensors


@pytest.fixture
def adapters(tiny_model: Load, tmp_path: Path) -> Path:
    """A folder with one.safetensors, for transformer and text encoder, and two.safetensors."""
    kontext = tiny_model("kontext")
    encoder = kontext.pipelines["FluxKontextPipeline"].text_encoder
    first = adapter(kontext.denoiser, "transformer", "to_q")
    save_file(first | adapter(encoder, "text_encoder", "q_proj"), tmp_path / "one.safetensors")
    save_file(adapter(kontext.denoiser, "transformer", "to_k", 1), tmp_path / "two.safetensors")
    return tmp_path


def entry(folder: Path, **fields: Any) -> ModelEntry:
    return ModelEntry(id="m", source=str(folder), **fields)


def edited(model: Model) -> Tensor:
    return model.run(EDITS[0])(Alone(model.denoiser))


def test_adapters_change_what_diffusers_alone_would_change(
    tiny_model: Load, tiny_folder: Folder, adapters: Path
) -> None:
    """The other side is diffusers' own way: both adapters loaded beside the weights, not fused."""
    files = [("one.safetensors", 0.7), ("two.safetensors", -0.4)]
    loras = [Lora(source=str(adapters), weight_name=name, scale=scale) for name, scale in files]
    tuned = load(entry(tiny_folder("kontext"), loras=loras), "cpu")
    plain = FluxKontextPipeline.from_pretrained(tiny_folder("kontext"))
    plain.set_progress_bar_config(disable=True)
    for name, _ in files:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # peft: one is loaded already
            plain.load_lora_weights(adapters, weight_name=name, adapter_name=name[:3])
    plain.set_adapters(["one", "two"], [0.7, -0.4])
    own = replace(tuned, pipelines={"FluxKontextPipeline": plain})
    torch.testing.assert_close(edited(tuned), edited(own), rtol=0, atol=1e-5)
    assert (edited(tuned) - edited(tiny_model("kontext"))).abs().max() > 1e-3


def test_all_pipelines_have_the_adapters_and_nothing_is_left_of_them_but_the_weights(
    tiny_model: Load, tiny_folder: Folder, adapters: Path
) -> None:
    lora = Lora(source=str(adapters / "one.safetensors"))
    tuned = load(entry(tiny_folder("kontext"), loras=[lora]), "cpu")
    edit, masked = (tuned.pipelines[f"FluxKontext{kind}Pipeline"] for kind in ("", "Inpaint"))
    assert edit.transformer is masked.transformer
    for part in ("transformer", "text_encoder"):
        before = getattr(tiny_model("kontext").pipelines["FluxKontextPipeline"], part).state_dict()
        after = getattr(edit, part).state_dict()
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all(name.endswith(("to_q.weight", "q_proj.weight")) for name in changed)
    assert not any(p.requires_grad for p in tuned.denoiser.parameters())


def lora_error(folder: Path, lora: Mapping[str, Any]) -> str:
    with pytest.raises(LoadError) as failure:
        load(entry(folder, loras=[Lora(**lora)]), "cpu")
    message = str(failure.value)
    assert "\n" not in message
    assert message.startswith(f"model m: loras: {lora['source']}: ")
    return message


def test_adapters_that_cannot_be_loaded(tiny_folder: Folder, adapters: Path) -> None:
    folder = tiny_folder("kontext")
    for source in ("/nowhere/x.safetensors", "./x", "x"):
        assert "there is no such file or folder" in lora_error(folder, {"source": source})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        hub = {"source": "nowhere/none", "weight_name": "x.safetensors"}
        assert "x.safetensors" in lora_error(folder, hub)
    assert "2 files are *.safetensors" in lora_error(folder, {"source": str(adapters)})
    missing = {"source": str(adapters), "weight_name": "three.safetensors"}
    nowhere = f"weight_name: there is no file {adapters}/three.safetensors"
    assert nowhere in lora_error(folder, missing)
    one = {"source": str(adapters / "one.safetensors")}
    named = one | {"weight_name": "two.safetensors"}
    assert "weight_name: it is of a folder; this is a file" in lora_error(folder, named)
    pinned = one | {"revision": "main"}
    assert "revision: it is of the hub; this is a file" in lora_error(folder, pinned)
    pickle = shutil.copy(adapters / "one.safetensors", adapters / "one.bin")
    assert "only safetensors are read" in lora_error(folder, {"source": str(pickle)})
    broken = adapters / "two.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    assert "two.safetensors is truncated" in lora_error(folder, {"source": str(broken)})


def test_an_adapter_of_another_model_is_refused(
    tiny_model: Load, tiny_folder: Folder, tmp_path: Path
) -> None:
    """diffusers itself loads nothing of it and says so in a log line."""
    path = tmp_path / "unet.safetensors"
    save_file(adapter(tiny_model("instruct").denoiser, "unet", "to_q"), path)
    error = lora_error(tiny_folder("kontext"), {"source": str(path)})
    assert "it has nothing for a FluxKontextPipeline" in error


def blocks(of: str, numbers: Iterable[int], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a block 0 for the blocks of these numbers instead."""
    return {
        name.replace(f"{of}.0.", f"{of}.{i}."): tensor.clone()
        for i in numbers
        for name, tensor in tensors.items()
        if f"{of}.0." in name
    }


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("deeper", "20 of 24 tensors fit nothing here"),
        ("deeper encoder", "8 of 16 tensors fit nothing here"),
        ("unet", "2 of 6 tensors fit nothing here"),
        ("text_encoder_2", "2 of 6 tensors fit nothing here"),
    ],
)
def test_an_adapter_of_which_a_part_fits_nothing(
    tiny_model: Load, tiny_folder: Folder, tmp_path: Path, extra: str, words: str
) -> None:
    """diffusers leaves it out and says so in a log line, if that."""
    pipe = tiny_model("kontext").pipelines["FluxKontextPipeline"]
    own = adapter(pipe.transformer, "transformer", "to_q")
    encoder = adapter(pipe.text_encoder, "text_encoder", "q_proj")
    more = {
        "deeper": blocks("blocks", range(1, 6), own),
        "deeper encoder": encoder | blocks("layers", range(2, 6), encoder),
    }
    first = {name.replace("transformer", extra, 1): own[name].clone() for name in list(own)[:2]}
    path = tmp_path / "lora.safetensors"
    save_file(own | more.get(extra, first), path)
    assert words in lora_error(tiny_folder("kontext"), {"source": str(path)})


def kohya(tensors: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """An adapter as sd-scripts names it, with its scales: alpha equal to the rank changes nothing."""
    renamed = {}
    for name, tensor in tensors.items():
        part, layer = name.split(".", 1)
        layer, which, _ = layer.rsplit(".", 2)
        base = f"{prefixes[part]}_{layer.replace('.', '_')}"
        renamed[f"{base}.{'lora_down' if which == 'lora_A' else 'lora_up'}.weight"] = tensor
        renamed[f"{base}.alpha"] = torch.tensor(2.0)
    return renamed


@pytest.mark.parametrize("name", ["instruct", "xl"])
def test_an_adapter_by_other_names_fits_as_well(
    tiny_model: Load, tiny_folder: Folder, tmp_path: Path, name: str
) -> None:
    model = tiny_model(name)
    encoder = model.pipelines[model.family.edit].text_encoder
    own = adapter(model.denoiser, "unet", "to_q")
    text = adapter(encoder, "text_encoder", ("q_proj", "out_proj", "fc1", "fc2"))
    nested = {n.replace("text_encoder.", "text_encoder.text_model."): x for n, x in text.items()}
    prefix = "lora_te" if name == "instruct" else "lora_te1"
    save_file(own | text, tmp_path / "peft.safetensors")
    other = kohya(own | nested, {"unet": "lora_unet", "text_encoder": prefix})
    save_file(other, tmp_path / "kohya.safetensors")
    peft, sd_scripts = (
        load(entry(tiny_folder(name), loras=[Lora(source=str(tmp_path), weight_name=file)]), "cpu")
        for file in ("peft.safetensors", "kohya.safetensors")
    )
    assert torch.equal(edited(peft), edited(sd_scripts))
    assert not torch.equal(edited(peft), edited(model))


def test_a_pipeline_without_adapters() -> None:
    with pytest.raises(LoadError, match="loras: diffusers has none for object"):
        tuning.fuse_loras(object(), [Lora(source="x")])


def test_the_backend_is_set_for_this_denoiser_alone(tiny_model: Load) -> None:
    other = copy.deepcopy(tiny_model("kontext").denoiser)
    denoiser = copy.deepcopy(other)
    tuning.set_attention(denoiser, "flex")
    attention = denoiser.transformer_blocks[0].attn
    assert attention.processor._attention_backend is AttentionBackendName.FLEX
    assert other.transformer_blocks[0].attn.processor._attention_backend is None
    # Who has no backend of its own follows diffusers' global one: it must not be flex, which cannot take float64 here.
    q = torch.randn(1, 4, 2, 8, dtype=torch.float64)
    rows = q.transpose(1, 2)
    wanted = nn.functional.scaled_dot_product_attention(rows, rows, rows).transpose(1, 2)
    torch.testing.assert_close(dispatch_attention_fn(q, q, q), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "backend", "words"),
    [
        ("kontext", "nonsense", "attention: .*nonsense"),
        ("kontext", "flash", "attention: .*flash.*not usable"),
        ("instruct", "native", "attention: UNet2DConditionModel has no choice of backends"),
    ],
)
def test_backends_that_are_not_there(
    tiny_folder: Folder, name: str, backend: str, words: str
) -> None:
    with pytest.raises(LoadError, match=f"^model m: {words}"):
        load(entry(tiny_folder(name), attention=backend), "cpu")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_denoiser_from_a_thread_that_is_not_the_main_one(
    tiny_model: Load, tiny_folder: Folder
) -> None:
    compiled = load(entry(tiny_folder("kontext"), compile=True), "cpu")
    blocks = [*compiled.denoiser.transformer_blocks, *compiled.denoiser.single_transformer_blocks]
    assert all(block._compiled_call_impl is not None for block in blocks)
    results: list[Tensor] = []

    def work() -> None:
        with torch.inference_mode():
            results.append(edited(compiled))

    thread = Thread(target=work)
    thread.start()
    thread.join()
    torch.testing.assert_close(results[0], edited(tiny_model("kontext")), rtol=0, atol=1e-5)


def test_a_unet_without_blocks_that_repeat_is_compiled_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pocket's has none of those that its class names. Traced here, not compiled: that takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = load(POCKET.model_copy(update={"compile": True}), "cpu")
    assert model.denoiser._compiled_call_impl is not None
    with torch.inference_mode():
        assert (edited(model) - edited(load(POCKET, "cpu"))).abs().max() <= TOLERANCE


def test_more_shapes_than_torch_would_compile_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit torch runs the rest uncompiled, in silence."""
    compiled = []

    class Denoiser(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return rows + 1

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(inputs)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    denoiser = Denoiser()
    tuning.compile_denoiser(denoiser)
    for rows in range(2, 14):
        denoiser(torch.zeros(rows, 2))
    assert len(compiled) == 12
