"""Loading a model: what is refused before it is read, and its family's pipelines over one set of weights."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
import transformers
from diffusers.pipelines import pipeline_loading_utils

from . import calls, card, checkpoint, images, memory, prompts
from .catalog import ModelEntry
from .checkpoint import SINGLE_FILES, Component, LoadError
from .families import FAMILIES, Family
from .memory import GIB, FreeBytes, free_bytes
from .models import Model
from .tuning import tune

__all__ = ["LoadError", "load", "pick_device"]

log = logging.getLogger(__name__)


def load(entry: ModelEntry, device: str, free: FreeBytes = free_bytes) -> Model:
    """Load one catalogue entry onto `device` (a torch device name). Raises LoadError, which names the entry.

    `from_pretrained` with safetensors only, and only classes that `checkpoint` trusts: no code comes with a checkpoint.
    What is missing, broken or too large for the memory that is `free` is found out before the weights are read.
    """
    started = time.monotonic()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # It prints a safety checker whole, to say that it cannot tell its type.
    diffusers.utils.logging.get_logger(pipeline_loading_utils.__name__).setLevel(logging.ERROR)
    # It says that a black picture is returned; here its refusal is.
    checker = "diffusers.pipelines.stable_diffusion.safety_checker"
    diffusers.utils.logging.get_logger(checker).setLevel(logging.ERROR)
    try:
        folder, family, pipe = _read(entry, device, free)
        names = {name for name in (family.edit, family.masked, family.strength) if name}
        pipelines = {name: _over_same_weights(pipe, name) for name in names}
        readers = prompts.readers(pipe, _sequence_length(entry, pipelines[family.edit]))
        model = Model(entry, family, pipelines, readers, _examples(entry, folder))
        _check_entry(model)
        tune(pipe, model.denoiser, entry)
    except LoadError as error:
        raise LoadError(f"model {entry.id}: {error}") from error
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    return replace(model, load_seconds=time.monotonic() - started)


def _sequence_length(entry: ModelEntry, pipe: Any) -> int | None:
    """Tokens of a prompt that its call lets through; None if it does not say."""
    own = calls.parameters(pipe).get("max_sequence_length")
    said = entry.arguments.get("max_sequence_length", own and own.default)
    return said if isinstance(said, int) else None


def _examples(entry: ModelEntry, folder: Path) -> tuple[str, ...]:
    """Instructions to try: the catalogue's word, else the card's."""
    if entry.examples is not None:
        return tuple(entry.examples)
    if not _local_folder(entry.source):
        _download_card(entry, folder)
    return card.examples(folder)


def _download_card(entry: ModelEntry, snapshot: Path) -> None:
    """Put the card beside the files that diffusers has downloaded, which are all but this one."""
    if (snapshot / card.FILE).exists():
        return
    try:
        # Asked first: a download is tried for half a minute where the hub is out of reach, a question once.
        if huggingface_hub.file_exists(entry.source, card.FILE, revision=snapshot.name):
            huggingface_hub.hf_hub_download(entry.source, card.FILE, revision=snapshot.name)
    except Exception as error:  # the hub's, the network's, the disk's: not worth a model
        log.info("model %s: without its card: %s", entry.id, checkpoint.one_line(error))


def _read(entry: ModelEntry, device: str, free: FreeBytes) -> tuple[Path, Family, Any]:
    """Its folder, its family, and its own pipeline on the device."""
    try:
        folder, family, cls, parts = _resolve(entry)
        components = checkpoint.read(folder, parts)
        dtype, widened = _dtype(entry, device), _widened(cls, components)
        weights = sum(
            part.bytes_at(torch.float32 if name in widened else dtype)
            for name, part in components.items()
        )
        parameters = sum(part.parameters for part in components.values())
        log.info("model %s: %.2f G parameters, %.1f GiB", entry.id, parameters / 1e9, weights / GIB)
        with memory.room(weights, device, free):
            modules = {
                name: _module(folder / name, part.cls, dtype) for name, part in components.items()
            }
            pipe = cls.from_pretrained(folder, dtype=dtype, use_safetensors=True, **modules)
            for name in widened:
                getattr(pipe, name).to(torch.float32)
            return folder, family, pipe.to(device)
    except LoadError:
        raise
    except Exception as error:
        words = checkpoint.one_line(error)
        raise LoadError(f"cannot load {entry.source}: {words}") from error


def _module(folder: Path, cls: Any, dtype: torch.dtype) -> Any:
    """One part, every tensor of which a file has: transformers makes up those that none has, and says so in its log."""
    try:
        options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        module, info = cls.from_pretrained(folder, **options)
    except Exception as error:
        if memory.is_exhaustion(error):
            raise
        words = checkpoint.one_line(error)
        raise LoadError(
            f"its {folder.name}, a {cls.__name__}, cannot be loaded: {words}"
        ) from error
    # diffusers takes an index at its word: what it names and no shard has is left without numbers.
    empty = {name for name, tensor in module.state_dict().items() if tensor.is_meta}
    if missing := empty | set(info["missing_keys"]):
        count = f"{len(missing)} of its {len(module.state_dict())} tensors"
        raise LoadError(
            f"its {folder.name} has no {min(missing)} in its files: {count} are missing"
        )
    return module


def _resolve(entry: ModelEntry) -> tuple[Path, Family, Any, Mapping[str, Any]]:
    """Where the checkpoint is, its family, its pipeline's class and its parts' classes; refuse what cannot be served.

    A hub id's files are downloaded only once its model_index.json has passed.
    """
    folder = _local_folder(entry.source)
    if folder and entry.revision:
        raise LoadError(f"revision: it is of the hub; {folder} is a folder")
    if folder:
        index = checkpoint.read_index(folder)
    else:
        index = diffusers.DiffusionPipeline.load_config(entry.source, revision=entry.revision)
    name = index.get("_class_name")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if name is None or family is None:
        raise LoadError(f"{name} is not a pipeline that edits images here")
    parts, cls = checkpoint.classes(index), getattr(diffusers, name)
    if not folder:
        options = {"revision": entry.revision, "use_safetensors": True}
        folder = Path(cls.download(entry.source, **options))
    return folder, family, cls, parts


def _local_folder(source: str) -> Path | None:
    """The folder that a source is; None: it is a hub id."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.suffix in SINGLE_FILES:
        raise LoadError(
            f"{source} is a single file: a folder in diffusers' format is needed; "
            "make one with from_single_file and save_pretrained"
        )
    if not checkpoint.is_hub_id(source):
        raise LoadError(f"there is no folder {source}")
    return None


