"""How well `pocket` follows instructions: python -m retouch_server.pocket.evaluate [--sheet out.png]

Per edit: the PSNR of the result to the true edit, on photos held out of training and in wordings
the grammar does not produce, beside the PSNR of the untouched input to that same target.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import retouch_server.pocket
from retouch_server.pocket import data, edits

STEPS = 6
GUIDANCE = 1.0
WORDINGS: dict[str, tuple[str, ...]] = {
    "grayscale": (
        "I'd like this as a black & white photograph",
        "could the colours go, so that only greys remain?",
    ),
    "sepia": (
        "give the picture that old sepia look",
        "as if it had been shot in the 1880s",
    ),
    "invert": ("swap it to a colour negative", "as though I were looking at the film negative"),
    "brighter": ("it's far too gloomy, brighten things up", "let's have this a good deal lighter"),
    "darker": ("this is way too bright for me, bring it down", "could this be darker overall?"),
    "contrast": (
        "a bigger difference between lights and darks, please",
        "I think it needs stronger contrast",
    ),
    "fade": ("give it a washed-out, faded feel", "it has too much contrast, reduce it"),
    "saturate": (
        "I'd love the colours to sing, more vivid please",
        "far richer, more vivid colours would be nice",
    ),
    "desaturate": (
        "the colours are too loud, mute them",
        "could the colours be less intense, please?",
    ),
    "warm": ("make the light feel warmer and cosier", "the white balance is too cold, warm it up"),
    "cool": ("colder, like winter", "shift it to a cooler, icy mood"),
    "sunset": ("as if the sun were just setting", "golden evening light, like at sunset"),
    "night": (
        "picture this same place well past midnight",
        "turn the afternoon into a moonlit night",
    ),
    "fog": ("a thick fog is rolling over the place", "let it disappear in morning mist"),
    "vignette": (
        "fade the corners of the frame into black",
        "it could use a vignette around the edges",
    ),
    "red": ("bathe the entire frame in red", "deep red light, as in a photo lab"),
    "green": ("green goggles on, that's the view I want", "give it that green Matrix tint"),
    "blue": ("cover the lot with a blue cast", "wash all of this with blue"),
    "yellow": ("everything should have a yellow tone to it", "tinge the whole frame yellow"),
    "purple": ("drench this shot in violet", "a purple colour wash all over, please"),
    "orange": ("orange light everywhere", "could the entire frame be tinted orange?"),
    "pink": ("colour the lot pink", "a pink tint across the whole frame"),
    "cyan": ("give this a turquoise wash all over", "tint every part of it cyan"),
    "blur": (
        "so blurred that nobody can make out a thing",
        "make it look like the lens was out of focus",
    ),
    "sharpen": ("crisp up all the fine details", "it came out soft; can you make it crisp?"),
    "sketch": (
        "looks like someone took a pencil and drew this",
        "like something drawn by hand in a sketchbook",
    ),
    "posterize": (
        "a silkscreen poster with a handful of flat colours",
        "pop art, with very few colours",
    ),
    "pixelate": ("chunky pixels like an old 8-bit console", "pixelate the whole thing into blocks"),
    "": ("", "can we have a trumpet lying by the teapot", "don't do anything to the picture"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: mean PSNR in dB. `edit` "" is: leave it as it is."""

    edit: str
    result: float
    unchanged: float


def load(folder: Path) -> Any:
    """The stock pipeline with the model in `folder`; `retouch_server.pocket` is imported above."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        folder, use_safetensors=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def edit(
    pipeline: Any,
    x: Tensor,
    prompts: list[str],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = 0,
) -> Tensor:
    """Edits x [3, H, W] in 0..1 once per prompt, all with the same noise -> [B, 3, H, W]."""
    results = pipeline(
        prompt=prompts,
        image=x.expand(len(prompts), -1, -1, -1),
        num_inference_steps=steps,
        guidance_scale=guidance,
        image_guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(seed) for _ in prompts],
        output_type="pt",
    ).images
    return torch.as_tensor(results)


def psnr(a: Tensor, b: Tensor) -> float:
    """dB between images in 0..1; at most 60."""
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-6))


def evaluate(
    pipeline: Any, photos: list[Tensor], steps: int = STEPS, guidance: float = GUIDANCE
) -> list[Row]:
    rows = []
    for name, prompts in WORDINGS.items():
        scores, floors = [], []
        for x in photos:
            target = edits.apply(name, x)
            floors.append(psnr(x, target))
            scores += [psnr(y, target) for y in edit(pipeline, x, list(prompts), steps, guidance)]
        rows.append(Row(name, sum(scores) / len(scores), sum(floors) / len(floors)))
    return rows


def sheet(
    pipeline: Any, photos: list[Tensor], steps: int = STEPS, guidance: float = GUIDANCE
) -> Image.Image:
    """A row per edit and wording: for each photo the result, then the target."""
    size, height = photos[0].shape[-1], photos[0].shape[-1] + 12
    asked = [(name, prompt) for name, prompts in WORDINGS.items() for prompt in prompts]
    width = size * 2 * len(photos)
    columns = 2
    lines = math.ceil(len(asked) / columns)
    canvas = Image.new("RGB", (columns * (width + 8), lines * height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, prompt) in enumerate(asked):
        left, top = i // lines * (width + 8), i % lines * height
        draw.text((left + 2, top), f"{name or 'none'}: {prompt}", "black")
        for k, x in enumerate(photos):
            result = edit(pipeline, x, [prompt], steps, guidance)[0]
            pair = torch.cat([result, edits.apply(name, x)], dim=2)
            canvas.paste(data.to_image(pair), (left + 2 * k * size, top + 12))
    return canvas


def table(rows: list[Row]) -> str:
    lines = ["| edit | result, dB | unchanged, dB | gain |", "|---|---|---|---|"]
    for row in rows:
        gain = f"{row.result - row.unchanged:+.1f}" if row.edit else ""
        unchanged = f"{row.unchanged:.1f}" if row.edit else ""
        lines.append(
            f"| {row.edit or 'none (left as it is)'} | {row.result:.1f} | {unchanged} | {gain} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=retouch_server.pocket.MODEL_DIR)
    parser.add_argument(
        "--sheet", type=Path, help="also write a contact sheet: results beside targets"
    )
    parser.add_argument(
        "--size", type=int, default=256, help="side of the square pictures, a multiple of 8"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    options = parser.parse_args()
    pipeline = load(options.model)
    held_out = [data.photo(name) for name in data.HELD_OUT_PHOTOS]
    photos = [data.square(x, options.size) for x in held_out]
    print(table(evaluate(pipeline, photos, options.steps, options.guidance)))
    if options.sheet:
        small = [data.square(x, 128) for x in held_out[:3]]
        sheet(pipeline, small, options.steps, options.guidance).save(options.sheet)


if __name__ == "__main__":
    main()
