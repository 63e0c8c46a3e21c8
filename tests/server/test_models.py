"""Loading, and what a pipeline is called with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retouch_server.calls import OURS
from retouch_server.catalog import Defaults, Limits, ModelEntry
from retouch_server.engine.standins import Alone
from retouch_server.loading import LoadError, load, pick_device
from retouch_server.models import Flagged
from tests.server import tiny
from tests.server.conftest import Folder, Load
from tests.server.test_equality import EDITS, mask, picture


def fails(entry: ModelEntry) -> str:
    with pytest.raises(LoadError) as failure:
        load(entry, "cpu")
    message = str(failure.value)
    assert "\n" not in message
    assert message.startswith(f"model {entry.id}: ")
    return message


def test_a_missing_folder() -> None:
    assert "there is no folder /nowhere/model" in fails(ModelEntry(id="m", source="/nowhere/model"))
    assert "there is no folder ./model" in fails(ModelEntry(id="m", source="./model"))


def test_a_folder_that_holds_no_pipeline(tmp_path: Path) -> None:
    assert "no model_index.json" in fails(ModelEntry(id="m", source=str(tmp_path)))


@pytest.fixture
def copied(tiny_folder: Folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder("instruct"), tmp_path / "copied"))


def test_a_pipeline_that_does_not_edit(copied: Path) -> None:
    tiny.rewrite_index(copied, _class_name="StableAudioPipeline")
    assert "StableAudioPipeline is not a pipeline that edits" in fails(
        ModelEntry(id="m", source=str(copied))
    )


def test_classes_of_other_libraries_are_refused(copied: Path) -> None:
    """A checkpoint names the classes of its parts; naming somebody's module would run it."""
    (copied / "unet" / "evil.py").write_text("raise SystemExit('ran')")
    tiny.rewrite_index(copied, unet=["evil", "UNet2DConditionModel"])
    assert "its unet is of evil, which is not trusted" in fails(
        ModelEntry(id="m", source=str(copied))
    )
    tiny.rewrite_index(copied, _class_name=["pipeline", "Evil"])
    assert "is not a pipeline that edits" in fails(ModelEntry(id="m", source=str(copied)))


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_pickles_are_refused(copied: Path, part: str) -> None:
    weights = copied / f"{part}.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    (copied / part.replace("text_encoder/model", "text_encoder/pytorch_model")).with_suffix(
        ".bin"
    ).touch()
    assert "cannot load" in fails(ModelEntry(id="m", source=str(copied)))


def test_masked_and_strength_pipelines_share_the_weights(tiny_model: Load) -> None:
    model = tiny_model("kontext")
    edit, masked = (model.pipelines[f"FluxKontext{kind}Pipeline"] for kind in ("", "Inpaint"))
    assert edit.transformer is masked.transformer is model.denoiser
    assert edit.vae is masked.vae
    assert not model.denoiser.training
    assert not edit.text_encoder_2.training
    assert model.parameters > 10_000


def test_an_edit_leaves_the_shared_pipeline_as_it_was(tiny_model: Load) -> None:
    model = tiny_model("diffusion")
    pipe = model.pipelines["StableDiffusionImg2ImgPipeline"]
    before = (dict(pipe.config), pipe.unet, pipe.scheduler, pipe.scheduler.num_inference_steps)
    result = model.run(EDITS[0])(Alone(model.denoiser))
    assert result.shape == (1, 3, 64, 64)
    assert before == (
        dict(pipe.config),
        pipe.unet,
        pipe.scheduler,
        pipe.scheduler.num_inference_steps,
    )


