"""A model's first edits, before anyone's: they prove that it works, compile what is to be compiled, and measure how far
sharing a forward pays.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import images
from .checkpoint import LoadError, one_line
from .engine.engine import Engine
from .engine.rows import Call, Rows
from .engine.standins import Denoiser, own_copy, watch
from .models import Flagged, Inputs, Model
from .previews import Previewer
from .replies import to_pixels

CALIBRATION_SECONDS = 1.5
COUNTS = (1, 2, 4, 8)
ROUNDS = 5
STEPS = 2
# A pair of calls that fills the budget takes 92 % of the time that the two take alone: from there on sharing only makes
# each wait for the other.
WORTHWHILE = 0.1


class _Recorder:
    """Runs an edit on this thread, by diffusers alone, and keeps its first denoiser call and last latents."""

    def __init__(self, model: Model, rows: Rows) -> None:
        self.denoiser = Denoiser(model.denoiser, self)
        self.call: Call | None = None
        self.latents: Tensor | None = None
        self._real, self._rows = model.denoiser, rows

    def adopt(self, pipe: Any, denoiser: str) -> Any:
        own = own_copy(pipe, denoiser, self)
        watch(own.scheduler, self._keep)
        return own

    def denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._rows.bind(args, kwargs)
        self.call = self.call or call
        return self._real(**call.arguments)

    def phase(self, name: str, work: Any, *args: Any, **kwargs: Any) -> Any:
        return work(*args, **kwargs)

    def on_step(self, done: int, total: int) -> None:
        """Nobody watches."""

    def _keep(self, latents: Tensor) -> None:
        self.latents = latents


@dataclass(frozen=True)
class Sharing:
    """How forwards are shared. max_tokens: at most, None = no limit. sizes: of rows that each is filled up to."""

    max_tokens: int | None
    sizes: tuple[int, ...]


def warm_up(model: Model, previewer: Previewer) -> Sharing:
    """Run an edit of each size that the catalogue names and by each pipeline, and forwards of each fixed size.

    `previewer` learns from the edits. Raises LoadError.
    """
    try:
        with torch.inference_mode():
            return _warm_up(model, previewer)
    except Exception as error:
        words = f"its first edit failed: {type(error).__name__}: {one_line(error)}"
        raise LoadError(f"model {model.entry.id}: {words}") from error


def _warm_up(model: Model, previewer: Previewer) -> Sharing:
    entry = model.entry
    rows = Rows(model.denoiser, entry.deterministic)
    sizes, budget = entry.fixed_sizes, entry.max_tokens
    where = entry.warm_up or [_small(model)]
    for inputs in _inputs(model, where[0])[1:]:
        _edit(model, rows, previewer, inputs)
    for size in where:
        call = _edit(model, rows, previewer, _inputs(model, size)[0])
        if entry.reuse and call.lead is None:
            raise ValueError("reuse: the latents that its denoiser takes are not one tensor")
        if entry.compile and not sizes:
            sizes = tuple(n * call.rows for n in COUNTS if n * call.rows <= entry.max_rows)
        for count in () if call.alone else sizes:
            _forward(model, rows, call, count)
        if budget is None:
            budget = _measured(model, rows, call)
    return Sharing(budget, sizes)


def engine(model: Model, sharing: Sharing, **options: Any) -> Engine:
    """A model's engine, as its entry and its warm-up say. `options`: the rest of what `Engine` takes."""
    entry = model.entry
    return Engine(
        model.denoiser,
        slots=entry.slots,
        max_rows=entry.max_rows,
        max_tokens=sharing.max_tokens,
        sizes=sharing.sizes,
        exact=entry.deterministic,
        cache_bytes=entry.cache_bytes,
        reuse=entry.reuse,
        **options,
    )


def _small(model: Model) -> tuple[int, int]:
    """A size at which a forward is short: 16 of the family's multiples a side."""
    side = 16 * model.family.multiple
    return images.output_size((side, side), None, model.family.multiple, model.entry.limits)


