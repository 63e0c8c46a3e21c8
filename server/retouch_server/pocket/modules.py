"""The two classes of `pocket` that diffusers lacks: a VAE without parameters, a UNet that edits.

Images are RGB in [-1, 1]; latents are the same numbers, unshuffled: [B, 12, H/2, W/2].
"""

import functools
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from retouch_server.pocket.edits import gaussian

__all__ = ["ModelMixin", "PixelSpace", "PocketUNet"]

EXTRA_INPUTS = 5 + 3 + 3  # position, and the colours of the smooth and of the blocky copy
MIX_CHANNELS = 3 * 9
BLOCK = 4  # latent cells (8 pixels) per block of the "pixelate" edit


class PixelSpace(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Stands where a pipeline expects a VAE: 2x2 pixels of RGB <-> 12 channels, exact both ways."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 12,
        block_out_channels: tuple[int, ...] = (12, 12),  # two entries: pipelines derive the scale 2
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        # Something for `.dtype` and `.device` to follow, and for the safetensors file to hold.
        self.register_buffer("unit", torch.ones(1))

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """[B, 3, H, W] in [-1, 1], H and W even -> an object with `latents` [B, 12, H/2, W/2]."""
        latents = functional.pixel_unshuffle(x, 2)
        return SimpleNamespace(latents=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """[B, 12, h, w] -> an object with `sample` [B, 3, 2h, 2w], or a tuple of it."""
        sample = functional.pixel_shuffle(z, 2)
        return SimpleNamespace(sample=sample) if return_dict else (sample,)


class PocketUNet(UNet2DConditionModel):  # type: ignore[misc]
    """A stock conditional UNet that also sees where a pixel is, and mixes the colours it is given.

    Position lets convolutions draw gradients and vignettes at any size. The second half of the
    channels of `sample` is the image to edit. Per cell of 2x2 pixels the network gives 3x3 colour
    matrices for it, for a smooth and for a blocky copy of it, and what to add: in these, most edits
    are nearly constant, and a network of this size keeps every detail.
    """

    # `wraps` keeps the signatures: configs are read by one, and batching binds calls to the other.
    @functools.wraps(UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config, width = self.config, self.config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels + EXTRA_INPUTS, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, config.out_channels + MIX_CHANNELS, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)  # begin by leaving the picture as it is

    @functools.wraps(UNet2DConditionModel.forward)
    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """sample [B, 24, h, w]: noisy latents, then image latents -> [B, 12, h, w]: clean latents."""
        image = sample[:, self.config.out_channels :]
        copies = [image, smooth(image), blocky(image)]
        position = positions(sample).expand(len(sample), -1, -1, -1)
        inputs = [sample, position, *(_pixels(copy).mean(2) for copy in copies[1:])]
        output = super().forward(torch.cat(inputs, dim=1), *args, **kwargs)
        if isinstance(output, tuple):
            return (mix(copies, output[0]), *output[1:])
        output.sample = mix(copies, output.sample)
        return output


def _pixels(latents: Tensor) -> Tensor:
    """[B, 12, h, w] -> [B, 3, 4, h, w]: the colours of each of the four pixels of a cell."""
    return latents.reshape(len(latents), 3, -1, *latents.shape[-2:])


def mix(copies: list[Tensor], output: Tensor) -> Tensor:
    """Three copies [B, 12, h, w], output [B, 12 + 27, h, w] -> the first + matrices copies + offset."""
    image = copies[0]
    offset, matrices = output[:, : image.shape[1]], output[:, image.shape[1] :]
    matrices = matrices.reshape(len(image), len(copies), 3, 3, *image.shape[-2:])
    colors = torch.stack([_pixels(copy) for copy in copies], dim=1)
    mixed: Tensor = torch.einsum("bcijhw,bcjphw->biphw", matrices, colors)
    return image + mixed.reshape(image.shape) + offset


# torch 2.13 fails to compile it: https://github.com/pytorch/pytorch/issues/187337
@torch.compiler.disable  # type: ignore[untyped-decorator]
def smooth(latents: Tensor) -> Tensor:
    """[B, 12, h, w] blurred, with a Gaussian of 3 pixels."""
    return functional.pixel_unshuffle(gaussian(functional.pixel_shuffle(latents, 2), 3.0), 2)


def blocky(latents: Tensor) -> Tensor:
    """[B, 12, h, w], every block of 4x4 cells (8x8 pixels) in its mean colour."""
    height, width = latents.shape[-2:]
    colors = _pixels(latents).mean(2)
    blocks = functional.avg_pool2d(colors, BLOCK, ceil_mode=True, count_include_pad=False)
    blocks = blocks.repeat_interleave(BLOCK, dim=-2).repeat_interleave(BLOCK, dim=-1)
    return blocks[..., :height, :width].repeat_interleave(latents.shape[1] // 3, dim=1)


def positions(like: Tensor) -> Tensor:
    """[B, C, h, w] -> [1, 5, h, w]: x, y in [-1, 1], their squared radius, x, y within a block."""
    height, width = like.shape[-2:]
    rows = torch.arange(height, device=like.device)
    columns = torch.arange(width, device=like.device)
    y = ((2 * rows + 1) / height - 1).to(like.dtype)[:, None].expand(height, width)
    x = ((2 * columns + 1) / width - 1).to(like.dtype)[None, :].expand(height, width)
    half = (BLOCK - 1) / 2
    inner_y = ((rows % BLOCK) / half - 1).to(like.dtype)[:, None].expand(height, width)
    inner_x = ((columns % BLOCK) / half - 1).to(like.dtype)[None, :].expand(height, width)
    return torch.stack([x, y, x * x + y * y, inner_x, inner_y])[None]
