"""Trains `pocket` on a CPU: python -m retouch_server.pocket.train --minutes 60 --out DIR

Killed at any time, the same command goes on from the last checkpoint (one every two minutes).
DIR/pipeline is the diffusers folder, from the averaged weights; copy it to `model/` to ship it.
"""

import argparse
import copy
import json
import math
import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from retouch_server.pocket import edits, text
from retouch_server.pocket.data import Pictures
from retouch_server.pocket.modules import PixelSpace, PocketUNet

BATCH = 16
PEAK_RATE = 8e-4
EMA = 0.998
CHECKPOINT_SECONDS = 120
TEXT_MINUTES = 3.0


@dataclass
class State:
    """All that a checkpoint holds. `seconds` is time spent training, over all runs."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    unet: PocketUNet
    average: PocketUNet
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


def build_scheduler() -> DDIMScheduler:
    """Zero terminal SNR, trailing steps: the first step starts from noise alone, as in training."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=1e-5,  # where 1000 / steps is no integer, DDIM ends at step 0: leave no noise there
        beta_end=0.012,
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,  # latents are pixels: what lies beyond black and white is cut off
    )


def build_unet() -> PocketUNet:
    levels = (48, 80, 128, 192)
    return PocketUNet(  # type: ignore[no-any-return]
        sample_size=128,
        in_channels=24,
        out_channels=12,
        down_block_types=("DownBlock2D",) * len(levels),
        up_block_types=("UpBlock2D",) * len(levels),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=levels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text.WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def build(out: Path) -> State:
    """A fresh state, or the checkpoint's."""
    folder = out / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder) if folder.exists() else text.train_tokenizer()
    encoder, unet = text.build_encoder(tokenizer), build_unet()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    state = State(tokenizer, encoder, unet, copy.deepcopy(unet).eval(), optimizer)
    state.average.requires_grad_(False)
    if (out / "latest.pt").exists():
        load(state, out)
    else:
        tokenizer.save_pretrained(folder)
    return state


def save(state: State, out: Path) -> None:
    names = ("encoder", "unet", "average", "optimizer")
    content: dict[str, Any] = {name: getattr(state, name).state_dict() for name in names}
    content |= {"step": state.step, "seconds": state.seconds}
    torch.save(content, out / "latest.tmp")
    os.replace(out / "latest.tmp", out / "latest.pt")


def load(state: State, out: Path) -> None:
    content = torch.load(out / "latest.pt", weights_only=True)
    for name in ("encoder", "unet", "average", "optimizer"):
        getattr(state, name).load_state_dict(content[name])
    state.step, state.seconds = content["step"], content["seconds"]