def _widened(cls: Any, components: Mapping[str, Component]) -> frozenset[str]:
    """Components that are in float32 whatever the entry's dtype.

    SDXL's VAE overflows in float16. Its pipelines switch it to float32 and back in the middle of a call, on weights
    that other edits use: it is read as they read it, and stays in float32. Pipelines without `upcast_vae` switch none.
    """
    vae = components.get("vae")
    switched = vae and hasattr(cls, "upcast_vae") and vae.config.get("force_upcast", True)
    return frozenset({"vae"} if switched else ())


def _check_entry(model: Model) -> None:
    """What the catalogue says must be something that this model can do. Raises LoadError."""
    entry, family = model.entry, model.family
    for name, value in sorted(entry.arguments.items()):
        if name == family.guidance:
            raise LoadError(f"arguments.{name}: a request says it")
        if why := calls.refusal(name, value, model.pipelines.values()):
            raise LoadError(f"arguments.{name}: {why}")
    if entry.defaults.strength is not None and not (family.strength or entry.composite):
        raise LoadError("defaults.strength: it takes none")
    guided = {"defaults": entry.defaults, "max": entry.max}
    for name, said in guided.items():
        if said and said.guidance_scale is not None and not model.takes_guidance:
            raise LoadError(f"{name}.guidance_scale: it takes none")
    if entry.mask_crop is not None and not (family.masked or entry.composite):
        raise LoadError("mask_crop: it takes no mask")
    least, limits = family.least_side, entry.limits
    sizes = images.sizes(family.multiple, limits, model.longest_side)
    if not any(width >= least and heights[-1] >= least for width, heights in sizes):
        sides = f"sides in multiples of {family.multiple} from {max(least, family.multiple)}"
        area = f"{limits.min_pixels} to {limits.max_pixels} pixels"
        raise LoadError(f"limits: with {sides} to {model.longest_side}, no output has {area}")


def _over_same_weights(pipe: Any, name: str) -> Any:
    """Another pipeline of the family over the components of `pipe`, and its options; nothing is loaded or copied."""
    cls = getattr(diffusers, name)
    if type(pipe) is cls:
        return pipe
    taken = inspect.signature(cls.__init__).parameters
    return cls(**{k: v for k, v in (dict(pipe.config) | pipe.components).items() if k in taken})


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
