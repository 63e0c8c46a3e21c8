"""Qwen-Image, LongCat-Image and Z-Image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImageOmniPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from transformers import (
    BatchFeature,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from . import stable, text
from .weights import enlivened


class Processor(ProcessorMixin):  # type: ignore[misc]
    """What the pipelines ask of Qwen2VLProcessor, which cannot even be imported whole without torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(self, text: list[str], images: Any, **options: Any) -> BatchFeature:
        pictures = self.image_processor(images=images, return_tensors="pt")
        merged = self.image_processor.merge_size**2
        for grid in pictures["image_grid_thw"]:
            pads = "<|picture|>" * (int(grid.prod()) // merged)
            text = [words.replace("<|image_pad|>", pads, 1) for words in text]
        text = [words.replace("<|picture|>", "<|image_pad|>") for words in text]
        return BatchFeature({**self.tokenizer(text, **options), **pictures})


if not transformers.utils.is_torchvision_available():
    # The real loader takes the class by this name.
    transformers.Qwen2VLProcessor = Processor


def _small(calculate: Callable[[float, float], Any], area: float, ratio: float) -> Any:
    return calculate(AREA, ratio)


# What the pipelines edit they scale to a megapixel first, whatever the model's size.
AREA = 64 * 64
for module in (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_longcat_image_edit,
):
    module.calculate_dimensions = partial(_small, module.calculate_dimensions)
pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE = AREA
pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE = AREA // 4


def _components(zero_cond_t: bool = False) -> dict[str, Any]:
    tokenizer = text.qwen_tokenizer()
    marks = {
        mark: tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        for mark in ("image_pad", "vision_start", "vision_end")
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
            "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1],
        },
        image_token_id=marks["image_pad"], vision_start_token_id=marks["vision_start"],
        vision_end_token_id=marks["vision_end"],
    )  # fmt: skip
    channels = 4
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=channels, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1] * channels, latents_std=[1.5] * channels,
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=4 * channels, out_channels=channels, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
        zero_cond_t=zero_cond_t,
    )  # fmt: skip
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(), "vae": vae, "transformer": enlivened(transformer),
        "tokenizer": tokenizer, "text_encoder": Qwen2_5_VLForConditionalGeneration(config).eval(),
    }  # fmt: skip


def _processor(tokenizer: Qwen2Tokenizer) -> Processor:
    pictures = Qwen2VLImageProcessorPil(
        patch_size=8, temporal_patch_size=2, merge_size=2, min_pixels=256, max_pixels=1024
    )
    return Processor(pictures, tokenizer)


def image() -> Any:
    return QwenImagePipeline(**_components())


def edit() -> Any:
    parts = _components()
    return QwenImageEditPipeline(**parts, processor=_processor(parts["tokenizer"]))


def plus() -> Any:
    parts = _components(zero_cond_t=True)  # as in 2511
    return QwenImageEditPlusPipeline(**parts, processor=_processor(parts["tokenizer"]))


def longcat() -> Any:
    parts = _components()
    transformer = LongCatImageTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    return LongCatImageEditPipeline(
        **parts | {"vae": stable.vae(16, 3), "transformer": enlivened(transformer)},
        text_processor=_processor(parts["tokenizer"]),
    )


def _z_image(cls: Any, parts: dict[str, Any], siglip_width: int | None = None) -> Any:
    encoder, tokenizer = text.qwen3(16, layers=2)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[1024, 32, 32], siglip_feat_dim=siglip_width,
    )  # fmt: skip
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=stable.vae(4, 3), text_encoder=encoder, tokenizer=tokenizer,
        transformer=transformer, **parts,
    )  # fmt: skip


def z_image() -> Any:
    return _z_image(ZImagePipeline, {})


def z_omni() -> Any:
    config = Siglip2VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=8,
        num_patches=16,
    )
    parts = {
        "siglip": Siglip2VisionModel(config),
        "siglip_processor": Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    }
    return _z_image(ZImageOmniPipeline, parts, siglip_width=16)
