"""What must be known of a pipeline family: one row in `FAMILIES` for each pipeline that a checkpoint may name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

TRUE_CFG = "true_cfg_scale"


@dataclass(frozen=True)
class Family:
    """Pipelines that share one checkpoint's weights, and what they take.

    edit, masked, strength: diffusers class names for a plain edit, one with a mask, one with a strength; None where
        diffusers has none.
    needs_mask: without one, and at a strength of 1, the image would not matter.
    denoiser: the component that the engine batches.
    multiple: output sides are multiples of it, pixels.
    images, masked_images: images of one plain edit, and of one by the other two pipelines, most.
    guidance: the argument of the pipelines that a request's guidance_scale is; None: they have none.
    embedded: guidance is an input of the denoiser, and ignored where it has no such input.
    negative: the argument that must be above `cfg_above` for a negative prompt to act; None: it takes none. Where it
        is not `guidance`, the catalogue sets it.
    blank: the negative prompt of a request without one; guidance acts only against some.
    switch: an argument of the catalogue's without which guidance does not act: below 1, it is off. None: there is none.
    prompt_tokens: of a prompt, most, where the pipeline fails on more; None: it cuts off what is too much.
    least_side, aspect: what the pipelines refuse: shorter sides in pixels, and longer to shorter side above it.
    """

    edit: str
    denoiser: str
    multiple: int
    masked: str | None = None
    strength: str | None = None
    needs_mask: bool = False
    images: int = 1
    masked_images: int = 1
    guidance: str | None = "guidance_scale"
    embedded: bool = False
    negative: str | None = None
    cfg_above: float = 1.0
    blank: str | None = None
    switch: str | None = None
    prompt_tokens: int | None = None
    least_side: int = 1
    aspect: int = 8192

    @property
    def max_images(self) -> int:
        """Images of any edit, most."""
        return max(self.images, self.masked_images if self.masked or self.strength else 1)


def _filling(edit: str, denoiser: str, multiple: int, negative: str | None = None) -> Family:
    """A checkpoint that knows only how to fill a mask: with a strength alone, all of the image is masked."""
    return Family(
        edit,
        denoiser,
        multiple,
        masked=edit,
        strength=edit,
        needs_mask=True,
        negative=negative,
    )


def _instructed(edit: str) -> Family:
    return Family(edit, "unet", 8, negative="guidance_scale", switch="image_guidance_scale")


def _from_noise(stem: str, denoiser: str, multiple: int) -> Family:
    """A text-to-image checkpoint, which edits by noising the image and denoising it to another prompt."""
    image, inpaint = f"{stem}Img2ImgPipeline", f"{stem}InpaintPipeline"
    return Family(image, denoiser, multiple, masked=inpaint, strength=image)


_SD = replace(_from_noise("StableDiffusion", "unet", 8), negative="guidance_scale")
_SDXL = replace(_from_noise("StableDiffusionXL", "unet", 8), negative="guidance_scale")
_SD3 = replace(_from_noise("StableDiffusion3", "transformer", 16), negative="guidance_scale")
_FLUX = replace(_from_noise("Flux", "transformer", 16), embedded=True, negative=TRUE_CFG)
# Without its masked pipeline: diffusers 0.42's reads guidance_embeds, which no Chroma transformer has, and fails.
_CHROMA = Family(
    "ChromaImg2ImgPipeline",
    "transformer",
    16,
    strength="ChromaImg2ImgPipeline",
    negative="guidance_scale",
)
_QWEN = replace(
    _from_noise("QwenImage", "transformer", 16), guidance=TRUE_CFG, negative=TRUE_CFG, blank=" "
)
_Z_IMAGE = replace(
    _from_noise("ZImage", "transformer", 16), negative="guidance_scale", cfg_above=0.0
)
# Qwen2-VL's image processor takes aspects up to 200:1, of what QwenImageEdit makes of them: a megapixel, sides rounded
# to 32. Of the model's 4096 positions, a picture's size takes up to 405, and its encoding up to 1675.
_QWEN_EDIT = replace(
    _QWEN,
    edit="QwenImageEditPipeline",
    masked="QwenImageEditInpaintPipeline",
    strength="QwenImageEditInpaintPipeline",
    prompt_tokens=2000,
    aspect=160,
)
# Klein's and Flux2's limits: flux2/image_processor.py, check_image_input.
_KLEIN = Family(
    "Flux2KleinPipeline",
    "transformer",
    16,
    masked="Flux2KleinInpaintPipeline",
    strength="Flux2KleinInpaintPipeline",
    images=4,
    masked_images=2,
    least_side=64,
    aspect=8,
)

# By the pipeline in a checkpoint's model_index.json.
FAMILIES: Mapping[str, Family] = {
    "StableDiffusionInstructPix2PixPipeline": _instructed("StableDiffusionInstructPix2PixPipeline"),
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _filling(
        "StableDiffusionInpaintPipeline", "unet", 8, negative="guidance_scale"
    ),
    "StableDiffusionXLInstructPix2PixPipeline": _instructed(
        "StableDiffusionXLInstructPix2PixPipeline"
    ),
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _filling(
        "StableDiffusionXLInpaintPipeline", "unet", 8, negative="guidance_scale"
    ),
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "FluxKontextPipeline": Family(
        "FluxKontextPipeline",
        "transformer",
        16,
        masked="FluxKontextInpaintPipeline",
        strength="FluxKontextInpaintPipeline",
        masked_images=2,
        embedded=True,
        negative=TRUE_CFG,
    ),
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxFillPipeline": replace(_filling("FluxFillPipeline", "transformer", 16), embedded=True),
    "ChromaPipeline": _CHROMA,
    "ChromaImg2ImgPipeline": _CHROMA,
    "Flux2KleinPipeline": _KLEIN,
    "Flux2KleinInpaintPipeline": _KLEIN,
    "Flux2KleinKVPipeline": replace(
        _KLEIN, edit="Flux2KleinKVPipeline", masked=None, strength=None, guidance=None
    ),
    "Flux2Pipeline": replace(
        _KLEIN, edit="Flux2Pipeline", masked=None, strength=None, images=10, embedded=True
    ),
    "QwenImageEditPipeline": _QWEN_EDIT,
    "QwenImageEditInpaintPipeline": _QWEN_EDIT,
    "QwenImageEditPlusPipeline": replace(
        _QWEN_EDIT,
        edit="QwenImageEditPlusPipeline",
        masked=None,
        strength=None,
        images=3,
        aspect=200,
    ),
    "QwenImagePipeline": _QWEN,
    "QwenImageImg2ImgPipeline": _QWEN,
    "QwenImageInpaintPipeline": _QWEN,
    "LongCatImageEditPipeline": Family(
        "LongCatImageEditPipeline",
        "transformer",
        16,
        negative="guidance_scale",
        prompt_tokens=512,
        aspect=200,
    ),
    "ZImagePipeline": _Z_IMAGE,
    "ZImageImg2ImgPipeline": _Z_IMAGE,
    "ZImageInpaintPipeline": _Z_IMAGE,
    "ZImageOmniPipeline": replace(
        _Z_IMAGE,
        edit="ZImageOmniPipeline",
        masked=None,
        strength=None,
        images=3,
        least_side=64,
        aspect=8,
    ),
}

# Pipelines that edit at a size of their own choosing, about a megapixel at the image's aspect, and fail at any other;
# the result is scaled to the output's size.
OWN_SIZE = frozenset({"QwenImageEditInpaintPipeline"})
