"""Turning an edit's inputs into a call of the right diffusers pipeline.

What must be known of a pipeline family is one row in `FAMILIES`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .catalog import Defaults, ModelEntry
from .engine.edit import Host, Run


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

# What a request, not the catalogue's `arguments`, says to a pipeline.
OURS = frozenset(
    {
        "prompt",
        "negative_prompt",
        "image",
        "mask_image",
        "width",
        "height",
        "max_area",
        "_auto_resize",
        "strength",
        "guidance_scale",
        "num_inference_steps",
        "generator",
        "output_type",
        "callback_on_step_end",
    }
)


# For a pipeline whose own default is none.
FALLBACK_STEPS = 28


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What a pipeline's call takes, by name."""
    return inspect.signature(type(pipe).__call__).parameters


class Flagged(Exception):
    """The checkpoint's own safety checker refused the result."""


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

    @cached_property
    def defaults(self) -> Defaults:
        """What an unset field means: the catalogue's word, else the edit pipeline's own."""
        taken = call_parameters(self.pipelines[self.family.edit])
        own = {k: taken[k].default for k in Defaults.model_fields if k in taken}
        return Defaults(**(own | self.entry.defaults.model_dump(exclude_none=True)))

    @property
    def default_steps(self) -> int:
        return self.defaults.num_inference_steps or FALLBACK_STEPS

    def blend(self, inputs: Inputs) -> float:
        """How much of the result is laid over the input, 0..1: strength where no pipeline knows it; 0 is always 0."""
        if inputs.strength == 0:
            return 0.0
        pipeline_knows = self.family.strength is not None
        return 1.0 if pipeline_knows or inputs.strength is None else inputs.strength

    def run(self, inputs: Inputs) -> Run:
        """The pipeline's whole call for these inputs, for the engine. Result: 1x3xHxW, 0..1, float32, on the CPU.

        It raises Flagged, or whatever the pipeline raises.
        """

        def run(host: Host) -> Tensor:
            pipe = host.adopt(self.pipelines[self._pipeline_name(inputs)], self.family.denoiser)
            output = pipe(**self._arguments(pipe, inputs, host))
            if any(getattr(output, "nsfw_content_detected", None) or ()):
                raise Flagged
            result: Tensor = output.images
            return result.float().cpu()

        return run

    def _pipeline_name(self, inputs: Inputs) -> str:
        if inputs.mask is not None and self.family.masked:
            return self.family.masked
        if inputs.strength is not None and self.family.strength:
            return self.family.strength
        return self.family.edit

    def _arguments(self, pipe: Any, inputs: Inputs, host: Host) -> dict[str, Any]:
        """What this pipeline's call takes, of all that the inputs say; `validation` has refused what none takes."""

        def on_step_end(
            pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            host.on_step(index + 1, pipe.num_timesteps)
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
        taken = call_parameters(pipe)
        given = self.entry.arguments | {k: v for k, v in known.items() if v is not None}
        return {k: v for k, v in given.items() if k in taken}

    def _runnable(self, strength: float | None, steps: int) -> float | None:
        """At least one denoising step: pipelines fail on none. UNet ones round steps x strength down, others up."""
        if strength is None:
            return None
        least = (1 + 1e-6) / steps if self.family.denoiser == "unet" else 1e-6
        return min(1.0, max(strength, least))
