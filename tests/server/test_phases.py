"""Encodings and decodings: they take turns with the denoiser, and what was encoded once is not encoded again."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from retouch_server.engine.cache import Encodings
from retouch_server.engine.coroutine import Coroutine
from retouch_server.engine.edit import Edit
from retouch_server.engine.engine import Engine
from retouch_server.engine.rows import Rows
from retouch_server.engine.standins import Alone, own_copy
from retouch_server.models import Model
from tests.server.conftest import Folder, Load
from tests.server.stock import plain
from tests.server.test_equality import EDITS, TOLERANCE
from tests.server.test_turns import run


class Log:
    """What the parts of a model did, in order."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        pipe = model.pipelines[model.family.edit]
        self.of(monkeypatch, pipe.vae, "encode", "image")
        self.of(monkeypatch, pipe.vae, "decode", "decode")
        self.of(monkeypatch, pipe.text_encoder, "forward", "prompt")
        self.of(monkeypatch, model.denoiser, "forward", "forward")

    def of(self, monkeypatch: pytest.MonkeyPatch, part: Any, method: str, name: str) -> None:
        work = getattr(part, method)

        def logged(*args: Any, **kwargs: Any) -> Any:
            self.done.append(name)
            return work(*args, **kwargs)

        logged.__wrapped__ = work  # type: ignore[attr-defined]
        monkeypatch.setattr(part, method, logged, raising=False)


def test_the_second_edit_of_a_photo_encodes_nothing(
    tiny_model: Load, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lookups = tiny_model("instruct"), Counter[tuple[str, bool]]()
    log = Log(model, monkeypatch)
    engine = Engine(
        model.denoiser,
        cache_bytes=2**20,
        on_lookup=lambda kind, hit: lookups.update([(kind, hit)]),
    )
    first, second = EDITS[0], replace(EDITS[0], seed=5)
    edits = [Edit(model.run(first)), Edit(model.run(second))]
    run(engine, edits[:1])
    encoded = Counter(log.done)
    run(engine, edits[1:])
    assert encoded["image"] == 1
    assert encoded["prompt"] >= 1
    for kind in ("image", "prompt"):
        assert Counter(log.done)[kind] == encoded[kind]
        assert lookups[kind, True] == lookups[kind, False] == 1
    assert Counter(log.done)["decode"] == 2
    assert 0 < engine.encodings.bytes <= 2**20
    for edit, inputs in zip(edits, (first, second), strict=True):
        alone = plain("instruct", inputs, tiny_folder)
        assert (edit.future.result() - alone).abs().max() <= TOLERANCE


def test_the_images_of_one_request_share_their_encodings(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("kontext")
    log = Log(model, monkeypatch)
    edits = [Edit(model.run(replace(EDITS[0], seed=seed))) for seed in range(4)]
    run(Engine(model.denoiser, cache_bytes=2**20), edits)
    assert Counter(log.done)["image"] == 1
    assert Counter(log.done)["decode"] == 4
    assert Counter(log.done)["forward"] == EDITS[0].steps


def test_with_no_room_to_hold_all_is_encoded_anew(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("instruct")
    log = Log(model, monkeypatch)
    run(Engine(model.denoiser), [Edit(model.run(EDITS[0])) for _ in range(2)])
    assert Counter(log.done)["image"] == 2


def test_other_arguments_are_other_encodings(tiny_model: Load, tiny_folder: Folder) -> None:
    model = tiny_model("instruct")
    engine = Engine(model.denoiser, cache_bytes=2**20)
    for inputs in (EDITS[0], replace(EDITS[0], negative_prompt="dull"), EDITS[1]):
        edit = Edit(model.run(inputs))
        run(engine, [edit])
        with torch.inference_mode():
            alone = model.run(inputs)(Alone(model.denoiser))
        assert (edit.future.result() - alone).abs().max() <= TOLERANCE


def test_a_cancelled_edit_leaves_between_its_encodings(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("instruct")
    log = Log(model, monkeypatch)
    leaving = Edit(model.run(EDITS[0]))
    cls = type(model.pipelines[model.family.edit])
    encode = cls._encode_prompt

    def then_leave(*args: Any, **kwargs: Any) -> Any:
        leaving.future.cancel()
        return encode(*args, **kwargs)

    monkeypatch.setattr(cls, "_encode_prompt", then_leave)
    engine = Engine(model.denoiser)
    run(engine, [leaving])
    assert leaving.future.cancelled()
    assert "prompt" in log.done
    assert "image" not in log.done
    assert engine.running == 0


@pytest.mark.parametrize("name", ["instruct", "diffusion", "kontext", "qwen-plus"])
def test_an_ended_edit_leaves_nothing_to_the_garbage_collector(tiny_model: Load, name: str) -> None:
    """An engine's edits would pile up on the device, whose want of memory wakes no collector."""
    model = tiny_model(name)
    engine = Engine(model.denoiser, reuse=0.05, cache_bytes=2**20)

    def one(seed: int, cancelled: bool) -> list[weakref.ref[Any]]:
        edit = Edit(model.run(replace(EDITS[0], seed=seed)))
        if cancelled:
            edit.on_step = lambda done, total: (edit.future.cancel(), None)[1]
        run(engine, [edit])
        with torch.inference_mode():
            engine.step()
        assert edit.latents is not None
        edit.on_step = lambda done, total: None
        return [weakref.ref(edit), weakref.ref(edit.latents)]

    one(0, cancelled=False)
    gc.collect()
    gc.disable()
    try:
        ended = [*one(1, cancelled=False), *one(2, cancelled=True)]
        assert [ref() for ref in ended] == [None] * 4
    finally:
        gc.enable()


def test_a_stand_in_passes_for_the_part(tiny_model: Load) -> None:
    model = tiny_model("diffusion")
    pipe = model.pipelines["StableDiffusionImg2ImgPipeline"]
    own = own_copy(
        pipe, "unet", Coroutine(Edit(model.run(EDITS[0])), pipe.unet, Rows(pipe.unet), Encodings(0))
    )
    assert isinstance(own.vae, AutoencoderKL)
    assert isinstance(own.unet, type(pipe.unet))
    assert own.vae.config is pipe.vae.config
    # SDXL's pipelines move the VAE to float32 and back around a call, on weights that others use.
    assert own.vae.to(dtype=torch.float64) is own.vae
    assert pipe.vae.dtype == torch.float32
    own.unet._reset_stateful_cache()
    assert "_reset_stateful_cache" not in vars(pipe.unet)
    assert own.scheduler is not pipe.scheduler
    assert vars(pipe)["vae"] is pipe.vae
