"""The two classes of `pocket` that diffusers lacks: a VAE without parameters, a UNet that edits.

Images are RGB in [-1, 1]; latents are the same numbers, unshuffled: [B, 12, H/2, W/2].
"""

import functools
from math import pi
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from retouch_server.pocket import edits, filters
from retouch_server.pocket.edits import NAMES, RIVALS, STRONGLY
from retouch_server.pocket.filters import Frame, Weather

__all__ = ["ModelMixin", "PixelSpace", "PocketUNet"]

COPIES = 5  # fine, smooth, blocky, tones, lines
MIX = COPIES + 9 + 9  # shares of the copies, then matrices for the colours and for their squares
OVER = 5  # shares of near flakes, far flakes, streaks of rain, white border, grain
# The rest, the first guess, where, two copies, flakes and rain, clouds.
INPUTS = 2 * 12 + 4 + 2 * 3 + 3 * 4 + 1
STEPS = 100  # of the noise schedule
EARLIEST, LATEST = 750, 999  # the part of a common schedule of 1,000 steps that is used
_FALLING = [NAMES.index(name) for name in ("snow", "snow", "rain", "border", "grain")]
_ROWS = [[NAMES.index(name) for name in row] for row in RIVALS]
_IN_ROWS = [i for row in _ROWS for i in row]
_PLACES = [_IN_ROWS.index(i) for i in range(len(NAMES))]  # where among the rows each edit is


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


