"""FLUX.1, Chroma and FLUX.2."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from . import stable, text
from .weights import enlivened


def _flux(cls: Any, channels: int = 16) -> Any:
    clip, tokenizer = text.clip(16)
    t5, tokenizer_2 = text.t5(16)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=channels, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True,
        axes_dims_rope=(2, 4, 2),
    )  # fmt: skip
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=stable.vae(4, 2), text_encoder=clip, tokenizer=tokenizer,
        text_encoder_2=t5, tokenizer_2=tokenizer_2, transformer=transformer,
    )  # fmt: skip


def kontext() -> Any:
    return _flux(FluxKontextPipeline)


def dev() -> Any:
    return _flux(FluxPipeline)


def fill() -> Any:
    # Packed: 16 of latents, 16 of the masked image, 2x2 of latents' 2x2 pixels of mask.
    return _flux(FluxFillPipeline, channels=16 + 16 + 16)


def chroma() -> Any:
    t5, tokenizer = text.t5(16)
    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(2, 4, 2), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=stable.vae(4, 2), text_encoder=t5, tokenizer=tokenizer,
        transformer=transformer,
    )  # fmt: skip


def _vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        sample_size=32, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8,) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip


def _transformer(width: int, guidance: bool) -> Any:
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=width, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    )  # fmt: skip
    return enlivened(transformer)


def _klein(cls: Any, distilled: bool) -> Any:
    # The pipeline reads layers 9, 18 and 27.
    encoder, tokenizer = text.qwen3(16, layers=27)
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(), text_encoder=encoder, tokenizer=tokenizer,
        transformer=_transformer(3 * 16, guidance=False), is_distilled=distilled,
    )  # fmt: skip


def klein() -> Any:
    return _klein(Flux2KleinPipeline, distilled=False)


def klein_distilled() -> Any:
    return _klein(Flux2KleinPipeline, distilled=True)


def klein_kv() -> Any:
    return _klein(Flux2KleinKVPipeline, distilled=True)


def flux2() -> Any:
    # The pipeline asks no more of its PixtralProcessor, which needs torchvision, than a tokenizer does.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text.qwen_tokenizer().backend_tokenizer, pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}{% for part in message['content'] %}{{ part['text'] }}"
        "{% endfor %}{% endfor %}"
    )
    config = Mistral3Config(
        # The pipeline reads layers 10, 20 and 30.
        text_config={
            "model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 30, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "max_position_embeddings": 1024, "sliding_window": None,
        },
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "image_size": 32, "patch_size": 8,
        },
    )  # fmt: skip
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(),
        text_encoder=Mistral3ForConditionalGeneration(config).eval(), tokenizer=tokenizer,
        transformer=_transformer(3 * 16, guidance=True),
    )  # fmt: skip
