"""What the families' pipelines take, and which of them an edit's inputs go to."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from retouch_server.engine.edit import Edit
from retouch_server.engine.engine import Engine
from retouch_server.engine.standins import Alone
from retouch_server.families import FAMILIES
from retouch_server.models import Inputs, Model
from tests.server.conftest import Load
from tests.server.stock import STOCK
from tests.server.test_equality import EDITS, drain, mask, picture, served
from tests.server.tiny import qwen


def test_every_family_names_pipelines_of_diffusers() -> None:
    import diffusers

    for checkpoint, family in FAMILIES.items():
        for name in {checkpoint, family.edit, family.masked, family.strength} - {None}:
            assert hasattr(diffusers, str(name))
        for name in {family.edit, family.masked, family.strength} - {None}:
            taken = inspect.signature(getattr(diffusers, str(name)).__call__).parameters
            assert ("mask_image" in taken) >= (name == family.masked)
            assert ("strength" in taken) >= (name == family.strength)
            assert family.images == 1 or "image" in taken
            assert ("negative_prompt" in taken) >= (family.negative is not None)
            assert ("image_reference" in taken) >= (
                name == family.masked and family.masked_images > 1
            )


@pytest.mark.parametrize(
    ("name", "plain", "strong", "masked"),
    [
        ("kontext", "FluxKontext", "FluxKontextInpaint", "FluxKontextInpaint"),
        ("diffusion", *["StableDiffusionImg2Img"] * 2, "StableDiffusionInpaint"),
        ("xl-inpaint", *["StableDiffusionXLInpaint"] * 3),
        ("klein", "Flux2Klein", *["Flux2KleinInpaint"] * 2),
        ("instruct", *["StableDiffusionInstructPix2Pix"] * 3),  # as blended, if at all
        ("qwen-plus", *["QwenImageEditPlus"] * 3),
    ],
)
def test_the_pipeline_follows_from_the_inputs(
    tiny_model: Load, name: str, plain: str, strong: str, masked: str
) -> None:
    chosen = tiny_model(name).pipeline_name
    assert chosen(mask=False, strength=False) == f"{plain}Pipeline"
    assert chosen(mask=False, strength=True) == f"{strong}Pipeline"
    assert chosen(mask=True, strength=False) == f"{masked}Pipeline"
    assert chosen(mask=True, strength=True) == f"{masked}Pipeline"


@pytest.mark.parametrize(
    ("name", "mask", "strength", "guidance", "negative"),
    [
        ("kontext", True, True, True, False),
        ("instruct", False, False, True, True),
        ("klein", True, True, True, False),
        ("klein-distilled", True, True, False, False),
        ("klein-kv", False, False, False, False),
        ("flux2", False, False, True, False),
        ("fill", True, True, True, False),
        ("qwen-edit", True, True, True, True),
        ("qwen-plus", False, False, True, True),
        ("z-image", True, True, True, True),
        ("sd3", True, True, True, True),
    ],
)
def test_what_a_model_takes(
    tiny_model: Load, name: str, mask: bool, strength: bool, guidance: bool, negative: bool
) -> None:
    model = tiny_model(name)
    assert (model.takes_mask, model.takes_strength) == (mask, strength)
    assert (model.takes_guidance, model.takes_negative_prompt) == (guidance, negative)


@pytest.mark.parametrize("name", STOCK)
def test_what_a_model_takes_it_heeds(name: str, tiny_model: Load) -> None:
    """Whatever is not refused changes the result: each image, the mask, strength, guidance and negative prompt."""
    model = served(tiny_model, name)
    family, negative = model.family, "dull" if model.takes_negative_prompt else None
    base = replace(EDITS[0], steps=10, negative_prompt=negative)
    asked = [base, replace(base, prompt="a sunset behind it")]
    if model.takes_guidance:
        asked.append(replace(base, guidance_scale=8.0))
    if negative:
        asked.append(replace(base, negative_prompt="grey and rainy"))
    if family.strength:
        asked += [replace(base, strength=0.7), replace(base, strength=0.5)]
    if not family.needs_mask:
        asked += with_others(base, family.images)
    if family.masked:
        asked += with_others(replace(base, mask=mask()), family.masked_images)
    edits = [Edit(model.run(inputs)) for inputs in asked]
    engine = Engine(model.denoiser)
    engine.submit(edits)
    drain(engine, edits)
    results = [edit.future.result() for edit in edits]
    for i, one in enumerate(results):
        for j, other in enumerate(results[:i]):
            assert (one - other).abs().max() > 1e-4, (asked[i], asked[j])


def with_others(base: Inputs, most: int) -> list[Inputs]:
    """The edit with as many images as it may have, each of them changed in turn."""
    pictures = [picture(20 + i) for i in range(most)]
    changed = [[*pictures[:i], picture(30), *pictures[i + 1 :]] for i in range(most)]
    return [replace(base, image=each[0], references=tuple(each[1:])) for each in changed]


def test_a_distilled_guidance_model_takes_a_negative_prompt_if_the_catalogue_says_how_much(
    tiny_model: Load,
) -> None:
    model = tiny_model("kontext")
    for scale, taken in ((1.0, False), (4.0, True)):
        entry = model.entry.model_copy(update={"arguments": {"true_cfg_scale": scale}})
        assert replace(model, entry=entry).takes_negative_prompt == taken


@pytest.mark.parametrize("name", ["instruct", "xl-instruct"])
def test_guidance_that_the_catalogue_switches_off_is_not_taken(tiny_model: Load, name: str) -> None:
    """InstructPix2Pix guides by nothing where `image_guidance_scale` is below 1."""
    model, results = tiny_model(name), []
    entry = model.entry.model_copy(update={"arguments": {"image_guidance_scale": 0.5}})
    off = replace(model, entry=entry)
    assert not off.takes_guidance
    assert not off.takes_negative_prompt
    pipe = off.pipelines[off.family.edit]
    for inputs in (EDITS[0], replace(EDITS[0], guidance_scale=9.0, negative_prompt="ugly")):
        said = given(off, inputs) | {"guidance_scale": inputs.guidance_scale}
        with torch.inference_mode():
            results.append(pipe(**said).images)
    assert torch.equal(*results)
    entry = model.entry.model_copy(update={"arguments": {"image_guidance_scale": 1}})
    assert replace(model, entry=entry).takes_guidance


@pytest.mark.parametrize(
    ("checkpoint", "module", "area", "scale"),
    [
        ("QwenImageEditPipeline", pipeline_qwenimage_edit, 1024 * 1024, 1),
        ("QwenImageEditInpaintPipeline", pipeline_qwenimage_edit_inpaint, 1024 * 1024, 1),
        ("QwenImageEditPlusPipeline", pipeline_qwenimage_edit_plus, 384 * 384, 1),
        ("LongCatImageEditPipeline", pipeline_longcat_image_edit, 1024 * 1024, 2),
    ],
)
def test_aspects_are_those_that_the_image_processor_takes(
    checkpoint: str, module: Any, area: int, scale: int
) -> None:
    """Of the picture that the text encoder is shown, after the pipeline has scaled it."""
    calculate = getattr(module.calculate_dimensions, "args", [module.calculate_dimensions])[0]
    most = FAMILIES[checkpoint].aspect
    for hundredths in range(100, most * 100 + 1):
        for aspect in (hundredths / 100, 100 / hundredths):
            width, height = (int(side) // scale for side in calculate(area, aspect)[:2])
            smart_resize(height, width)


def test_images_taken(tiny_model: Load) -> None:
    klein, plus = tiny_model("klein"), tiny_model("qwen-plus")
    assert klein.images_taken(mask=False, strength=False) == 4
    assert klein.images_taken(mask=True, strength=False) == 2
    assert klein.images_taken(mask=False, strength=True) == 2
    assert plus.images_taken(mask=True, strength=True) == 3  # blended over the same edit


def given(model: Model, inputs: Inputs) -> dict[str, Any]:
    """What the pipeline for an edit is called with."""
    name = model.pipeline_name(mask=inputs.mask is not None, strength=inputs.strength is not None)
    return model._arguments(model.pipelines[name], inputs, Alone(model.denoiser))


def test_guidance_is_the_argument_that_people_of_that_model_mean(tiny_model: Load) -> None:
    qwen, kontext = given(tiny_model("qwen-edit"), EDITS[0]), given(tiny_model("kontext"), EDITS[0])
    assert (qwen["true_cfg_scale"], qwen["negative_prompt"]) == (4.0, " ")
    assert "guidance_scale" not in qwen
    assert kontext["guidance_scale"] == 4.0
    assert "true_cfg_scale" not in kontext
    off = given(tiny_model("qwen-edit"), replace(EDITS[0], guidance_scale=1.0))
    assert "negative_prompt" not in off
    own = given(tiny_model("qwen-edit"), replace(EDITS[0], negative_prompt="dull"))
    assert own["negative_prompt"] == "dull"


def test_a_distilled_model_is_called_without_guidance(tiny_model: Load) -> None:
    """Klein's masked pipeline has a guidance of 8 by default, and may not know that the checkpoint is distilled."""
    model = tiny_model("klein-distilled")
    assert given(model, replace(EDITS[0], mask=mask()))["guidance_scale"] == 1.0
    assert given(tiny_model("klein"), EDITS[0])["guidance_scale"] == 4.0


