"""Loading a model: what is refused before it is read, and its family's pipelines over one set of weights."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from .catalog import ModelEntry
from .models import FAMILIES, OURS, Family, Model, call_parameters

# Whose classes a checkpoint may name, with the modules of diffusers' own pipelines: a library outside these would
# be code that nobody here chose.
TRUSTED_LIBRARIES = frozenset({"diffusers", "transformers", "retouch_server.pocket"})


class LoadError(Exception):
    """A model cannot be loaded; the message is one line for the operator."""


def load(entry: ModelEntry, device: str) -> Model:
    """Load one catalogue entry onto `device` (a torch device name). Raises LoadError.

    `from_pretrained` with safetensors only, and only classes of TRUSTED_LIBRARIES: no code comes with a checkpoint.
    """
    started = time.monotonic()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        source, family, cls = _resolve(entry)
        pipe = cls.from_pretrained(
            source, revision=entry.revision, dtype=_dtype(entry, device), use_safetensors=True
        ).to(device)
    except LoadError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise LoadError(f"model {entry.id}: cannot load {entry.source}: {words}") from error
    names = {name for name in (family.edit, family.masked, family.strength) if name}
    pipelines = {name: _over_same_weights(pipe, name) for name in names}
    _check_entry(entry, family, pipelines)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    return Model(entry, family, pipelines, time.monotonic() - started)


def _resolve(entry: ModelEntry) -> tuple[str, Family, Any]:
    """Where the checkpoint is, its family and its pipeline class; refuse what could not be served, before loading."""
    source = entry.source
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder)
        if not (folder / "model_index.json").is_file():
            raise LoadError(
                f"model {entry.id}: {source} has no model_index.json, so it is no diffusers folder"
            )
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise LoadError(f"model {entry.id}: there is no folder {source}")
    index = diffusers.DiffusionPipeline.load_config(source, revision=entry.revision)
    name = index["_class_name"]
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise LoadError(f"model {entry.id}: {name} is not a pipeline that edits images here")
    for part, value in index.items():
        if isinstance(value, list) and not _trusted(value[0]):
            raise LoadError(f"model {entry.id}: its {part} is of {value[0]}, which is not trusted")
    return source, family, getattr(diffusers, name)


def _trusted(library: str | None) -> bool:
    """None is a part left out."""
    return library is None or library in TRUSTED_LIBRARIES or hasattr(diffusers.pipelines, library)


def _check_entry(entry: ModelEntry, family: Family, pipelines: Mapping[str, Any]) -> None:
    """What the catalogue says must be something that this model can do. Raises LoadError."""
    taken = {name for pipe in pipelines.values() for name in call_parameters(pipe)}
    if wrong := sorted((entry.arguments.keys() & OURS) | (entry.arguments.keys() - taken)):
        raise LoadError(
            f"model {entry.id}: arguments.{wrong[0]}: its pipelines take no such argument here"
        )
    if entry.defaults.strength is not None and not (family.strength or entry.composite):
        raise LoadError(f"model {entry.id}: defaults.strength: it takes none")
    if entry.limits.max_pixels < family.multiple**2:
        raise LoadError(
            f"model {entry.id}: limits.max_pixels: its sides are multiples of {family.multiple}"
        )


def _over_same_weights(pipe: Any, name: str) -> Any:
    """Another pipeline of the family over the components of `pipe`; nothing is loaded or copied."""
    cls = getattr(diffusers, name)
    if type(pipe) is cls:
        return pipe
    taken = inspect.signature(cls.__init__).parameters
    options = {k: v for k, v in pipe.config.items() if k == "requires_safety_checker"}
    return cls(**{k: v for k, v in (pipe.components | options).items() if k in taken})


def _dtype(entry: ModelEntry, device: str) -> torch.dtype:
    name = entry.dtype or ("float32" if device == "cpu" else "bfloat16")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def pick_device(device: str) -> str:
    """`auto` to the accelerator that is there, else `cpu`; anything else as it is."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
