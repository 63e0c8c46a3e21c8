"""The denoisers that are measured: published configs, and the arguments that their edit pipelines call them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

LATENT = 8
"""Pixels per side of a latent: every autoencoder here."""

PATCH = 16
"""Pixels per side of a transformer's token: 2x2 latents."""


@dataclass(frozen=True)
class Architecture:
    """One denoiser, and what one edit brings to its forward.

    cls, config:  diffusers class and its arguments as published; `tiny` are those that make it small.
    source:       whose checkpoint it is (repository/subfolder, its config.json).
    parameters:   as published, in billions.
    rows:         rows that one edit brings along the batch dimension: branches of guidance that share a forward.
    text:         text tokens per row, as the pipeline pads them or, for Qwen, about what a template, a picture and a
                  sentence come to.
    reference:    side in pixels of the reference image, where it does not follow the output's.
    """

    name: str
    cls: str
    config: Mapping[str, Any]
    tiny: Mapping[str, Any]
    source: str
    parameters: float
    rows: int
    text: int
    arguments: Callable[[Architecture, Any, int, int], dict[str, Any]]
    reference: int | None = None

    def shrunk(self) -> Architecture:
        """The same class with a tiny config, for CPU."""
        reference = None if self.reference is None else 2 * PATCH
        return replace(self, config={**self.config, **self.tiny}, text=8, reference=reference)

    def build(self, device: str, dtype: torch.dtype) -> Any:
        """The denoiser with random weights (torch's own initialisation), made where it will run, never on the way."""
        with _default_dtype(dtype), torch.device(device):
            model = getattr(diffusers, self.cls)(**self.config)
        return model.requires_grad_(False).eval()

    def inputs(self, model: Any, rows: int, side: int) -> dict[str, Any]:
        """Arguments of one forward for `rows` rows of side x side pixels, on the model's device and of its dtype."""
        with _default_dtype(model.dtype), torch.device(model.device):
            return {**self.arguments(self, model.config, rows, side), "return_dict": False}

    def tokens(self, side: int) -> int:
        """Per row: text, output and reference tokens of a transformer; a UNet's latent positions."""
        if self.cls.startswith("UNet"):
            return (side // LATENT) ** 2
        return self.text + (side // PATCH) ** 2 + ((self.reference or side) // PATCH) ** 2

    def flops(self, side: int) -> int:
        """Operations of one row's forward in matrix products, convolutions and attention: counted, not run."""
        model = self.build("meta", torch.float32)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(**self.inputs(model, 1, side))
        return int(counter.get_total_flops())


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _unet(arch: Architecture, config: Any, rows: int, side: int) -> dict[str, Any]:
    """As the pipelines for Stable Diffusion, InstructPix2Pix and SDXL call it."""
    latent = side // LATENT
    arguments: dict[str, Any] = {
        "sample": torch.randn(rows, config.in_channels, latent, latent),
        "timestep": torch.full((rows,), 500),
        "encoder_hidden_states": torch.randn(rows, arch.text, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        arguments["added_cond_kwargs"] = {
            "text_embeds": torch.randn(rows, pooled),
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * rows).to(torch.get_default_dtype()),
        }  # fmt: skip
    return arguments


def _flux(arch: Architecture, config: Any, rows: int, side: int) -> dict[str, Any]:
    """As FluxKontextPipeline calls it: output tokens, then the reference's, told apart by the first id."""
    grid = side // PATCH
    ids = torch.cat([_ids(index, grid)[:, :3] for index in (0, 1)])
    return {
        "hidden_states": torch.randn(rows, len(ids), config.in_channels),
        "encoder_hidden_states": torch.randn(rows, arch.text, config.joint_attention_dim),
        "pooled_projections": torch.randn(rows, config.pooled_projection_dim),
        "timestep": torch.full((rows,), 0.5),
        "guidance": torch.full((rows,), 2.5, dtype=torch.float32),
        "img_ids": ids.to(torch.get_default_dtype()),
        "txt_ids": torch.zeros(arch.text, 3),
    }


def _flux2(arch: Architecture, config: Any, rows: int, side: int) -> dict[str, Any]:
    """As Flux2KleinPipeline calls it: ids in four dimensions, a reference's first one being 10."""
    grid = side // PATCH
    ids = torch.cat([_ids(0, grid), _ids(10, grid)])
    text = torch.zeros(arch.text, 4, dtype=torch.long)
    text[:, 3] = torch.arange(arch.text)
    return {
        "hidden_states": torch.randn(rows, len(ids), config.in_channels),
        "encoder_hidden_states": torch.randn(rows, arch.text, config.joint_attention_dim),
        "timestep": torch.full((rows,), 0.5),
        "img_ids": ids.expand(rows, -1, -1),
        "txt_ids": text.expand(rows, -1, -1),
    }


def _qwen(arch: Architecture, config: Any, rows: int, side: int) -> dict[str, Any]:
    """As QwenImageEditPlusPipeline calls it when the texts of a batch are of one length: no mask."""
    grids = [side // PATCH, (arch.reference or side) // PATCH]
    return {
        "hidden_states": torch.randn(rows, sum(g * g for g in grids), config.in_channels),
        "encoder_hidden_states": torch.randn(rows, arch.text, config.joint_attention_dim),
        "timestep": torch.full((rows,), 0.5),
        "img_shapes": [[(1, grid, grid) for grid in grids]] * rows,
    }


def _ids(index: int, grid: int) -> Tensor:
    """Positions of an image's tokens, row by row: (grid², 4) of (image, y, x, 0), int64."""
    axis = torch.arange(grid)
    return torch.cartesian_prod(torch.tensor([index]), axis, axis, torch.tensor([0]))


_TINY_UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "sample_size": 8,
}
_TINY_FLUX = {
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
}

# Smallest first: what is cheap to measure is measured before time runs out. The configs say what differs from the
# class's defaults in diffusers 0.42.
ARCHITECTURES = (
    Architecture(
        name="instruct-pix2pix",
        cls="UNet2DConditionModel",
        config={"in_channels": 8, "cross_attention_dim": 768, "sample_size": 64},
        tiny={
            **_TINY_UNET,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        source="timbrooks/instruct-pix2pix/unet",
        parameters=0.86,
        rows=3,
        text=77,
        arguments=_unet,
    ),
    Architecture(
        name="sdxl",
        cls="UNet2DConditionModel",
        config={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        tiny={
            **_TINY_UNET,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        source="stabilityai/stable-diffusion-xl-base-1.0/unet",
        parameters=2.57,
        rows=2,
        text=77,
        arguments=_unet,
    ),
    Architecture(
        name="flux2-klein-4b",
        cls="Flux2Transformer2DModel",
        config={
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        tiny={
            **_TINY_FLUX,
            "in_channels": 8,
            "num_single_layers": 1,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        source="black-forest-labs/FLUX.2-klein-4B/transformer",
        parameters=3.88,
        rows=1,
        text=512,
        arguments=_flux2,
    ),
    Architecture(
        name="flux1-kontext",
        cls="FluxTransformer2DModel",
        config={"guidance_embeds": True},
        tiny={
            **_TINY_FLUX,
            "in_channels": 8,
            "num_single_layers": 1,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
        },
        source="black-forest-labs/FLUX.1-Kontext-dev/transformer",
        parameters=11.9,
        rows=1,
        text=512,
        arguments=_flux,
    ),
    Architecture(
        name="qwen-image-edit",
        cls="QwenImageTransformer2DModel",
        config={"zero_cond_t": True},
        tiny={**_TINY_FLUX, "in_channels": 8, "out_channels": 2, "axes_dims_rope": (4, 4, 8)},
        source="Qwen/Qwen-Image-Edit-2511/transformer",
        parameters=20.4,
        rows=1,
        text=256,
        arguments=_qwen,
        # pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE: every reference is scaled to about a megapixel.
        reference=1024,
    ),
)
