"""Stable Diffusion: 1.x, XL and 3."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from . import text


def vae(channels: int, blocks: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * blocks, norm_num_groups=4, latent_channels=channels, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1, use_quant_conv=True, use_post_quant_conv=True, shift_factor=0.1, scaling_factor=0.5,
    )  # fmt: skip


def _unet(channels: int, width: int = 16, **config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=width, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **config,
    )  # fmt: skip


def _one(cls: Any, channels: int, scheduler: Any) -> Any:
    encoder, tokenizer = text.clip(16)
    return cls(
        vae=vae(4, 3), text_encoder=encoder, tokenizer=tokenizer, unet=_unet(channels), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def instruct() -> Any:
    scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)
    return _one(StableDiffusionInstructPix2PixPipeline, 8, scheduler)


def diffusion() -> Any:
    return _one(StableDiffusionPipeline, 4, DPMSolverMultistepScheduler(steps_offset=1))


def inpaint() -> Any:
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    return _one(StableDiffusionInpaintPipeline, 9, scheduler)


def _xl(cls: Any, channels: int, scheduler: Any) -> Any:
    (encoder, tokenizer), (encoder_2, tokenizer_2) = text.clip(16), text.clip(16, projection=True)
    # Six time ids of 8 and the pooled text's 16.
    unet = _unet(
        channels,
        width=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return cls(
        vae=vae(4, 3), text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=encoder_2, tokenizer_2=tokenizer_2,
        unet=unet, scheduler=scheduler,
    )  # fmt: skip


def xl() -> Any:
    return _xl(StableDiffusionXLPipeline, 4, EulerDiscreteScheduler(steps_offset=1))


def xl_inpaint() -> Any:
    return _xl(StableDiffusionXLInpaintPipeline, 9, EulerDiscreteScheduler(steps_offset=1))


def xl_instruct() -> Any:
    return _xl(StableDiffusionXLInstructPix2PixPipeline, 8, EulerDiscreteScheduler(steps_offset=1))


def sd3() -> Any:
    clips = [text.clip(16, projection=True) for _ in range(2)]
    t5, tokenizer_3 = text.t5(32)
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, joint_attention_dim=32, pooled_projection_dim=32, out_channels=16,
        pos_embed_max_size=64,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(16, 3),
        text_encoder=clips[0][0], tokenizer=clips[0][1], text_encoder_2=clips[1][0], tokenizer_2=clips[1][1],
        text_encoder_3=t5, tokenizer_3=tokenizer_3,
    )  # fmt: skip
