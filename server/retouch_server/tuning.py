"""What a catalogue entry changes in a loaded pipeline: LoRA adapters, the attention backend, compilation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.models.attention_dispatch import attention_backend

from .catalog import Lora, ModelEntry
from .checkpoint import PICKLES, LoadError, is_hub_id, one_line, read_header

# Shapes that one compiled block may be compiled for: batch sizes x output sizes x text lengths. Beyond, torch would run
# it uncompiled without a word; its own limit is 8.
COMPILED_SHAPES = 64
ADAPTER = "lora"  # what an adapter is called until it is fused


def tune(pipe: Any, denoiser: Any, entry: ModelEntry) -> None:
    """Apply `loras`, `attention` and `compile` of the entry, for all pipelines over these parts. Raises LoadError."""
    if entry.loras:
        fuse_loras(pipe, entry.loras)
    if entry.attention:
        set_attention(denoiser, entry.attention)
    if entry.compile:
        compile_denoiser(denoiser)


def fuse_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Add the adapters, each times its scale, to the weights of the pipeline's parts.

    Fused and not beside them: a step then costs what it costs without, and no call of a pipeline can change the scale
    under another edit's feet. Raises LoadError, naming the adapter.
    """
    if not hasattr(pipe, "load_lora_weights"):
        raise LoadError(f"loras: diffusers has none for {type(pipe).__name__}")
    for lora in loras:
        try:
            _load_lora(pipe, lora)
            pipe.set_adapters(ADAPTER, lora.scale)
            pipe.fuse_lora(components=list(pipe.get_list_adapters()), adapter_names=[ADAPTER])
            pipe.unload_lora_weights()
        except Exception as error:
            raise LoadError(f"loras: {lora.source}: {one_line(error)}") from error


def _load_lora(pipe: Any, lora: Lora) -> None:
    source = lora.source
    path = Path(source).expanduser()
    if path.suffix in PICKLES:
        raise LoadError("only safetensors are read")
    if path.exists():
        read_header(_local_file(path, lora))
        source = str(path)
    elif not is_hub_id(source):
        raise LoadError("there is no such file or folder")
    options = {"weight_name": lora.weight_name, "revision": lora.revision, "use_safetensors": True}
    names = _tensor_names(pipe, source, options)
    pipe.load_lora_weights(source, adapter_name=ADAPTER, **options)
    parts = pipe.get_list_adapters()
    if not parts:
        raise LoadError(f"it has nothing for a {type(pipe).__name__}")
    loaded = sum(
        ADAPTER in name.split(".")
        for part in parts
        for name, _ in getattr(pipe, part).named_parameters()
    )
    if loaded < len(names):
        raise LoadError(f"{len(names) - loaded} of {len(names)} tensors fit nothing here")


def _tensor_names(pipe: Any, source: str, options: Mapping[str, Any]) -> list[str]:
    """An adapter's tensors by diffusers' names, whoever trained it; its scales (alpha) are none."""
    blocks = {"unet_config": pipe.unet.config} if hasattr(pipe, "unet") else {}
    tensors, *_ = pipe.lora_state_dict(source, return_lora_metadata=True, **blocks, **options)
    return [name for name in tensors if not name.endswith("alpha")]


def _local_file(path: Path, lora: Lora) -> Path:
    kind = "file" if path.is_file() else "folder"
    if lora.revision:
        raise LoadError(f"revision: it is of the hub; this is a {kind}")
    if path.is_file():
        if lora.weight_name:
            raise LoadError("weight_name: it is of a folder; this is a file")
        return path
    if lora.weight_name:
        named = path / lora.weight_name
        if not named.is_file():
            raise LoadError(f"weight_name: there is no file {named}")
        return named
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise LoadError(f"{len(found)} files are *.safetensors; say which by weight_name")
    return found[0]


def set_attention(denoiser: Any, backend: str) -> None:
    """Have this denoiser alone attend by `backend`. Raises LoadError if it cannot, or cannot choose."""
    processors = [getattr(module, "processor", None) for module in denoiser.modules()]
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise LoadError(f"attention: {type(denoiser).__name__} has no choice of backends")
    try:
        # diffusers makes the backend that of every other model in the process too; this restores theirs.
        with attention_backend():
            denoiser.set_attention_backend(backend)
    except Exception as error:
        raise LoadError(f"attention: {one_line(error)}") from error


def compile_denoiser(denoiser: Any) -> None:
    """Have torch compile the denoiser's repeated blocks, or all of it, at its first call of each shape."""
    blocks = {type(module).__name__ for module in denoiser.modules()}
    repeated = blocks & set(getattr(denoiser, "_repeated_blocks", None) or ())
    compile_ = denoiser.compile_repeated_blocks if repeated else denoiser.compile
    compile_(dynamic=False, recompile_limit=COMPILED_SHAPES)
