"""Loading models, and turning an edit's inputs into a call of the right diffusers pipeline.

What must be known of a pipeline family is one row in `FAMILIES`. Weights are loaded once; the family's masked and
strength pipelines are built over the same components.
"""

from __future__ import annotations

import copy
import inspect
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor

from .catalog import Defaults, ModelEntry
from .engine.edit import OnStep, Run


@dataclass(frozen=True)
class Family:
    """Pipelines that share one checkpoint's weights, and what they take.

    edit, masked, strength: diffusers class names for a plain edit, one with a mask, one with a strength; None where
    diffusers has none. denoiser: the component that the engine batches. multiple: output sides are multiples of it.
    """

    edit: str
    denoiser: str
    multiple: int
    masked: str | None = None
    strength: str | None = None
    negative_prompt: bool = False


_STABLE_DIFFUSION = Family(
    edit="StableDiffusionImg2ImgPipeline",
    strength="StableDiffusionImg2ImgPipeline",
    masked="StableDiffusionInpaintPipeline",
    denoiser="unet",
    multiple=8,
    negative_prompt=True,
)

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionInstructPix2PixPipeline": Family(
        edit="StableDiffusionInstructPix2PixPipeline",
        denoiser="unet",
        multiple=8,
        negative_prompt=True,
    ),
    "StableDiffusionPipeline": _STABLE_DIFFUSION,
    "StableDiffusionImg2ImgPipeline": _STABLE_DIFFUSION,
    # A 9-channel checkpoint has no img2img: without a mask, all of the image is masked.
    "StableDiffusionInpaintPipeline": Family(
        edit="StableDiffusionInpaintPipeline",
        strength="StableDiffusionInpaintPipeline",
        masked="StableDiffusionInpaintPipeline",
        denoiser="unet",
        multiple=8,
        negative_prompt=True,
    ),
    "FluxKontextPipeline": Family(
        edit="FluxKontextPipeline",
        strength="FluxKontextInpaintPipeline",
        masked="FluxKontextInpaintPipeline",
        denoiser="transformer",
        multiple=16,
    ),
}

# Whose classes a checkpoint may name: a library outside these would be code that nobody here chose.
TRUSTED_LIBRARIES = frozenset({"diffusers", "transformers", "retouch_server.pocket"})


class LoadError(Exception):
    """A model cannot be loaded; the message is one line for the operator."""


@dataclass(frozen=True)
class Inputs:
    """What one image is made from. `image` is RGB at the output size, `mask` L at the same size, 255 = edit."""

    prompt: str
    image: Image.Image
    steps: int
    seed: int
    guidance_scale: float | None = None
    strength: float | None = None
    mask: Image.Image | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint: its pipelines by class name, all over the same weights."""

    entry: ModelEntry
    family: Family
    pipelines: Mapping[str, Any]
    load_seconds: float
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipelines[self.family.edit], self.family.denoiser)

    @property
    def parameters(self) -> int:
        """Parameters of all components."""
        modules = self.pipelines[self.family.edit].components.values()
        return sum(
            p.numel() for m in modules if isinstance(m, torch.nn.Module) for p in m.parameters()
        )

    @property
    def takes_mask(self) -> bool:
        return self.family.masked is not None or self.entry.composite

    @property
    def takes_strength(self) -> bool:
        return self.family.strength is not None or self.entry.composite

    @property
    def takes_guidance(self) -> bool:
        """A guidance-distilled transformer takes it as an embedding; one without would ignore it."""
        return bool(self.denoiser.config.get("guidance_embeds", True))

    @property
    def defaults(self) -> Defaults:
        """What an unset field means: the catalogue's word, else the edit pipeline's own."""
        taken = inspect.signature(type(self.pipelines[self.family.edit]).__call__).parameters
        own = {k: taken[k].default for k in Defaults.model_fields if k in taken}
        return Defaults(**(own | self.entry.defaults.model_dump(exclude_none=True)))

    def blend(self, inputs: Inputs) -> float:
        """How much of the result is laid over the input, 0..1: strength where no pipeline knows it; 0 is always 0."""
        if inputs.strength == 0:
            return 0.0
        return 1.0 if self.family.strength or inputs.strength is None else inputs.strength

    def run(self, inputs: Inputs) -> Run:
        """The pipeline's whole call for these inputs, for the engine. Result: 1x3xHxW, 0..1, float32, on the CPU."""

        def run(denoiser: Any, on_step: OnStep) -> Tensor:
            pipe = self._own_copy(self._pipeline_name(inputs), denoiser)
            result: Tensor = pipe(**self._arguments(pipe, inputs, on_step)).images
            return result.float().cpu()

        return run

    def _pipeline_name(self, inputs: Inputs) -> str:
        if inputs.mask is not None and self.family.masked:
            return self.family.masked
        if inputs.strength is not None and self.family.strength:
            return self.family.strength
        return self.family.edit

    def _own_copy(self, name: str, denoiser: Any) -> Any:
        """The pipeline with the engine's stand-in and a scheduler of its own: schedulers are stateful."""
        shared = self.pipelines[name]
        pipe = copy.copy(shared)
        # Past the pipeline's own __setattr__, which would write the new classes into the shared config.
        vars(pipe)[self.family.denoiser] = denoiser
        vars(pipe)["scheduler"] = copy.deepcopy(shared.scheduler)
        return pipe

    def _arguments(self, pipe: Any, inputs: Inputs, on_step: OnStep) -> dict[str, Any]:
        """What this pipeline's call takes, of all that the inputs say; `validation` has refused what none takes."""

        def on_step_end(
            pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            on_step(index + 1, pipe.num_timesteps)
            return tensors

        width, height = inputs.image.size
        known = {
            "prompt": inputs.prompt,
            "negative_prompt": inputs.negative_prompt,
            "image": inputs.image,
            "mask_image": inputs.mask or Image.new("L", inputs.image.size, 255),
            "width": width,
            "height": height,
            "max_area": width * height,
            "_auto_resize": False,
            "strength": self._runnable(inputs.strength, inputs.steps),
            "guidance_scale": inputs.guidance_scale,
            "num_inference_steps": inputs.steps,
            # On the CPU: the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(inputs.seed),
            "output_type": "pt",
            "callback_on_step_end": on_step_end,
        }
        taken = inspect.signature(type(pipe).__call__).parameters
        given = {k: v for k, v in known.items() if k in taken and v is not None}
        return given | self.entry.arguments

    def _runnable(self, strength: float | None, steps: int) -> float | None:
        """At least one denoising step: pipelines fail on none. UNet ones round steps x strength down, others up."""
        if strength is None:
            return None
        least = (1 + 1e-6) / steps if self.family.denoiser == "unet" else 1e-6
        return min(1.0, max(strength, least))


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
        if isinstance(value, list) and value[0] is not None and value[0] not in TRUSTED_LIBRARIES:
            raise LoadError(f"model {entry.id}: its {part} is of {value[0]}, which is not trusted")
    return source, family, getattr(diffusers, name)


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
