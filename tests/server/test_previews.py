"""Previews: what an unfinished edit looks like, by what finished ones taught."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxKontextPipeline, QwenImageEditPipeline
from PIL import Image
from torch import Tensor

from retouch_server import images
from retouch_server.catalog import POCKET
from retouch_server.images import Pixels
from retouch_server.loading import load
from retouch_server.previews import Previewer

CHANNELS = 4
# A stand-in for a VAE, linear as none quite is: colours of 8x8 pixels to four channels.
COLOURS = torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(1))


def picture(seed: int, width: int = 128, height: int = 96) -> Pixels:
    """Smooth and of many colours, 8x8 pixels apiece."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(20, 236, (4, 4, 3), dtype=np.uint8))
    cells = coarse.resize((width // 8, height // 8), Image.Resampling.BICUBIC)
    pixels: Pixels = np.asarray(cells, dtype=np.float32) / np.float32(255)
    return pixels.repeat(8, axis=0).repeat(8, axis=1)


def as_unet(pixels: Pixels) -> Tensor:
    cells = torch.from_numpy(pixels[::8, ::8].copy()) @ COLOURS + 0.3
    return cells.permute(2, 0, 1)[None]


def as_video(pixels: Pixels) -> Tensor:
    return as_unet(pixels)[:, :, None]


def as_flux(pixels: Pixels) -> Tensor:
    return _packed(FluxKontextPipeline, as_unet(pixels))


def as_qwen(pixels: Pixels) -> Tensor:
    return _packed(QwenImageEditPipeline, as_unet(pixels))


def as_flux2(pixels: Pixels) -> Tensor:
    pipe: Any = Flux2KleinPipeline
    tokens: Tensor = pipe._pack_latents(pipe._patchify_latents(as_unet(pixels)))
    return tokens


def _packed(pipe: Any, latents: Tensor) -> Tensor:
    tokens: Tensor = pipe._pack_latents(latents, *latents.shape)
    return tokens


LAYOUTS: list[Callable[[Pixels], Tensor]] = [as_unet, as_video, as_flux, as_flux2, as_qwen]


def psnr(one: Pixels, other: Pixels) -> float:
    return float(-10 * np.log10(np.square(one - other).mean()))


def cells_of(pixels: Pixels) -> Pixels:
    """The middle of each 8x8 pixels, where scaling up has left the colour as it was."""
    return pixels[3::8, 3::8]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layout_of_latents_is_learned(
    layout: Callable[[Pixels], Tensor], dtype: torch.dtype
) -> None:
    previewer = Previewer()
    for seed in range(4):
        previewer.learn(layout(picture(seed)).to(dtype), picture(seed))
    assert previewer.ready
    # Another picture, of another size.
    wanted = picture(9, 64, 160)
    shown = previewer.preview(layout(wanted).to(dtype), (64, 160))
    assert shown.dtype == np.float32
    assert shown.shape == (160, 64, 3)
    assert psnr(cells_of(shown), cells_of(wanted)) > 30


def test_a_pipeline_may_work_at_a_size_of_its_own() -> None:
    """As Qwen's inpainting does: its result is scaled, its latents are not."""
    previewer = Previewer()
    for seed in range(4):
        previewer.learn(as_flux(picture(seed, 256, 192)), picture(seed))
    shown = previewer.preview(as_flux(picture(9, 256, 192)), (128, 96))
    assert psnr(cells_of(shown), cells_of(picture(9))) > 30


def test_not_ready_before_enough_was_seen() -> None:
    previewer = Previewer()
    tiny = picture(0, 16, 16)
    for _ in range(4):
        assert not previewer.ready
        with pytest.raises(ValueError, match="too little was learned"):
            previewer.preview(as_unet(tiny), (16, 16))
        previewer.learn(as_unet(tiny), tiny)
    previewer.learn(as_unet(tiny), tiny)
    assert previewer.ready


def test_what_is_not_a_number_is_not_learned_and_does_no_harm() -> None:
    previewer = Previewer()
    latents, pixels = as_unet(picture(0)), picture(0)
    broken = pixels.copy()
    broken[5, 5] = np.nan
    previewer.learn(latents * torch.nan, pixels)
    previewer.learn(latents, broken)
    assert not previewer.ready
    previewer.learn(latents, pixels)
    assert psnr(cells_of(previewer.preview(latents, (128, 96))), cells_of(pixels)) > 30
    assert np.isfinite(previewer.preview(latents * torch.nan, (128, 96))).all()
    extreme = previewer.preview(latents * 1e6, (128, 96))
    assert extreme.min() >= 0
    assert extreme.max() <= 1


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_pictures_of_one_colour_teach_that_colour(scale: float) -> None:
    previewer = Previewer()
    grey = np.full((96, 128, 3), 0.4, dtype=np.float32)
    previewer.learn(as_unet(grey) * scale, grey)
    shown = previewer.preview(as_unet(grey) * scale, (128, 96))
    assert abs(shown - grey).max() < 0.01


def test_it_follows_a_change() -> None:
    """Such as edits with other adapters, whose latents mean something else."""
    previewer = Previewer()
    for seed in range(30):
        previewer.learn(as_unet(picture(seed)), picture(seed))
    for seed in range(60):
        previewer.learn(as_unet(1 - picture(seed)), picture(seed))
    wanted = picture(99)
    shown = previewer.preview(as_unet(1 - wanted), (128, 96))
    assert psnr(cells_of(shown), cells_of(wanted)) > 25


def test_latents_of_another_kind_are_refused() -> None:
    previewer = Previewer()
    previewer.learn(as_unet(picture(0)), picture(0))
    for use in (
        lambda latents: previewer.learn(latents, picture(0)),
        lambda latents: previewer.preview(latents, (128, 96)),
    ):
        with pytest.raises(ValueError, match="of 16 channels, not 4"):
            use(as_flux(picture(0)))
        with pytest.raises(ValueError, match="97 tokens are no picture of 128x96"):
            use(torch.zeros(1, 97, 4))


def test_many_threads_teach_it_at_once() -> None:
    previewer = Previewer()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: previewer.learn(as_flux(picture(n)), picture(n)), range(64)))
    assert previewer._seen == 64 * 48