class Instruction(nn.Module):
    """Reads from the encoded text how much of each edit it asks for.

    Each edit has its own query, which looks for its words and for their degree.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(NAMES), width) * 0.3)
        self.keys, self.values = nn.Linear(width, width), nn.Linear(width, width)
        self.heads = nn.Parameter(torch.randn(len(NAMES), width, 2) * width**-0.5)
        self.bias = nn.Parameter(torch.tensor([-2.0, 0.0]).repeat(len(NAMES), 1))

    def read(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, D] -> logits that an edit is asked for, and its amounts, 0..1.6; [B, edits] each."""
        scores = self.queries @ self.keys(hidden).transpose(1, 2) * hidden.shape[-1] ** -0.5
        found = scores.softmax(-1) @ self.values(hidden)
        out = torch.einsum("bed,edk->bek", found, self.heads) + self.bias
        return out[..., 0], 1.6 * out[..., 1].sigmoid()

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, D] -> amounts [B, edits], 0 for what is not asked for; of rivals the likeliest alone."""
        logits, amounts = self.read(hidden)
        rivals = [logits[:, row].amax(1, keepdim=True).expand(-1, len(row)) for row in _ROWS]
        best = torch.cat(rivals, 1)[:, _PLACES]
        asked = (logits > 0) & (logits >= best)
        return torch.where(asked, amounts.clamp(max=STRONGLY), torch.zeros_like(amounts))


class Near(nn.Module):
    """What can be told of a cell from its own surroundings, for these amounts at this step: flakes, borders, tones.

    Two layers, steered by what is asked for. No norms: a flake must not pale because there are many.
    """

    WIDTH = 64
    WAVES = 3

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.steer = nn.Sequential(
            nn.Linear(len(NAMES) + 2 * self.WAVES, 128), nn.SiLU(), nn.Linear(128, 4 * self.WIDTH)
        )
        self.first = nn.Conv2d(channels, self.WIDTH, 3, padding=1)
        self.second = nn.Conv2d(self.WIDTH, self.WIDTH, 1)
        self.last = nn.Conv2d(self.WIDTH, out, 1)

    def forward(self, inputs: Tensor, amounts: Tensor, timestep: Tensor) -> Tensor:
        """[B, C, h, w], amounts [B, edits], timestep [B] -> [B, out, h, w]."""
        time = timestep.to(inputs.dtype)[:, None] / 1000
        waves = torch.arange(1, self.WAVES + 1, device=time.device, dtype=time.dtype)
        turns = time * waves * (pi / 2)
        steer = self.steer(torch.cat([amounts, turns.sin(), turns.cos()], 1))
        scale, shift, again, further = steer[:, :, None, None].chunk(4, 1)
        hidden = functional.silu(self.first(inputs) * (1 + scale) + shift)
        hidden = functional.silu(self.second(hidden) * (1 + again) + further)
        out: Tensor = self.last(hidden)
        return out


class PocketUNet(UNet2DConditionModel):  # type: ignore[misc]
    """A stock conditional UNet between two small parts: what reads the text, and what mixes the picture.

    The text becomes amounts of the edits that it knows; where all are 0 the picture is left as it is. From these
    alone comes a first guess: for all of the picture the same shares of five filtered copies, and the same mixing of
    colours and their squares. What the noisy sample has beyond the guess is the noise, and what falls out of it:
    flakes, rain, grain. From both the UNet and a shallow part say, per cell of 2x2 pixels, what to mix otherwise and
    what to add. In these, most edits are nearly constant, and a network of this size keeps every detail.
    """

    # `wraps` keeps the signatures: configs are read by one, and batching binds calls to the other.
    @functools.wraps(UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width, outputs = self.config.block_out_channels[0], MIX + OVER + self.config.out_channels
        self.instruction = Instruction(self.config.cross_attention_dim)
        self.add_embedding = _Amounts(4 * width)
        self.everywhere = nn.Sequential(
            nn.Linear(len(NAMES), 128), nn.SiLU(), nn.Linear(128, MIX + OVER + 3)
        )
        self.near = Near(INPUTS, outputs)
        self.conv_in = nn.Conv2d(INPUTS, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, outputs, 3, padding=1)
        self.register_buffer("signal", build_scheduler().alphas_cumprod, persistent=False)
        for last in (self.conv_out, self.near.last, self.everywhere[-1]):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)  # begin by leaving the picture as it is

    @functools.wraps(UNet2DConditionModel.forward)
    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """sample [B, 24, h, w]: noisy latents, then image latents -> [B, 12, h, w]: clean latents."""
        amounts = self.instruction(encoder_hidden_states)
        height, width = sample.shape[-2:]
        edited = self.edited(sample, timestep, amounts, Frame(2 * height, 2 * width))
        return SimpleNamespace(sample=edited) if kwargs.get("return_dict", True) else (edited,)

    def edited(self, sample: Tensor, timestep: Any, amounts: Tensor, frame: Frame) -> Tensor:
        """The same with amounts [B, edits] in place of text, and for a window of a larger picture."""
        noisy, image = (functional.pixel_shuffle(x, 2) for x in sample.chunk(2, 1))
        image = turned(image, amounts)
        asked = (amounts.amax(1) > 0).to(sample.dtype)[:, None, None, None]
        copies = filtered(image, frame)

        everywhere = self.everywhere(amounts)[:, :, None, None]
        mixing, shares, add = everywhere.split([MIX, OVER, 3], 1)
        guess = image + asked * (mixed(image, copies, mixing) + add)

        time = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        signal = self.signal[time.long()][:, None, None, None]
        clean, noise = (x.sqrt().to(sample.dtype) for x in (signal, 1 - signal))
        time = EARLIEST + time * ((LATEST - EARLIEST) / (STEPS - 1))
        rest = noisy - clean * guess
        falling, clouds = fallen(rest / noise.clamp(min=0.02), amounts, frame)

        inputs = torch.cat(
            [
                functional.pixel_unshuffle(torch.cat([rest, guess, falling[:, :3]], 1), 2),
                functional.avg_pool2d(torch.cat([copies[:, 1], copies[:, 2], clouds], 1), 2),
                functional.avg_pool2d(where(image, frame), 2),
            ],
            1,
        )
        output = super().forward(inputs, time, amounts[:, None], return_dict=False)[0]
        output = output + self.near(inputs, amounts, time)
        mixing, local, offset = output.split([MIX, OVER, self.config.out_channels], 1)
        shares = shares + functional.interpolate(local, scale_factor=2, mode="nearest")
        # Nothing falls that was not asked for.
        wanted = (amounts[:, _FALLING] > 0)[:, :, None, None]
        *white, grain = (falling * shares * wanted).split(1, 1)
        edited = guess + asked * (
            mixed(image, copies, mixing)
            + functional.pixel_shuffle(offset, 2)
            + sum(white) * (1 - guess)
            + grain
        )
        edited = torch.where((time == EARLIEST)[:, None, None, None], noisy, edited)  # it is done
        return functional.pixel_unshuffle(edited, 2)


class _Amounts(nn.Module):
    """[B, 1, edits] -> [B, D], added to the embedding of the timestep; diffusers gives it the text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(len(NAMES), width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, amounts: Tensor) -> Tensor:
        embedding: Tensor = self.layers(amounts[:, 0])
        return embedding