@pytest.mark.parametrize("strength", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("name", ["kontext", "diffusion", "sd3", "z-image", "klein"])
def test_any_strength_runs_at_least_a_step(tiny_model: Load, strength: float, name: str) -> None:
    model = tiny_model(name)
    steps: list[tuple[int, int]] = []
    inputs = replace(EDITS[0], strength=strength, steps=4)
    host = Alone(model.denoiser, on_step=lambda *step: steps.append(step))
    model.run(inputs)(host)
    assert steps == ([(1, 1)] if strength < 1 else [(i, 4) for i in range(1, 5)])
    assert model.blend(inputs) == (0.0 if strength == 0 else 1.0)


def test_the_pipelines_own_strength_runs_at_least_a_step_too(tiny_model: Load) -> None:
    """SDXL's 0.3 of three steps is none."""
    model, steps = tiny_model("xl"), list[tuple[int, int]]()
    assert model.defaults.strength == 0.3
    model.run(EDITS[0])(Alone(model.denoiser, on_step=lambda *step: steps.append(step)))
    assert steps == [(1, 1)]


def test_defaults_are_the_catalogues_else_the_pipelines(tiny_model: Load) -> None:
    model = tiny_model("diffusion")
    assert model.defaults == Defaults(strength=0.8, guidance_scale=7.5, num_inference_steps=50)
    entry = model.entry.model_copy(update={"defaults": Defaults(guidance_scale=2.0)})
    assert replace(model, entry=entry).defaults.guidance_scale == 2.0
    assert tiny_model("qwen-plus").defaults.guidance_scale == 4.0
    # More than a request may ask for, and what the model wants.
    assert tiny_model("fill").defaults.guidance_scale == 30.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arguments": {"nonsense": 1}}, "arguments.nonsense: its pipelines take no such argument"),
        ({"arguments": {"num_inference_steps": 1}}, "num_inference_steps: a request says it"),
        ({"arguments": {"prompt_embeds": "x"}}, "arguments.prompt_embeds: a request says it"),
        ({"arguments": {"num_images_per_prompt": 2}}, "num_images_per_prompt: a request says it, as n"),
        ({"arguments": {"return_dict": False}}, "arguments.return_dict: results are read by name"),
        ({"arguments": {"padding_mask_crop": 8}}, "arguments.padding_mask_crop: use the entry's mask_crop"),
        ({"arguments": {"latents": 1}}, "arguments.latents: its pipelines take no int there"),
        ({"arguments": {"eta": "q"}}, "arguments.eta: its pipelines take no str there"),
        ({"arguments": {"self": 1}}, "arguments.self"),
        ({"arguments": {"image_guidance_scale": 0.5}, "defaults": Defaults(guidance_scale=7.5)},
         "defaults.guidance_scale: it takes none"),
        ({"defaults": Defaults(strength=0.5)}, "defaults.strength: it takes none"),
    ],
)  # fmt: skip
def test_a_catalogue_that_asks_what_the_model_cannot_do(
    tiny_folder: Folder, change: dict[str, Any], words: str
) -> None:
    entry = ModelEntry(id="m", source=str(tiny_folder("instruct")))
    assert words in fails(entry.model_copy(update=change))


@pytest.mark.parametrize(
    ("name", "limits", "words"),
    [
        ("kontext", (64, 64), "with sides in multiples of 16 from 16 to 8192, no output has 64 to 64"),
        ("kontext", (65535, 65535), "no output has 65535 to 65535 pixels"),
        ("klein", (64, 1024), "with sides in multiples of 16 from 64 to 8192"),
        ("sd3", (300 * 300, 512 * 512), "with sides in multiples of 16 from 16 to 256"),
    ],
)  # fmt: skip
def test_limits_that_no_output_is_within(
    tiny_folder: Folder, name: str, limits: tuple[int, int], words: str
) -> None:
    allowed = Limits(min_pixels=limits[0], max_pixels=limits[1])
    assert words in fails(ModelEntry(id="m", source=str(tiny_folder(name)), limits=allowed))


def test_arguments_go_to_every_pipeline_after_what_a_request_says(tiny_folder: Folder) -> None:
    arguments: dict[str, bool | int | float | str] = {"max_sequence_length": 8, "true_cfg_scale": 3}
    entry = ModelEntry(id="m", source=str(tiny_folder("kontext")), arguments=arguments)
    model = load(entry, "cpu")
    for pipe in model.pipelines.values():
        given = model._arguments(pipe, EDITS[0], Alone(model.denoiser))
        assert given.items() >= arguments.items()
        assert given["num_inference_steps"] == EDITS[0].steps


def test_what_a_request_says_is_listed(tiny_model: Load) -> None:
    """`OURS` is every argument that a request may decide, over all families, but for a scale that is one's guidance."""
    full = replace(EDITS[0], strength=0.5, mask=mask(), negative_prompt="dull")
    full = replace(full, references=(picture(1),))
    names: set[str] = set()
    for name in ("kontext", "diffusion", "klein"):
        model = tiny_model(name)
        for pipe in model.pipelines.values():
            names |= model._arguments(pipe, full, Alone(model.denoiser)).keys()
    assert names == OURS


def test_a_flagged_result_is_an_error(tiny_model: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("instruct")
    cls = type(model.pipelines[model.family.edit])
    monkeypatch.setattr(cls, "run_safety_checker", lambda self, image, *_: (image, [True]))
    with pytest.raises(Flagged):
        model.run(EDITS[0])(Alone(model.denoiser))


def test_a_checkpoint_with_a_safety_checker_of_diffusers_is_trusted(copied: Path) -> None:
    """Most published Stable Diffusion checkpoints have one; here its weights are missing, another error."""
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    tiny.rewrite_index(copied, safety_checker=checker)
    assert "not trusted" not in fails(ModelEntry(id="m", source=str(copied)))


def test_devices() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda", "mps")