def test_references_go_where_the_pipeline_takes_them(tiny_model: Load) -> None:
    model, inputs = tiny_model("klein"), replace(EDITS[0], references=(picture(1), picture(2)))
    assert given(model, inputs)["image"] == [inputs.image, *inputs.references]
    masked = given(model, replace(inputs, mask=mask(), references=(picture(1),)))
    assert (masked["image"], masked["image_reference"]) == (inputs.image, picture(1))


def test_a_result_of_the_pipelines_own_size_is_scaled(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QwenImageEditInpaint makes a megapixel of whatever it is given, and fails if asked for another size."""
    monkeypatch.setattr(qwen, "AREA", 96 * 96)
    model, inputs = tiny_model("qwen-edit"), replace(EDITS[0], mask=mask(), guidance_scale=1.0)
    result = model.run(inputs)(Alone(model.denoiser))
    pipe = model.pipelines["QwenImageEditInpaintPipeline"]
    with torch.inference_mode():
        own = pipe(**given(model, inputs) | {"output_type": "pil"}).images[0]
    assert own.size == (96, 96)
    scaled = np.asarray(own.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    assert abs(result[0].permute(1, 2, 0).numpy() - scaled).max() < 0.01


def test_steps_are_counted_where_the_pipeline_has_no_callback(tiny_model: Load) -> None:
    model, steps = tiny_model("xl-instruct"), list[tuple[int, int]]()
    model.run(EDITS[0])(Alone(model.denoiser, on_step=lambda *step: steps.append(step)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