def _inputs(model: Model, size: tuple[int, int]) -> list[Inputs]:
    """An edit of a picture of coloured tiles for each of the model's pipelines, the plain one's first."""
    tiles = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(tiles).resize(size, Image.Resampling.BICUBIC)
    guidance = model.defaults.guidance_scale if model.takes_guidance else None
    plain = Inputs("warm", picture, steps=STEPS, seed=0, guidance_scale=guidance)
    mask = picture.convert("L").point(lambda grey: 255 * (grey > 127))
    each: dict[str, Inputs] = {}
    for inputs in (plain, replace(plain, mask=mask), replace(plain, strength=0.5)):
        each.setdefault(model.pipeline_of(inputs), inputs)
    return list(each.values())


def _edit(model: Model, rows: Rows, previewer: Previewer, inputs: Inputs) -> Call:
    """The first denoiser call of an edit."""
    recorder = _Recorder(model, rows)
    try:
        result = model.run(inputs)(recorder)
    except Flagged:  # noise and tiles are nobody's picture; such a model shows no previews either
        result = None
    if recorder.call is None:
        raise RuntimeError("its pipeline did not call its denoiser")
    if result is None:
        return recorder.call
    if not result.isfinite().all():
        raise RuntimeError("its result is not a number")
    if recorder.latents is not None:
        previewer.learn(recorder.latents, to_pixels(result))
    return recorder.call


def _measured(model: Model, rows: Rows, call: Call) -> int | None:
    """The token budget, the larger of two measurements where the first says that sharing never pays.

    A machine that was busy for a moment may say so too, and it would hold until the next start.
    """
    budget = token_budget(_measure(model, rows, call))
    if budget is not None and budget < 2 * call.rows * call.tokens:
        again = token_budget(_measure(model, rows, call))
        budget = None if again is None else max(budget, again)
    return budget


def _measure(model: Model, rows: Rows, call: Call) -> list[tuple[int, float]]:
    """(tokens, seconds) of forwards that `call` shares with copies of itself, two such at least: the least of a few.

    Nothing where it can share none.
    """
    sizes = [n * call.rows for n in COUNTS if n * call.rows <= model.entry.max_rows]
    started, least = time.monotonic(), dict[int, float]()
    for round_ in range(ROUNDS):
        for size in () if call.alone else sizes:
            if len(least) > 1 and time.monotonic() - started > CALIBRATION_SECONDS:
                break
            if not round_:
                _forward(model, rows, call, size)  # the first of a size is slow
            seconds = _forward(model, rows, call, size)
            least[size] = min(seconds, least.get(size, seconds))
    return [(size * call.tokens, seconds) for size, seconds in least.items()]


def _forward(model: Model, rows: Rows, call: Call, size: int) -> float:
    """Seconds of one forward of `size` rows."""
    calls = [call, rows.filler(call, size - call.rows)] if size > call.rows else [call]
    started = time.monotonic()
    model.denoiser(**rows.stack(calls))
    if call.lead is not None and call.lead.device.type != "cpu":
        torch.accelerator.synchronize(call.lead.device)
    return time.monotonic() - started


def token_budget(points: Sequence[tuple[int, float]]) -> int | None:
    """From (tokens, seconds) of forwards, the tokens beyond which more in one forward is hardly faster than in turns.

    A forward of N tokens takes about a + bN seconds; per token it comes within `WORTHWHILE` of b at N = a/b/WORTHWHILE.
    None: the time does not grow with N, so all that can share should.
    """
    if len(points) < 2:
        return None
    tokens = np.array([n for n, _ in points], dtype=np.float64)
    seconds = np.array([s for _, s in points], dtype=np.float64)
    # By relative error: the short forwards are the ones that tell a.
    columns = np.stack([1 / seconds, tokens / seconds], axis=1)
    (fixed, each), *_ = np.linalg.lstsq(columns, np.ones(len(points)), rcond=None)
    if each <= 0:
        return None
    return max(1, int(fixed / each / WORTHWHILE))
