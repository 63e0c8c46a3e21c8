"""Tiny random-weight pipelines, built from configs alone and saved as the folders that real ones come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def save(name: str, folder: Path) -> Path:
    """Build the pipeline `name` (instruct, kontext or diffusion) and save it under `folder`."""
    torch.manual_seed(0)
    pipe = {"instruct": _instruct, "kontext": _kontext, "diffusion": _diffusion}[name]()
    pipe.save_pretrained(folder / name)
    return folder / name


def _clip(hidden: int) -> tuple[CLIPTextModel, CLIPTokenizer]:
    pieces = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    tokenizer = CLIPTokenizer(
        vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=24
    )
    config = CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, projection_dim=hidden, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config).eval(), tokenizer


def _t5(hidden: int) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    bpe = Tokenizer(models.BPE(vocab={"<pad>": 0, "</s>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(LETTERS)},
                               merges=[], unk_token="<unk>"))  # fmt: skip
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=24,
    )
    config = T5Config(
        vocab_size=64,
        d_model=hidden,
        d_kv=8,
        d_ff=2 * hidden,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.1,
    )
    return T5EncoderModel(config), tokenizer


def _vae(channels: int, blocks: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * blocks, norm_num_groups=4, latent_channels=channels, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1, use_quant_conv=True, use_post_quant_conv=True, shift_factor=0.1, scaling_factor=0.5,
    )  # fmt: skip


def _unet(channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def _instruct() -> Any:
    encoder, tokenizer = _clip(16)
    return StableDiffusionInstructPix2PixPipeline(
        vae=_vae(4, 3), text_encoder=encoder, tokenizer=tokenizer, unet=_unet(8),
        scheduler=EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _diffusion() -> Any:
    encoder, tokenizer = _clip(16)
    return StableDiffusionPipeline(
        vae=_vae(4, 3), text_encoder=encoder, tokenizer=tokenizer, unet=_unet(4),
        scheduler=DPMSolverMultistepScheduler(steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _kontext() -> Any:
    clip, tokenizer = _clip(16)
    t5, tokenizer_2 = _t5(16)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True,
        axes_dims_rope=(2, 4, 2),
    )  # fmt: skip
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(4, 2), text_encoder=clip, tokenizer=tokenizer,
        text_encoder_2=t5, tokenizer_2=tokenizer_2, transformer=transformer,
    )  # fmt: skip


def rewrite_index(folder: Path, **changes: Any) -> None:
    """Change entries of a saved pipeline's model_index.json."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
