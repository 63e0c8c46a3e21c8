"""The authority on what a request may say: every range of the contract, and what its model can honour.

Nothing is ignored: a field that the model has no use for is refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from PIL import Image

from retouch.v1 import image_edit_pb2 as pb

from . import crop, images, prompts
from .errors import InvalidRequest, Violation
from .images import Format, InputLimits
from .models import Inputs, Model

Ranged = Literal[
    "n", "strength", "guidance_scale", "num_inference_steps", "output_compression", "partial_images"
]
MAX_IMAGES = 16
MAX_PREVIEWS = 3
RANGES: dict[Ranged, tuple[int, int]] = {
    "n": (1, 10),
    "strength": (0, 1),
    "guidance_scale": (0, 20),
    "num_inference_steps": (1, 100),
    "output_compression": (0, 100),
    "partial_images": (0, MAX_PREVIEWS),
}
MAX_PROMPT = 4000
DEFAULT_QUALITY = 90
FORMATS: dict[int, Format] = {
    pb.OUTPUT_FORMAT_UNSPECIFIED: "PNG",
    pb.OUTPUT_FORMAT_PNG: "PNG",
    pb.OUTPUT_FORMAT_JPEG: "JPEG",
    pb.OUTPUT_FORMAT_WEBP: "WEBP",
}
PB_FORMATS: dict[Format, pb.OutputFormat.ValueType] = {
    "PNG": pb.OUTPUT_FORMAT_PNG,
    "JPEG": pb.OUTPUT_FORMAT_JPEG,
    "WEBP": pb.OUTPUT_FORMAT_WEBP,
}


@dataclass(frozen=True)
class Plan:
    """A valid request with every unset field filled in from the model's defaults."""

    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float | None
    strength: float | None
    size: tuple[int, int] | None
    max_pixels: int
    format: Format
    quality: int
    previews: int


def plan(request: pb.EditRequest, model: Model, streamed: bool) -> Plan:
    """Check all but the pictures, and fill in defaults. Raises InvalidRequest with every violation at once."""
    defaults = model.defaults
    profile = model.entry.max if request.kontext_max_mode else None
    guidance = _first(
        request.guidance_scale if request.HasField("guidance_scale") else None,
        profile.guidance_scale if profile else None,
        defaults.guidance_scale if model.takes_guidance else None,
    )
    strength = request.strength if request.HasField("strength") else model.entry.defaults.strength
    if violations := [*_ranges(request, streamed), *_abilities(request, model, guidance, strength)]:
        raise InvalidRequest(violations)
    seed = request.seed if request.HasField("seed") else secrets.randbits(32)
    steps = request.num_inference_steps or (profile and profile.num_inference_steps)
    return Plan(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or None,
        seeds=tuple((seed + i) % 2**64 for i in range(request.n if request.HasField("n") else 1)),
        steps=steps or model.default_steps,
        guidance_scale=guidance,
        strength=strength,
        size=(request.size.width, request.size.height) if request.HasField("size") else None,
        max_pixels=(profile and profile.max_pixels) or model.entry.limits.max_pixels,
        format=FORMATS[request.output_format],
        quality=request.output_compression
        if request.HasField("output_compression")
        else DEFAULT_QUALITY,
        previews=request.partial_images,
    )


def pixels(request: pb.EditRequest, limits: InputLimits) -> int:
    """Pixels, by their headers, that `prepare` will hold at once: the first, the mask, the largest of the others.

    For a thread pool. Raises InvalidRequest naming the picture.
    """
    first, *others = (
        images.area(data, f"images[{i}]", limits) for i, data in enumerate(request.images)
    )
    mask = images.area(request.mask, "mask", limits) if request.mask else 0
    return first + mask + max(others, default=0)


def prepare(request: pb.EditRequest, plan: Plan, model: Model, limits: InputLimits) -> list[Inputs]:
    """Decode and fit the pictures: the inputs of each image to be made, sharing them. For a thread pool.

    Raises InvalidRequest naming the picture.
    """
    first = images.decode(request.images[0], "images[0]", limits)
    everywhere = model.family.needs_mask
    mask = images.decode_mask(request.mask, first, limits, everywhere) if request.mask else None
    allowed = model.entry.limits.model_copy(update={"max_pixels": plan.max_pixels})
    multiple, longest = model.family.multiple, model.longest_side
    size = images.output_size(first.size, plan.size, multiple, allowed, longest)
    _check_shape(size, model, "size" if plan.size else "images[0]")
    references = _references(request, model, size[0] * size[1], limits)
    picture = images.flatten(first)
    fitted = images.fit(picture, size)
    fitted_mask = images.fit_mask(mask, size) if mask else None
    region = None
    if mask and fitted_mask and (padding := model.entry.mask_crop) is not None:
        region = crop.region(fitted, fitted_mask, first.size, padding)
        if region:
            fitted, fitted_mask = region.cut(picture), region.cut(mask)
    return [
        Inputs(
            prompt=plan.prompt,
            negative_prompt=plan.negative_prompt,
            image=fitted,
            references=references,
            mask=fitted_mask,
            region=region,
            steps=plan.steps,
            guidance_scale=plan.guidance_scale,
            strength=plan.strength,
            seed=seed,
        )
        for seed in plan.seeds
    ]


