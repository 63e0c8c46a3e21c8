"""What a folder in diffusers' format holds, read before anything is loaded: parts, files, headers, sizes.

A safetensors file (https://huggingface.co/docs/safetensors) is its header's length in
8 bytes, the header as JSON, the data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers

# Whose classes a checkpoint may name, with the modules of diffusers' own pipelines: a library outside these would
# be code that nobody here chose.
TRUSTED_LIBRARIES = frozenset({"diffusers", "transformers", "retouch_server.pocket"})

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
SINGLE_FILES = (*PICKLES, ".safetensors", ".gguf")

_MAX_HEADER = 100_000_000  # safetensors' own limit
_LFS_POINTER = b"version "
# Gone from transformers, but named by checkpoints of its time; diffusers reads it as the other.
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}


class LoadError(Exception):
    """A model cannot be loaded; the message is one line for the operator."""


def one_line(error: Exception) -> str:
    """What an error of a library says, on a line of bearable length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_hub_id(source: str) -> bool:
    """Whether a source can be a repository of the hub, `owner/name`."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source))


class Stored(NamedTuple):
    """One tensor of a file: its name, its dtype as safetensors writes it, how many numbers and bytes."""

    name: str
    dtype: str
    numbers: int
    bytes: int


@dataclass(frozen=True)
class Component:
    """One part with weights: its class, its config.json, and the tensors of all its files."""

    cls: Any
    config: Mapping[str, Any]
    tensors: Sequence[Stored]

    @property
    def parameters(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors)

    def bytes_at(self, dtype: torch.dtype) -> int:
        """Bytes of its weights once loaded in `dtype`, with those that its class keeps in float32."""
        kept = _kept_in_float32(self.cls, dtype)

        def size(tensor: Stored) -> int:
            if not tensor.dtype.startswith(("F", "BF")):  # only floats are cast
                return tensor.bytes
            wide = any(f".{name}." in f".{tensor.name}." for name in kept)
            return tensor.numbers * (torch.float32 if wide else dtype).itemsize

        return sum(map(size, self.tensors))


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a folder. Raises LoadError."""
    path = folder / "model_index.json"
    if not _is_file(path):
        raise LoadError(f"{folder} has no model_index.json, so it is no diffusers folder")
    return _read_json(path)


def classes(index: Mapping[str, Any]) -> dict[str, Any]:
    """The class of each part that a model_index.json names, none left out and none untrusted. Raises LoadError."""
    found = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        match value:  # a list of numbers is an option
            case [None, _]:
                pass
            case [str(library), str(cls)]:
                found[name] = _class(name, library, cls)
            case _ if not all(isinstance(item, int | float) for item in value):
                raise LoadError(
                    f"its {name} is {value} in model_index.json, not a library and a class"
                )
    return found


def read(folder: Path, parts: Mapping[str, Any]) -> dict[str, Component]:
    """Those of `parts` (name to class) that have weights. Raises LoadError for what is missing or broken."""
    for name in parts:
        if not (folder / name).is_dir():
            raise LoadError(f"{folder / name} is missing; model_index.json names it")
    return {
        name: _component(folder / name, cls)
        for name, cls in parts.items()
        if isinstance(cls, type) and issubclass(cls, torch.nn.Module)
    }


def read_header(path: Path) -> list[Stored]:
    """The tensors of a safetensors file, by its header alone. Raises LoadError if the file is not whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == _LFS_POINTER:
            raise LoadError(
                f"{path} is a Git LFS pointer: fetch the file itself with `git lfs pull`"
            )
        if len(start) == 8 and length > _MAX_HEADER:
            raise LoadError(f"{path} is not a safetensors file")
        text = file.read(length)
    if len(start) < 8 or len(text) < length:
        raise LoadError(f"{path} is truncated: {size} bytes, not even its header is whole")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        tensors = [
            Stored(name, entry["dtype"], math.prod(entry["shape"]), end - entry["data_offsets"][0])
            for (name, entry), end in zip(header.items(), ends, strict=True)
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise LoadError(f"{path} is not a safetensors file: its header cannot be read") from None
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise LoadError(f"{path} is truncated: {size} of {whole} bytes")
    return tensors


def _class(part: str, library: str, name: str) -> Any:
    if library not in TRUSTED_LIBRARIES and not hasattr(diffusers.pipelines, library):
        raise LoadError(f"its {part} is of {library}, which is not trusted")
    module = getattr(diffusers.pipelines, library, None) or import_module(library)
    cls = getattr(module, _RENAMED.get(name, name), None)
    if not isinstance(cls, type):
        raise LoadError(f"its {part} is a {name}, which is no class of the installed {library}")
    return cls


def _component(folder: Path, cls: Any) -> Component:
    config = folder / "config.json"
    if not _is_file(config):
        raise LoadError(f"{config} is missing")
    tensors = [tensor for path in _weights(folder, cls) for tensor in read_header(path)]
    return Component(cls, _read_json(config), tensors)


def _weights(folder: Path, cls: Any) -> list[Path]:
    """The safetensors files of one part, by the names that diffusers and transformers look for."""
    of_transformers = issubclass(cls, transformers.PreTrainedModel)
    stem = "model" if of_transformers else "diffusion_pytorch_model"
    whole = folder / f"{stem}.safetensors"
    index = folder / f"{whole.name}.index.json"
    # Where both are there, transformers reads the one file and diffusers the shards.
    for path in (whole, index) if of_transformers else (index, whole):
        if _is_file(path):
            return [whole] if path == whole else _shards(index)
    found = sorted(path for path in folder.iterdir() if path.suffix in SINGLE_FILES)
    for path in found:
        if path.suffix in PICKLES:
            raise LoadError(
                f"cannot load {path}: only safetensors are read; convert it with save_pretrained, where you trust it"
            )
    others = f"; it has {', '.join(path.name for path in found)}" if found else ""
    raise LoadError(f"{whole} is missing{others}")


def _shards(index: Path) -> list[Path]:
    content = _read_json(index)
    names = content.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise LoadError(f"{index} has no weight_map")
    if not names:
        raise LoadError(f"{index} has an empty weight_map")
    shards = [index.parent / name for name in sorted(set(names.values()))]
    for shard in shards:
        if not _is_file(shard):
            raise LoadError(f"{shard} is missing; {index.name} names it")
    return shards


def _is_file(path: Path) -> bool:
    """Whether a file is there. Raises LoadError where something else stands in its place."""
    if path.is_dir():
        raise LoadError(f"{path} is a folder, not a file")
    if path.is_symlink() and not path.exists():
        raise LoadError(f"{path} is a link to {path.readlink()}, which is not there")
    return path.is_file()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise LoadError(f"{path} is not JSON") from None
    if not isinstance(content, dict):
        raise LoadError(f"{path} is not a JSON object")
    return content


def _kept_in_float32(cls: Any, dtype: torch.dtype) -> set[str]:
    """Modules that a class keeps in float32: transformers' strict ones always, others of its only beside float16."""
    always = set(getattr(cls, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is torch.float16 or issubclass(cls, diffusers.ModelMixin):
        always |= set(getattr(cls, "_keep_in_fp32_modules", None) or ())
    return always
