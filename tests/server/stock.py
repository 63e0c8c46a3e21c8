"""The same edits through diffusers alone: loaded and called as its documentation says, with nothing of ours between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from retouch_server.models import Inputs
from tests.server.conftest import Folder


@dataclass(frozen=True)
class Stock:
    """How a tiny checkpoint is used: pipelines for a plain edit, one with a strength, one with a mask.

    rows: of a lone edit's denoiser call. images: of a plain edit. reference: whether the masked pipeline takes one.
    guidance: the call's name for it, None if it takes none. negative: whether it takes a negative prompt.
    """

    edit: str
    strength: str | None = None
    masked: str | None = None
    rows: int = 1
    images: int = 1
    reference: bool = False
    guidance: str | None = "guidance_scale"
    negative: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _noised(stem: str, **more: Any) -> Stock:
    image = f"{stem}Img2ImgPipeline"
    return Stock(image, image, f"{stem}InpaintPipeline", **more)


def _filled(name: str, **more: Any) -> Stock:
    return Stock(name, name, name, **more)


CFG: dict[str, Any] = {"rows": 2, "negative": True}
QWEN: dict[str, Any] = {"guidance": "true_cfg_scale", "negative": True}
TRUE_CFG: dict[str, Any] = {"negative": True, "arguments": {"true_cfg_scale": 3.0}}
SHORT = {"max_sequence_length": 64}
KLEIN: dict[str, Any] = {"images": 3, "reference": True, "arguments": SHORT}

STOCK: Mapping[str, Stock] = {
    "instruct": Stock("StableDiffusionInstructPix2PixPipeline", rows=3, negative=True),
    "diffusion": _noised("StableDiffusion", **CFG),
    "inpaint": _filled("StableDiffusionInpaintPipeline", **CFG),
    "xl": _noised("StableDiffusionXL", **CFG),
    "xl-inpaint": _filled("StableDiffusionXLInpaintPipeline", **CFG),
    "xl-instruct": Stock("StableDiffusionXLInstructPix2PixPipeline", rows=3, negative=True),
    "sd3": _noised("StableDiffusion3", **CFG),
    "kontext": Stock(
        "FluxKontextPipeline",
        "FluxKontextInpaintPipeline",
        "FluxKontextInpaintPipeline",
        reference=True,
        **TRUE_CFG,
    ),
    "flux": _noised("Flux", **TRUE_CFG),
    "fill": _filled("FluxFillPipeline"),
    "chroma": Stock(
        "ChromaImg2ImgPipeline", "ChromaImg2ImgPipeline", negative=True, arguments=SHORT
    ),
    "klein": Stock(
        "Flux2KleinPipeline", "Flux2KleinInpaintPipeline", "Flux2KleinInpaintPipeline", **KLEIN
    ),
    "klein-distilled": Stock(
        "Flux2KleinPipeline",
        "Flux2KleinInpaintPipeline",
        "Flux2KleinInpaintPipeline",
        guidance=None,
        **KLEIN,
    ),
    "klein-kv": Stock("Flux2KleinKVPipeline", images=3, guidance=None, arguments=SHORT),
    "flux2": Stock("Flux2Pipeline", images=3),  # its system message alone is some hundred tokens
    "qwen": _noised("QwenImage", **QWEN),
    "qwen-edit": Stock(
        "QwenImageEditPipeline",
        "QwenImageEditInpaintPipeline",
        "QwenImageEditInpaintPipeline",
        **QWEN,
    ),
    "qwen-plus": Stock("QwenImageEditPlusPipeline", images=3, **QWEN),
    "longcat": Stock("LongCatImageEditPipeline", negative=True),
    "z-image": _noised("ZImage", **CFG),
    "z-omni": Stock("ZImageOmniPipeline", images=3, **CFG),
}

# Their output is as large as the image, or as they like.
UNSIZED = {
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "QwenImageEditInpaintPipeline",
    "LongCatImageEditPipeline",
}


def plain(name: str, inputs: Inputs, folder: Folder) -> Tensor:
    """One edit (1x3xHxW, 0..1) by the stock pipeline for it."""
    stock = STOCK[name]
    pipeline = _pipeline_name(stock, inputs)
    call: dict[str, Any] = {
        "prompt": inputs.prompt,
        "image": [inputs.image, *inputs.references] if inputs.references else inputs.image,
        "num_inference_steps": inputs.steps,
        "generator": torch.Generator("cpu").manual_seed(inputs.seed),
        "output_type": "pt",
        **stock.arguments,
    }
    if stock.guidance:
        call[stock.guidance] = inputs.guidance_scale
    if inputs.negative_prompt:
        call["negative_prompt"] = inputs.negative_prompt
    elif stock.guidance == "true_cfg_scale" and (inputs.guidance_scale or 0) > 1:
        call["negative_prompt"] = " "  # as the model's card has it
    if inputs.strength is not None:
        call["strength"] = inputs.strength
    width, height = inputs.image.size
    if pipeline not in UNSIZED:
        call |= {"width": width, "height": height}
    if "Kontext" in pipeline:
        call |= {"max_area": width * height, "_auto_resize": False}
    if "Inpaint" in pipeline or "Fill" in pipeline:
        call["mask_image"] = inputs.mask or Image.new("L", inputs.image.size, 255)
        if inputs.references:
            call |= {"image": inputs.image, "image_reference": inputs.references[0]}
    pipe = _load(pipeline, folder(name))
    with torch.inference_mode():
        result: Tensor = pipe(**call).images
    return result


def _pipeline_name(stock: Stock, inputs: Inputs) -> str:
    name = stock.masked if inputs.mask else stock.strength if inputs.strength else stock.edit
    assert name
    return name


@cache
def _load(name: str, folder: Path) -> Any:
    """The checkpoint as diffusers loads it with that class, dropout off."""
    pipe = getattr(diffusers, name).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    if name == "ZImageOmniPipeline":  # casts to bfloat16 what it encodes, whatever the VAE is of
        encode = pipe.vae.encode
        pipe.vae.encode = lambda pixels: encode(pixels.float())
    return pipe
