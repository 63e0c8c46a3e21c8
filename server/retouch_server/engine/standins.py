"""What stands in an edit's own copy of a pipeline where the parts were that edits share: they ask the engine first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import MethodType
from typing import Any, Protocol, cast

import torch
from torch import Tensor


class Turns(Protocol):
    """Who says when a shared part may work."""

    def denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Wait for the denoiser's answer to one call."""

    def phase(self, name: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do `work` when its turn has come. `name`: prompt, image or decode."""


class _StandIn:
    """A part's attributes are its own, its class too, for pipelines that ask."""

    def __init__(self, part: Any, turns: Turns) -> None:
        self._part, self._turns = part, turns

    def __getattr__(self, name: str) -> Any:
        if name == "_part":  # a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self._part, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._part)


class Denoiser(_StandIn):
    """Takes a denoiser's place: its call is the engine's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._turns.denoise(args, kwargs)

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Pipelines open this around a call; caches kept in the model do not survive batching, so none is."""
        yield

    def _reset_stateful_cache(self) -> None:
        """Called when a pipeline ends: others are still under way in the same denoiser."""


class Autoencoder(_StandIn):
    """Takes a VAE's place: encoding and decoding take turns.

    It says that its dtype is `dtype`, the denoiser's, whatever the VAE's own: pipelines hand its latents on in that.
    """

    def __init__(self, part: Any, turns: Turns, dtype: torch.dtype) -> None:
        super().__init__(part, turns)
        self.dtype = dtype

    def encode(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._turns.phase(
            "image", self._part.encode, x.to(self._part.dtype), *args, **kwargs
        )

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._turns.phase(
            "decode", self._part.decode, z.to(self._part.dtype), *args, **kwargs
        )

    def to(self, *args: Any, **kwargs: Any) -> Autoencoder:
        """Pipelines that change the dtype for one call would change it under the others' feet."""
        return self


def own_copy(pipe: Any, denoiser: str, turns: Turns) -> Any:
    """An edit's own copy of a pipeline: weights shared, the scheduler its own, the shared parts behind stand-ins.

    `denoiser` is the name of the component that the engine batches.
    """
    own = scheduled_copy(pipe)
    vars(own)[denoiser] = Denoiser(getattr(pipe, denoiser), turns)
    vars(own)["vae"] = Autoencoder(pipe.vae, turns, getattr(pipe, denoiser).dtype)
    for name in ("encode_prompt", "_encode_prompt"):
        if method := getattr(type(pipe), name, None):
            work = MethodType(method, own)
            vars(own)[name] = wraps(method)(partial(turns.phase, "prompt", work))
    return own


def scheduled_copy(pipe: Any) -> Any:
    """A shallow copy of a pipeline with a scheduler of its own: schedulers are stateful."""
    own = copy.copy(pipe)
    # Past the pipeline's own __setattr__, which would write new classes into the shared config.
    vars(own)["scheduler"] = copy.deepcopy(pipe.scheduler)
    return own


def watch(scheduler: Any, tell: Callable[[Tensor], None]) -> None:
    """Tell, at each step of a scheduler, what it now takes the clean latents to be."""
    step = scheduler.step

    @wraps(step)  # pipelines look at its signature
    def watched(
        model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        result = step(model_output, timestep, sample, *args, **kwargs)
        tell(_clean(scheduler, model_output, sample, result))
        return result

    scheduler.step = watched


def _clean(scheduler: Any, velocity: Tensor, sample: Tensor, result: Any) -> Tensor:
    """Latents without their noise, as a scheduler's last step estimates them."""
    if isinstance(result, tuple) and len(result) > 1:  # Euler, DDIM, DDPM: pred_original_sample
        return cast(Tensor, result[1])
    estimates = getattr(scheduler, "model_outputs", None)
    if estimates:  # DPM++, UniPC: what they have converted the model's output to
        return cast(Tensor, estimates[-1])
    if "FlowMatch" in type(scheduler).__name__:
        return cast(Tensor, sample - scheduler.sigmas[scheduler.step_index - 1] * velocity)
    return cast(Tensor, result[0])


class Alone:
    """Runs a pipeline on the caller's own thread, by diffusers alone: nothing waits, nothing is shared but weights."""

    def __init__(
        self, denoiser: Any, on_step: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self.denoiser, self.on_step = denoiser, on_step

    def adopt(self, pipe: Any, denoiser: str) -> Any:
        return scheduled_copy(pipe)