def test_an_edit_of_pocket_is_seen_after_a_quarter_of_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its VAE only sorts pixels, two to a cell, so nothing is lost by the map: other models show less."""
    model = load(POCKET, "cpu")
    pipe = model.pipelines[model.family.edit]
    with importlib.resources.files("retouch_cli").joinpath("sample.jpg").open("rb") as file:
        photo = images.fit(Image.open(file).convert("RGB"), (128, 96))
    estimates: list[Tensor] = []
    step = pipe.scheduler.step

    def watched(*arguments: Any, **options: Any) -> Any:
        output = step(*arguments, **options)
        estimates.append(output[1])  # pred_original_sample
        return output

    monkeypatch.setattr(pipe.scheduler, "step", watched)

    def edit(prompt: str, seed: int) -> Pixels:
        estimates.clear()
        output = pipe(
            prompt, photo, num_inference_steps=4, guidance_scale=1.0, image_guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed), output_type="pt",
        )  # fmt: skip
        return np.asarray(output.images[0].permute(1, 2, 0).numpy())

    previewer = Previewer()
    result = edit("make it night", 0)
    previewer.learn(estimates[-1], result)
    result = edit("golden evening light, like at sunset", 1)
    shown = [psnr(previewer.preview(latents, photo.size), result) for latents in estimates]
    untouched = psnr(np.asarray(photo, dtype=np.float32) / np.float32(255), result)
    assert shown[0] > untouched + 10
    assert shown[-1] > 40
    assert shown == sorted(shown)