def turned(x: Tensor, amounts: Tensor) -> Tensor:
    """[B, 3, H, W] mirrored and turned over where that is asked for: no convolution could."""
    for name, dim in (("mirror", -1), ("upside_down", -2)):
        asked = amounts[:, NAMES.index(name), None, None, None] > 0
        x = torch.where(asked, x.flip(dim), x)
    return x


# torch 2.13 fails to compile it: https://github.com/pytorch/pytorch/issues/187337
@torch.compiler.disable  # type: ignore[untyped-decorator]
def filtered(image: Tensor, frame: Frame) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> five copies of it, [B, 5, 3, H, W]."""
    x = (image + 1) / 2
    copies = [
        filters.fine(x, frame),
        filters.smooth(x, frame),
        filters.blocky(x, frame),
        filters.tones(x),
        filters.lines(x, frame),
    ]
    return 2 * torch.stack(copies, 1) - 1


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fallen(noise: Tensor, amounts: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Noise [B, 3, H, W] -> flakes near and far, streaks, border, grain [B, 5, H, W]; clouds [B, 1, H, W]."""
    weather = Weather.of(noise, frame)
    snow, rain = (amounts[:, NAMES.index(n), None, None, None] for n in ("snow", "rain"))
    border = edits.margin(noise, frame).expand_as(weather.grain)
    falling = [*edits.flakes(weather, snow), edits.streaks(weather, rain), border, weather.grain]
    return torch.cat(falling, 1), weather.clouds


def where(like: Tensor, frame: Frame) -> Tensor:
    """[B, C, H, W] -> [B, 4, H, W]: x, y, the squared radius, the distance to the border."""
    y, x = frame.y(like), frame.x(like)
    here = torch.stack([x + 0 * y, y + 0 * x, y * y + x * x, frame.edge(like)])
    return here.expand(len(like), -1, -1, -1)


def mixed(image: Tensor, copies: Tensor, mixing: Tensor) -> Tensor:
    """Image [B, 3, H, W], copies [B, 5, 3, H, W], mixing [B, 23, H/2, W/2] or [B, 23, 1, 1] -> what to add to it."""
    batch, _, height, width = image.shape
    mixing = mixing[:, :, :, None, :, None]

    def cells(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-2], height // 2, 2, width // 2, 2)

    shares, matrices = mixing[:, :COPIES], mixing[:, COPIES:]
    move = (shares[:, :, None] * (cells(copies) - cells(image)[:, None])).sum(1)
    base = cells(image) + move
    for power, part in ((base, matrices[:, :9]), (base * base, matrices[:, 9:])):
        part = part.reshape(batch, 3, 3, *part.shape[2:])
        move = move + (part * power[:, None]).sum(2)
    return move.reshape(image.shape)


def build_scheduler() -> DDIMScheduler:
    """From noise alone to where a tenth of the power is signal; from there the last step ends.

    Steps with less noise would begin from what the step before has drawn, and add up its mistakes. What there
    is to decide, where flakes fall, is in the noise. A hundred steps, trailing: the first begins with noise alone.
    """
    whole = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=1e-5,
        beta_end=0.012,
        rescale_betas_zero_snr=True,
    )
    # Types are named: while diffusers loads a model, what has none is in the model's, such as bfloat16.
    places = torch.linspace(EARLIEST, LATEST, STEPS, dtype=torch.float64).round().long()
    signal = whole.alphas_cumprod[places].double()
    signal[0] = 1 - 1e-7  # where 100 / steps is no integer, DDIM ends here: no noise is left
    betas = 1 - signal / torch.cat([torch.ones_like(signal[:1]), signal[:-1]])
    return DDIMScheduler(
        num_train_timesteps=STEPS,
        trained_betas=[round(beta, 9) for beta in betas.tolist()],
        prediction_type="sample",
        timestep_spacing="trailing",
        clip_sample=True,  # latents are pixels: what lies beyond black and white is cut off
    )
