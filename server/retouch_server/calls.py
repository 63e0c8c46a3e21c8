"""What a diffusers pipeline's call takes, and which of it the catalogue may say."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

# What a request says.
OURS = frozenset(
    {
        "prompt",
        "negative_prompt",
        "image",
        "image_reference",
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
# Prompts for single encoders, and embeddings, would stand in for what a request says.
_PROMPTS = ("prompt_", "negative_prompt_")
# What would change how many results there are, or nothing.
_ELSEWHERE: Mapping[str, str] = {
    "padding_mask_crop": "use the entry's mask_crop",
    "num_images_per_prompt": "a request says it, as n",
    "return_dict": "results are read by name",
    "callback_steps": "there is no callback",
}


def parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What a pipeline's call takes, by name."""
    return _parameters(type(pipe))  # type: ignore[arg-type]  # which mypy takes for unhashable


@cache  # an edit asks a dozen times
def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls.__call__).parameters


def refusal(name: str, value: bool | int | float | str, pipes: Iterable[Any]) -> str | None:
    """Why the catalogue may not say this to any of the pipelines; None: it may."""
    if name in OURS or name.startswith(_PROMPTS):
        return "a request says it"
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    taken = [parameters(pipe)[name] for pipe in pipes if name in parameters(pipe)]
    if not taken:
        return "its pipelines take no such argument here"
    if not any(_takes(parameter, value) for parameter in taken):
        return f"its pipelines take no {type(value).__name__} there"
    return None


def _takes(parameter: inspect.Parameter, value: bool | int | float | str) -> bool:
    """By its annotation: all of them have one."""
    annotation = parameter.annotation
    union = get_origin(annotation) in (Union, UnionType)
    kinds = get_args(annotation) if union else (annotation,)
    return type(value) in kinds or (type(value) is int and float in kinds)