def export(state: State, folder: Path) -> None:
    """Writes the pipeline folder, then puts it in the place of an older one."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=PixelSpace(),
        text_encoder=state.encoder,
        tokenizer=state.tokenizer,
        unet=state.average,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(fresh)
    index = fresh / "model_index.json"
    content = json.loads(index.read_text())
    for name in ("vae", "unet"):  # found in the package, whichever file the class is in
        content[name][0] = "retouch_server.pocket"
    index.write_text(json.dumps(content, indent=2) + "\n")
    for path in fresh.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600, which an installed package must not keep
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def edit_names(progress: float) -> list[str]:
    """Edits to draw from: those of a neighbourhood, harder to learn, stand there more often."""
    local = 2 if progress < 0.3 else 3
    return [*edits.GLOBAL, *edits.TINTS, *(name for name in edits.LOCAL for _ in range(local))]


def crop_size(progress: float, rng: random.Random) -> int:
    """Small crops first: most edits are of one pixel, and small is quick."""
    weights = (9, 1, 0) if progress < 0.6 else (2, 7, 1.5)
    return rng.choices((64, 96, 128), weights)[0]


def timesteps(progress: float, rng: random.Random) -> Tensor:
    """[BATCH] of 0..999, mostly noisy ones, where it is decided what the result will be.

    Towards the end all alike: what little noise a late step leaves is seen in the result.
    """
    power, pure = (0.7, 0.3) if progress < 0.85 else (1.0, 0.1)
    drawn = [
        999 if rng.random() < pure else int(1000 * rng.random() ** power) for _ in range(BATCH)
    ]
    return torch.tensor(drawn)


def loss_of(predicted: Tensor, target: Tensor) -> Tensor:
    """[B]: robust per pixel, plus the same of 8x8 averages, where a faint colour cast shows.

    Where the target is black or white, going beyond it is right too: sampling clips.
    """
    beyond = (target.abs() >= 1) & (predicted * target > 1)
    predicted = torch.where(beyond, target, predicted)
    fine = functional.smooth_l1_loss(predicted, target, beta=0.1, reduction="none")
    coarse = functional.smooth_l1_loss(
        functional.avg_pool2d(predicted, 8),
        functional.avg_pool2d(target, 8),
        beta=0.05,
        reduction="none",
    )
    return fine.mean((1, 2, 3)) + 0.5 * coarse.mean((1, 2, 3))


def train_step(state: State, pictures: Pictures, alphas: Tensor, progress: float) -> float:
    rng = pictures.rng
    size, names = crop_size(progress, rng), edit_names(progress)
    asked = [text.phrase(rng, names) for _ in range(BATCH)]
    before = torch.stack([pictures.crop(size) for _ in asked])
    after = torch.stack(
        [edits.apply(p.edit, x, p.amount) for p, x in zip(asked, before, strict=True)]
    )
    image, target = (functional.pixel_unshuffle(2 * x - 1, 2) for x in (before, after))
    with torch.no_grad():
        words = text.encode(state.tokenizer, state.encoder, [p.text for p in asked])
    t = timesteps(progress, rng)
    alpha = alphas[t][:, None, None, None]
    noisy = alpha.sqrt() * target + (1 - alpha).sqrt() * torch.randn_like(target)
    predicted = state.unet(torch.cat([noisy, image], 1), t, words, return_dict=False)[0]
    losses = loss_of(predicted, target)
    state.optimizer.zero_grad()
    losses.mean().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.unet.parameters(), 1.0)
    state.optimizer.step()
    for p, value in zip(asked, losses.detach().tolist(), strict=True):
        old = state.losses.get(p.edit, value)
        state.losses[p.edit] = old + 0.05 * (value - old)
    return losses.detach().mean().item()


def average(state: State) -> None:
    keep = min(EMA, (state.step + 1) / (state.step + 10))
    with torch.no_grad():
        for old, new in zip(state.average.parameters(), state.unet.parameters(), strict=True):
            old.lerp_(new, 1 - keep)


def rate(progress: float, step: int) -> float:
    """Warm-up by steps, then a cosine by time."""
    return (
        PEAK_RATE * min(1.0, (step + 1) / 150) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
    )


def logger(out: Path) -> text.Log:
    """A line goes to DIR/train.log, with the time."""

    def say(line: str) -> None:
        with (out / "train.log").open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    return say


def refine_text(minutes: float, out: Path) -> None:
    """The checkpoint and DIR/pipeline get a new text side; a few more minutes of pictures fit to it."""
    state = build(out)
    pooling = state.average.add_embedding.requires_grad_(True)
    text.refine(state.tokenizer, state.encoder, pooling, minutes, logger(out))
    state.unet.add_embedding.load_state_dict(pooling.state_dict())
    save(state, out)
    export(state, out / "pipeline")


def train(minutes: float, out: Path, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    say = logger(out)
    torch.manual_seed(seed)
    state = build(out)
    if state.step == 0:
        pooling = state.unet.add_embedding
        text.pretrain(state.tokenizer, state.encoder, pooling, TEXT_MINUTES, say)
        state.average.load_state_dict(state.unet.state_dict())
        save(state, out)
    state.encoder.eval()
    torch.manual_seed(seed + state.step)
    pictures = Pictures(seed + state.step)
    alphas = build_scheduler().alphas_cumprod
    mean, saved, tick = 0.0, time.monotonic(), time.monotonic()
    while (progress := state.seconds / (60 * minutes)) < 1:
        for group in state.optimizer.param_groups:
            group["lr"] = rate(progress, state.step)
        loss = train_step(state, pictures, alphas, progress)
        average(state)
        mean = loss if not mean else mean + 0.02 * (loss - mean)
        state.step += 1
        state.seconds += time.monotonic() - tick
        tick = time.monotonic()
        if state.step % 50 == 0:
            say(f"step {state.step} minutes {state.seconds / 60:.1f} loss {mean:.4f}")
        if state.step % 500 == 0:
            say(" ".join(f"{k or 'none'}={v:.3f}" for k, v in sorted(state.losses.items())))
        if tick - saved > CHECKPOINT_SECONDS or state.seconds >= 60 * minutes:
            save(state, out)
            export(state, out / "pipeline")
            saved = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="training time, over all runs")
    parser.add_argument(
        "--out", type=Path, required=True, help="checkpoints, log and pipeline folder"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--refine-text",
        type=float,
        metavar="MINUTES",
        help="no pictures: teach the trained checkpoint's text side the grammar as it is now",
    )
    options = parser.parse_args()
    if options.refine_text:
        refine_text(options.refine_text, options.out)
    else:
        train(options.minutes, options.out, options.seed)


if __name__ == "__main__":
    main()
