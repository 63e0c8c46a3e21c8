"""How well `pocket` follows instructions: python -m retouch_server.pocket.evaluate [--sheet out.png]

Per edit: the PSNR of the result to the true edit, on photos held out of training and in wordings
the grammar does not produce, beside the PSNR of the untouched input to that same target.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

import retouch_server.pocket
from retouch_server.catalog import POCKET
from retouch_server.pocket import data, edits
from retouch_server.pocket.edits import PLAINLY, SLIGHTLY, STRONGLY
from retouch_server.pocket.filters import Frame, Weather

STEPS = POCKET.defaults.num_inference_steps or 6
GUIDANCE = POCKET.defaults.guidance_scale or 1.0
SIZE = 128  # side of the square photos
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
    "mirror": ("show it the way a mirror would", "flip it so that left becomes right"),
    "upside_down": (
        "stand the whole picture on its head",
        "flip the thing so the top is at the bottom",
    ),
    "glow": (
        "a soft dreamy haze around all the lights",
        "give it a fairytale glow",
    ),
    "thermal": (
        "as though seen with a thermal imaging camera",
        "heat-vision goggles, please",
    ),
    "cinematic": ("grade this like a Hollywood film", "that teal-and-orange movie style"),
    "snow": ("snow is falling everywhere", "make it a snowy winter's day"),
    "rain": ("it's pouring with rain", "as if caught in a rain shower"),
    "grain": ("like it was shot on grainy old film", "sprinkle some film noise over this"),
    "border": (
        "put a plain white frame round the picture",
        "I want a white border on all four sides",
    ),
}
SEVERAL: dict[str, dict[str, float]] = {
    "make it night and add snow": {"night": PLAINLY, "snow": PLAINLY},
    "a black and white picture with dark corners": {"grayscale": PLAINLY, "vignette": PLAINLY},
    "a cold, foggy morning": {"cool": PLAINLY, "fog": PLAINLY},
    "pixelate it, then give it a purple tint": {"pixelate": PLAINLY, "purple": PLAINLY},
    "slightly brighter and much warmer": {"brighter": SLIGHTLY, "warm": STRONGLY},
    "a sepia photograph with lots of grain and a white frame": {
        "sepia": PLAINLY, "grain": STRONGLY, "border": PLAINLY,
    },
    "mirror it and put it in the rain": {"mirror": PLAINLY, "rain": PLAINLY},
    "increase the contrast a little and blur it": {"contrast": SLIGHTLY, "blur": PLAINLY},
}  # fmt: skip
BEYOND = (
    "",
    "don't do anything to the picture",
    "can we have a trumpet lying by the teapot",
    "put sunglasses on the dog",
    "make the car red",
    "she should wear a blue dress",
    "write HAPPY BIRTHDAY across it",
    "who painted the Mona Lisa?",
    "take out the person on the left",
    "swap the sky for a galaxy",
    "make her hair longer",
    "turn the cat into a tiger",
    "add a second moon",
    "please don't make it darker",
    "give the man a moustache",
    "a bowl of soup on the table",
    "move the cup to the right",
    "what is the capital of France?",
    "remove the logo from the shirt",
    "make the building taller",
)


@dataclass(frozen=True)
class Row:
    """One line of the table: what is asked for; mean PSNR in dB of the result, and of the untouched photo."""

    asked: str
    result: float
    unchanged: float | None

    @property
    def gain(self) -> float:
        return self.result - (self.unchanged or 0.0)


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


def target(amounts: Mapping[str, float], x: Tensor, seed: int = 0) -> Tensor:
    """The true edit of a whole picture [3, H, W] with the noise that `edit` starts from."""
    height, width = x.shape[-2:]
    latents = torch.randn(
        12, height // 2, width // 2, generator=torch.Generator().manual_seed(seed)
    )
    frame = Frame(height, width)
    return edits.apply(amounts, x, frame, Weather.of(functional.pixel_shuffle(latents, 2), frame))


def psnr(a: Tensor, b: Tensor) -> float:
    """dB between images in 0..1; at most 60."""
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-6))


def tasks() -> list[tuple[str, dict[str, float], list[str]]]:
    """What the table asks for, how much of which edit that is, and in which words."""
    each = [(name, {name: PLAINLY}, list(WORDINGS[name])) for name in edits.NAMES]
    return each + [(f'"{prompt}"', amounts, [prompt]) for prompt, amounts in SEVERAL.items()]


def evaluate(
    pipeline: Any, photos: list[Tensor], steps: int = STEPS, guidance: float = GUIDANCE
) -> list[Row]:
    """A row for each edit, for each of several in one, and the last for what is beyond its reach."""
    rows = []
    for asked, amounts, prompts in tasks():
        scores, floors = [], []
        for x in photos:
            true = target(amounts, x)
            floors.append(psnr(x, true))
            scores += [psnr(y, true) for y in edit(pipeline, x, prompts, steps, guidance)]
        rows.append(Row(asked, sum(scores) / len(scores), sum(floors) / len(floors)))
    kept = [
        psnr(y, x) for x in photos[:1] for y in edit(pipeline, x, list(BEYOND), steps, guidance)
    ]
    return [*rows, Row("nothing it can do", sum(kept) / len(kept), None)]


def sheet(
    pipeline: Any, photos: list[Tensor], steps: int = STEPS, guidance: float = GUIDANCE
) -> Image.Image:
    """A row per instruction: for each photo the result, then the true edit."""
    size, height = photos[0].shape[-1], photos[0].shape[-1] + 12
    asked = [(amounts, prompt) for _, amounts, prompts in tasks() for prompt in prompts]
    asked += [({}, prompt) for prompt in BEYOND]
    width = size * 2 * len(photos)
    columns = 3
    lines = math.ceil(len(asked) / columns)
    canvas = Image.new("RGB", (columns * (width + 8), lines * height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (amounts, prompt) in enumerate(asked):
        left, top = i // lines * (width + 8), i % lines * height
        draw.text((left + 2, top), f"{'+'.join(amounts) or 'none'}: {prompt}", "black")
        for k, x in enumerate(photos):
            result = edit(pipeline, x, [prompt], steps, guidance)[0]
            pair = torch.cat([result, target(amounts, x)], dim=2)
            canvas.paste(data.to_image(pair), (left + 2 * k * size, top + 12))
    return canvas


def table(rows: list[Row]) -> str:
    lines = ["| asked for | result, dB | unchanged, dB | gain |", "|---|---|---|---|"]
    for row in rows:
        floor = "" if row.unchanged is None else f"{row.unchanged:.1f}"
        gain = "" if row.unchanged is None else f"{row.gain:+.1f}"
        lines.append(f"| {row.asked} | {row.result:.1f} | {floor} | {gain} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=retouch_server.pocket.MODEL_DIR)
    parser.add_argument(
        "--sheet", type=Path, help="also write a contact sheet: results beside the true edits"
    )
    parser.add_argument(
        "--size", type=int, default=SIZE, help="side of the photos, a multiple of 8 (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    options = parser.parse_args()
    pipeline = load(options.model)
    photos = [data.square(data.held_out(name), options.size) for name in data.HELD_OUT]
    print(table(evaluate(pipeline, photos, options.steps, options.guidance)))
    if options.sheet:
        sheet(pipeline, photos[:2], options.steps, options.guidance).save(options.sheet)


if __name__ == "__main__":
    main()
