"""Turning an edit's inputs into a call of the right diffusers pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .calls import parameters
from .catalog import Defaults, ModelEntry
from .crop import Region
from .engine.cache import is_finite
from .engine.edit import Declined, Host, Run
from .engine.forward import NotANumber
from .families import OWN_SIZE, Family
from .images import MAX_SIDE
from .prompts import Reader
from .safety import Checks

# For a pipeline whose own default is none.
FALLBACK_STEPS = 28


class Flagged(Declined):
    """The checkpoint's own safety checker refused the result."""


@dataclass(frozen=True)
class Inputs:
    """What one image is made from.

    image: RGB, at the output size. references: the further images, RGB, of any size. mask: L, at the output size,
    255 = edit. region: where these are a part of the picture, which part.
    """

    prompt: str
    image: Image.Image
    steps: int
    seed: int
    references: tuple[Image.Image, ...] = ()
    guidance_scale: float | None = None
    strength: float | None = None
    mask: Image.Image | None = None
    negative_prompt: str | None = None
    region: Region | None = None


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint: its pipelines by class name, all over the same weights; `readers` of its prompts.

    `examples` are instructions to try, `checks` the operator's of its requests and results.
    """

    entry: ModelEntry
    family: Family
    pipelines: Mapping[str, Any]
    readers: tuple[Reader, ...] = ()
    examples: tuple[str, ...] = ()
    checks: Checks = field(default_factory=Checks)
    load_seconds: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipelines[self.family.edit], self.family.denoiser)

    @property
    def modules(self) -> list[torch.nn.Module]:
        """Its components that have weights."""
        components = self.pipelines[self.family.edit].components.values()
        return [part for part in components if isinstance(part, torch.nn.Module)]

    @property
    def parameters(self) -> int:
        """Parameters of all components."""
        return sum(p.numel() for module in self.modules for p in module.parameters())

    @property
    def memory_bytes(self) -> int:
        """Bytes of its parameters and buffers."""
        return sum(
            x.nbytes for module in self.modules for x in (*module.parameters(), *module.buffers())
        )

    @property
    def takes_mask(self) -> bool:
        return self.family.masked is not None or self.entry.composite

    @property
    def takes_strength(self) -> bool:
        return self.family.strength is not None or self.entry.composite

    @property
    def takes_guidance(self) -> bool:
        """Whether guidance has an effect: distilled models ignore it, or have no input for it."""
        pipe, switch = self.pipelines[self.family.edit], self.family.switch
        taken = parameters(pipe)
        if self.family.guidance not in taken or pipe.config.get("is_distilled"):
            return False
        if switch and float(self.entry.arguments.get(switch, taken[switch].default)) < 1:
            return False
        return not self.family.embedded or bool(self.denoiser.config.get("guidance_embeds", True))

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether a negative prompt can have an effect; where guidance is its switch, with enough of that."""
        if self.family.negative == self.family.guidance:
            return self.takes_guidance
        scale = self.entry.arguments.get(self.family.negative or "")
        return isinstance(scale, int | float) and scale > self.family.cfg_above

    @property
    def has_checker(self) -> bool:
        """Whether the checkpoint has a safety checker of its own, which its pipelines ask themselves."""
        return getattr(self.pipelines[self.family.edit], "safety_checker", None) is not None

    @property
    def shows_previews(self) -> bool:
        """Not where a result may yet be refused: nobody has looked at what is unfinished."""
        return not (self.checks.after or self.has_checker)

    @property
    def longest_side(self) -> int:
        """Of an output, pixels: SD3 knows only so many positions in a row."""
        config = self.denoiser.config
        if not (positions := config.get("pos_embed_max_size")):
            return MAX_SIDE
        pixels = self.pipelines[self.family.edit].vae_scale_factor * config["patch_size"]
        return min(MAX_SIDE, int(positions * pixels))

    def images_taken(self, *, mask: bool, strength: bool) -> int:
        """Images of one edit that has these, most."""
        plain = self.pipeline_name(mask=mask, strength=strength) == self.family.edit
        return self.family.images if plain else self.family.masked_images

    @cached_property
    def defaults(self) -> Defaults:
        """What an unset field means: the catalogue's word, else the edit pipeline's own, in any range."""
        taken = parameters(self.pipelines[self.family.edit])
        names = {name: name for name in Defaults.model_fields} | {
            "guidance_scale": self.family.guidance or ""
        }
        own = {name: taken[own].default for name, own in names.items() if own in taken}
        said = self.entry.defaults.model_dump(exclude_none=True)
        return Defaults.model_construct(**(dict.fromkeys(names) | own | said))

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

        It raises Flagged, NotANumber, or whatever the pipeline raises.
        """

        name = self.pipeline_of(inputs)
        width, height = inputs.image.size

        def run(host: Host) -> Tensor:
            pipe = host.adopt(self.pipelines[name], self.family.denoiser)
            if "callback_on_step_end" not in parameters(pipe):
                vars(pipe)["progress_bar"] = partial(_progress_bar, host)
            output = pipe(**self._arguments(pipe, inputs, host))
            if any(getattr(output, "nsfw_content_detected", None) or ()):
                raise Flagged
            result: Tensor = output.images.float()
            if not is_finite(result):
                raise NotANumber
            if result.shape[-2:] != (height, width):  # one of those that choose their own size
                result = functional.interpolate(
                    result, (height, width), mode="bicubic", antialias=True
                ).clamp(0, 1)
            return result.cpu()

        return run

    def pipeline_of(self, inputs: Inputs) -> str:
        """Class of the pipeline that runs this edit."""
        return self.pipeline_name(
            mask=inputs.mask is not None, strength=inputs.strength is not None
        )

    def pipeline_name(self, *, mask: bool, strength: bool) -> str:
        """Class of the pipeline that runs an edit with these."""
        if mask and self.family.masked:
            return self.family.masked
        if strength and self.family.strength:
            return self.family.strength
        return self.family.edit

    def _arguments(self, pipe: Any, inputs: Inputs, host: Host) -> dict[str, Any]:
        """What this pipeline's call takes, of all that the inputs say; `validation` has refused what none takes."""
        taken = parameters(pipe)
        width, height = inputs.image.size
        guidance = self._guidance(inputs)
        unguided = guidance is None or guidance <= self.family.cfg_above
        known: dict[str, Any] = {
            "prompt": inputs.prompt,
            "negative_prompt": inputs.negative_prompt or (None if unguided else self.family.blank),
            "image": inputs.image,
            "mask_image": inputs.mask or Image.new("L", inputs.image.size, 255),
            "max_area": width * height,
            "_auto_resize": False,
            "strength": self._strength(pipe, inputs),
            "num_inference_steps": inputs.steps,
            # On the CPU: the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(inputs.seed),
            "output_type": "pt",
            "callback_on_step_end": _callback(host),
        }
        if self.family.guidance:
            known[self.family.guidance] = guidance
        if inputs.references and "image_reference" in taken:
            known["image_reference"] = inputs.references[0]
        elif inputs.references:
            known["image"] = [inputs.image, *inputs.references]
        if type(pipe).__name__ not in OWN_SIZE:
            known |= {"width": width, "height": height}
        given = self.entry.arguments | {k: v for k, v in known.items() if v is not None}
        return {k: v for k, v in given.items() if k in taken}

    def _guidance(self, inputs: Inputs) -> float | None:
        """A model that takes none is told so: pipelines warn of the one that they ignore, or heed it after all."""
        if not self.takes_guidance:
            return 1.0
        own = self.defaults.guidance_scale
        return own if inputs.guidance_scale is None else inputs.guidance_scale

    def _strength(self, pipe: Any, inputs: Inputs) -> float | None:
        """At least one denoising step, with the pipeline's own strength too: pipelines fail on none.

        UNet ones round steps x strength down, others up.
        """
        own = parameters(pipe).get("strength")
        strength = own.default if own and inputs.strength is None else inputs.strength
        if strength is None:
            return None
        least = (1 + 1e-6) / inputs.steps if self.family.denoiser == "unet" else 1e-6
        return min(1.0, max(strength, least))


def _callback(host: Host) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
    """What a pipeline calls after each step."""

    def on_step_end(
        pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        host.on_step(index + 1, pipe.num_timesteps)
        return tensors

    return on_step_end


class _Progress:
    """Counts the steps of a pipeline that has no callback: stands in for its progress bar."""

    def __init__(self, host: Host, total: int) -> None:
        self._host, self._total, self._done = host, total, 0

    def update(self) -> None:
        self._done += 1
        self._host.on_step(self._done, self._total)


@contextmanager
def _progress_bar(host: Host, total: int) -> Iterator[_Progress]:
    yield _Progress(host, total)