def _ranges(request: pb.EditRequest, streamed: bool) -> Iterator[Violation]:
    """The contract's own rules, the same for every model."""
    if not 1 <= len(request.images) <= MAX_IMAGES:
        yield Violation("images", f"must be 1 to {MAX_IMAGES} images, not {len(request.images)}")
    if not request.prompt.strip():
        yield Violation("prompt", "must not be empty")
    for field in ("prompt", "negative_prompt"):
        if (length := len(getattr(request, field))) > MAX_PROMPT:
            yield Violation(field, f"must have at most {MAX_PROMPT} characters, not {length}")
    for field, (low, high) in RANGES.items():
        value = getattr(request, field)
        # Written so that NaN, which compares false with everything, is refused.
        if request.HasField(field) and not low <= value <= high:
            yield Violation(field, f"must be {low} to {high}, not {value:g}")
    if request.partial_images and not streamed:
        yield Violation("partial_images", "only StreamEdit sends previews")
    if request.HasField("size"):
        for side in ("width", "height"):
            if not 1 <= (value := getattr(request.size, side)) <= images.MAX_SIDE:
                yield Violation(f"size.{side}", f"must be 1 to {images.MAX_SIDE}, not {value}")
    if request.output_format not in FORMATS:
        yield Violation("output_format", "must be PNG, JPEG or WEBP")
    elif request.HasField("output_compression") and FORMATS[request.output_format] == "PNG":
        yield Violation("output_compression", "is for JPEG and WEBP; PNG is lossless")


def _abilities(
    request: pb.EditRequest, model: Model, guidance: float | None, strength: float | None
) -> Iterator[Violation]:
    """What this model can honour."""
    name = model.entry.id
    taken = model.images_taken(mask=bool(request.mask), strength=strength is not None)
    if taken < len(request.images) <= MAX_IMAGES:
        yield Violation(f"images[{taken}]", _too_many(model, taken))
    if model.family.needs_mask and not request.mask and (strength is None or strength >= 1):
        needs = "it needs one, all white to edit everywhere, or a strength below 1"
        yield Violation("mask", f"model {name} fills masks: {needs}")
    if request.mask and not model.takes_mask:
        yield Violation("mask", f"model {name} takes none")
    if request.HasField("strength") and not model.takes_strength:
        yield Violation("strength", f"model {name} takes none")
    if request.HasField("guidance_scale") and not model.takes_guidance:
        yield Violation("guidance_scale", f"model {name} takes none")
    if request.negative_prompt:
        enough = model.family.cfg_above
        switched = model.family.negative == model.family.guidance
        if not model.takes_negative_prompt:
            yield Violation("negative_prompt", f"model {name} takes none")
        elif switched and guidance is not None and guidance <= enough:
            yield Violation(
                "negative_prompt", f"has an effect only with a guidance_scale above {enough:g}"
            )
    if request.partial_images and not model.shows_previews:
        yield Violation("partial_images", f"model {name} shows none: its results are checked first")
    for field in ("prompt", "negative_prompt"):
        if fault := _fault(getattr(request, field)[:MAX_PROMPT], model):
            yield Violation(field, fault)


def _fault(prompt: str, model: Model) -> str | None:
    """What the model's pipeline would fail on."""
    name, most = model.entry.id, model.family.prompt_tokens
    if mark := prompts.reserved(prompt, model.readers):
        return f"{mark} has a meaning of its own to model {name}"
    if most and prompts.tokens(prompt, model.readers) > most:
        return f"has more than the {most} tokens that model {name} takes"
    return None


def _too_many(model: Model, taken: int) -> str:
    count = "one image" if taken == 1 else f"{taken} images"
    if taken == model.family.max_images:
        return f"model {model.entry.id} takes {count}"
    word = "with" if taken < model.family.images else "without"
    return f"model {model.entry.id} takes {count} {word} a mask or a strength"


def _references(
    request: pb.EditRequest, model: Model, area: int, limits: InputLimits
) -> tuple[Image.Image, ...]:
    """The images after the first, each scaled down to at most the output's area, its aspect kept."""
    fields = {f"images[{i}]": data for i, data in enumerate(request.images) if i}
    references = []
    for field, data in fields.items():
        image = images.flatten(images.decode(data, field, limits))
        scale = sqrt(min(1.0, area / (image.width * image.height)))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        _check_shape(size, model, field)
        references.append(image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS))
    return tuple(references)


def _check_shape(size: tuple[int, int], model: Model, field: str) -> None:
    """Hold a picture's size against what the model's pipelines refuse. Raises InvalidRequest."""
    family = model.family
    # Pipelines round down to the multiple, and would make nothing of a shorter side.
    least, aspect = max(family.least_side, family.multiple), family.aspect
    short = f"sides of {least} pixels or more" if min(size) < least else None
    thin = f"aspects up to {aspect}:1" if max(size) > aspect * min(size) else None
    if limits := short or thin:
        words = f"comes out at {size[0]}x{size[1]}; the model takes {limits}"
        raise InvalidRequest([Violation(field, words)])


def _first(*values: float | None) -> float | None:
    """The first that is set."""
    return next((value for value in values if value is not None), None)
