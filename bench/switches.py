"""What the catalogue's speed switches gain and cost, on `pocket`, on this machine: `python -m bench.switches`.

One edit at a time, the same with each setting in turn. Time is a ratio to the plain setting's (float32, nothing
compiled, every step a forward); the cost is the PSNR of the result against the plain setting's.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# At "error" it says that float16 cannot run on a CPU, which it does.
os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from PIL import Image, ImageOps
from torch import Tensor

from bench.common import machine, spread
from bench.gpu.architectures import ARCHITECTURES
from retouch_server.catalog import POCKET, ModelEntry
from retouch_server.checkpoint import one_line
from retouch_server.engine.edit import Edit
from retouch_server.engine.engine import Engine
from retouch_server.loading import LoadError, load
from retouch_server.models import Inputs
from retouch_server.tuning import set_attention

PHOTO = Path(__file__).parents[1] / "cli/retouch_cli/sample.jpg"
PROMPTS = (
    "make it night",
    "give it a sepia tone",
    "turn it into a pencil sketch",
    "add fog",
    "make it brighter",
    "blur it",
    "make it look like a sunset",
    "pixelate it",
)
STEPS = (6, 20)

SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "compiled": {"compile": True},
    "reuse 0.05": {"reuse": 0.05},
    "reuse 0.1": {"reuse": 0.1},
    "reuse 0.2": {"reuse": 0.2},
}


class Setting:
    """A way to run edits, one at a time, with what it took. Raises whatever loading does."""

    def __init__(self, name: str, entry: ModelEntry) -> None:
        self.name = name
        self._model = load(entry, "cpu")
        # Without a cache: each setting encodes for itself.
        self._engine = Engine(self._model.denoiser, reuse=entry.reuse, cache_bytes=0)
        self._engine.start()

    def run(self, inputs: Inputs) -> Edited:
        edit = Edit(self._model.run(inputs), total=inputs.steps)
        started = time.perf_counter()
        self._engine.submit([edit])
        image = edit.future.result()
        return Edited(time.perf_counter() - started, image, inputs.steps - edit.reused)

    def stop(self) -> None:
        self._engine.stop()


@dataclass(frozen=True)
class Edited:
    """One edit: seconds, the result (1x3xHxW, 0..1), and how many forwards it took."""

    seconds: float
    image: Tensor
    forwards: int


def picture(side: int) -> Image.Image:
    with Image.open(PHOTO) as photo:
        return ImageOps.fit(photo.convert("RGB"), (side, side))


def psnr(a: Tensor, b: Tensor) -> float:
    """dB between images in 0..1; infinite where they are equal."""
    error = (a - b).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


def measure(settings: Sequence[Setting], prompts: Sequence[str], side: int, steps: int) -> None:
    """Print a row for each setting, the first being the plain one."""
    image = picture(side)
    first: dict[Setting, float] = {}
    for s in settings:
        try:
            first[s] = s.run(Inputs("warm", image, steps, 0)).seconds
        except Exception as error:
            print(f"{s.name:12}{side:5}{steps:7}  does not run: {one_line(error)}", flush=True)
    settings = list(first)
    runs: dict[Setting, list[Edited]] = {s: [] for s in settings}
    for turn, prompt in enumerate(prompts):
        inputs = Inputs(prompt, image, steps, seed=turn, guidance_scale=1.0)
        start = turn % len(settings)
        for s in [*settings[start:], *settings[:start]]:
            runs[s].append(s.run(inputs))
    plain = runs[settings[0]]
    for s, edited in runs.items():
        pairs = list(zip(edited, plain, strict=True))
        ratios = [one.seconds / other.seconds for one, other in pairs]
        forwards = fmean(one.forwards for one in edited)
        cost = [psnr(one.image, other.image) for one, other in pairs]
        decibels = f"{fmean(cost):6.1f} ({min(cost):.1f})" if s is not settings[0] else ""
        print(
            f"{s.name:12}{side:5}{steps:7}{first[s]:9.2f}  {spread(ratios):22}{forwards:9.1f}  {decibels}",
            flush=True,
        )


def attention() -> None:
    """Print what the choice of a backend does, where there is one."""
    try:
        set_attention(load(POCKET, "cpu").denoiser, "_native_math")
    except LoadError as error:
        print(error)
    flux = next(a for a in ARCHITECTURES if a.cls == "FluxTransformer2DModel").shrunk()
    denoiser = flux.build("cpu", torch.float32)
    with torch.inference_mode():
        inputs = flux.inputs(denoiser, 1, 64)
        (native,) = denoiser(**inputs)
        set_attention(denoiser, "_native_math")
        (other,) = denoiser(**inputs)
    difference = (native - other).abs().max().item()
    print(f"attention: a tiny {flux.cls}, _native_math instead of native: {difference:.1e} at most")


def load_settings(names: Sequence[str]) -> dict[str, Setting]:
    """By name, the plain one first. What cannot be loaded is printed, and left out."""
    settings = {"plain": Setting("plain", POCKET)}
    for name in names:
        try:
            settings[name] = Setting(name, POCKET.model_copy(update=SWITCHES[name]))
        except Exception as error:
            print(f"{name:12}  does not load: {one_line(error)}")
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of it, nothing compiled")
    quick = parser.parse_args().quick
    sides, prompts = ((64,), PROMPTS[:2]) if quick else ((128, 256), PROMPTS)
    names = [name for name in SWITCHES if not (quick and name == "compiled")]
    print(f"{machine()}; pocket; {len(prompts)} prompts, in turn with the plain setting")
    settings = load_settings(names)
    print(
        f"{'':12}{'side':>5}{'steps':>7}{'first s':>9}  {'time, median (quartiles)':22}{'forwards':>9}"
        "  PSNR dB (least)"
    )
    for side in sides:
        # A step costs the same whatever their number, unless steps are skipped. Compiling takes long: for one size.
        chosen = [s for name, s in settings.items() if name != "compiled" or side == sides[0]]
        measure(chosen, prompts, side, STEPS[0])
        reusing = [s for name, s in settings.items() if name == "plain" or "reuse" in name]
        measure(reusing, prompts, side, STEPS[1])
    for s in settings.values():
        s.stop()
    attention()


if __name__ == "__main__":
    main()
