"""What a catalogue entry changes in a loaded pipeline: LoRA adapters, the attention backend, compilation."""

from __future__ import annotations

from collections.abc import Sequence
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
    path = Path(lora.source).expanduser()
    if path.suffix in PICKLES:
        raise LoadError("only safetensors are read")
    if path.exists():
        read_header(_only_file(path, lora.weight_name))
    elif not is_hub_id(lora.source):
        raise LoadError("there is no such file or folder")
    pipe.load_lora_weights(
        str(path) if path.exists() else lora.source,
        weight_name=lora.weight_name,
        revision=lora.revision,
        adapter_name=ADAPTER,
        use_safetensors=True,
    )
    if not pipe.get_list_adapters():
        raise LoadError(f"it has nothing for a {type(pipe).__name__}")


def _only_file(path: Path, name: str | None) -> Path:
    if path.is_file():
        return path
    pattern = name or "*.safetensors"
    found = sorted(path.glob(pattern))
    if len(found) != 1:
        raise LoadError(f"{len(found)} files are {pattern}; say which by weight_name")
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
