"""The model that ships: loads in the stock pipeline, follows instructions it never saw, and is small."""

from __future__ import annotations

import importlib.resources
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline
from PIL import Image
from torch import Tensor

from retouch_server.pocket import MODEL_DIR, data, edits, evaluate, phrases

# By how many dB the result must at least be nearer to the true edit than the untouched photo is,
# in the worse of the wordings. Blur and what follows are of a neighbourhood, and harder to learn.
GAINS = {
    "invert": 20.0,
    "brighter": 8.0,
    "darker": 15.0,
    "contrast": 8.0,
    "saturate": 8.0,
    "desaturate": 12.0,
    "warm": 9.0,
    "cool": 12.0,
    "sunset": 12.0,
    "night": 15.0,
    "fog": 9.0,
    "vignette": 10.0,
    "red": 12.0,
    "blue": 15.0,
    "yellow": 12.0,
    "purple": 12.0,
    "orange": 12.0,
    "pink": 12.0,
    "cyan": 15.0,
    "blur": 4.0,
    "sharpen": 2.0,
    "sketch": 3.0,
    "pixelate": 5.0,
}
UNCHANGED_DB = 32.0
NOTHING_TO_DO = ("", "don't do anything to the picture", "add a dog", "put a hat on her")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return evaluate.load(MODEL_DIR)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A portrait held out of training, [3, 128, 128] in 0..1."""
    with importlib.resources.files("retouch_cli").joinpath("sample.jpg").open("rb") as file:
        return data.square(data.to_tensor(Image.open(file)), 128)


def test_loads_as_any_pipeline_does() -> None:
    pipe = DiffusionPipeline.from_pretrained(MODEL_DIR, use_safetensors=True)
    assert type(pipe) is StableDiffusionInstructPix2PixPipeline
    assert pipe.vae_scale_factor == 2


def test_weights_fit_in_the_repository() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.rglob("*.safetensors")) <= 32 * 2**20
    assert not list(MODEL_DIR.rglob("*.bin"))


@pytest.mark.parametrize("edit", GAINS)
def test_follows_wording_it_never_saw(pipeline: Any, photo: Tensor, edit: str) -> None:
    target = edits.apply(edit, photo)
    results = evaluate.edit(pipeline, photo, list(evaluate.WORDINGS[edit]))
    gains = [evaluate.psnr(result, target) - evaluate.psnr(photo, target) for result in results]
    assert min(gains) > GAINS[edit], gains


@pytest.mark.parametrize(
    ("edit", "prompt"),
    [
        ("grayscale", "I'd like this as a black & white photograph"),
        ("sepia", "that old sepia look"),
    ],
)
def test_loses_the_colours(pipeline: Any, photo: Tensor, edit: str, prompt: str) -> None:
    target = edits.apply(edit, photo)
    result = evaluate.edit(pipeline, photo, [prompt])[0]
    assert evaluate.psnr(result, target) > evaluate.psnr(photo, target) + 8.0


def test_slightly_goes_half_the_way(pipeline: Any, photo: Tensor) -> None:
    prompts = ["make it darker", "make it slightly darker"]
    dark, darkish = evaluate.edit(pipeline, photo, prompts)
    assert dark.mean() + 0.03 < darkish.mean() < photo.mean() - 0.03


def test_held_out_wordings_are_not_of_the_grammar() -> None:
    rng = random.Random(0)
    drawn = {phrases.draw(edit, rng).text for edit in edits.EDITS for _ in range(500)}
    asked = {text.lower() for texts in evaluate.WORDINGS.values() for text in texts if text}
    assert not drawn & asked


@pytest.mark.parametrize("prompt", NOTHING_TO_DO)
def test_leaves_the_photo_when_there_is_nothing_to_do(
    pipeline: Any, photo: Tensor, prompt: str
) -> None:
    assert evaluate.psnr(evaluate.edit(pipeline, photo, [prompt])[0], photo) > UNCHANGED_DB


def test_the_seed_decides(pipeline: Any, photo: Tensor) -> None:
    first, again, other = (
        evaluate.edit(pipeline, photo, ["make it night"], steps=2, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_guidance(pipeline: Any, photo: Tensor, guidance: float) -> None:
    """More guidance goes further from the photo."""
    prompt = ["turn the afternoon into a moonlit night"]
    result = evaluate.edit(pipeline, photo, prompt, guidance=guidance)[0]
    assert result.mean() < photo.mean() - 0.1
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("size", [(64, 104), (136, 72)])
def test_takes_any_multiple_of_eight(pipeline: Any, size: tuple[int, int]) -> None:
    x = torch.rand(3, *size)
    assert evaluate.edit(pipeline, x, ["blur it"], steps=1).shape == (1, 3, *size)


def test_every_edit_has_wordings_and_a_target() -> None:
    x = torch.rand(2, 3, 32, 40)
    rng = random.Random(0)
    assert set(evaluate.WORDINGS) == {"", *edits.EDITS}
    for edit in edits.EDITS:
        target = edits.apply(edit, x)
        assert target.shape == x.shape
        assert target.min() >= 0
        assert target.max() <= 1
        assert all("{" not in phrases.draw(edit, rng).text for _ in range(200))


def test_the_package_is_light() -> None:
    code = "import sys, retouch_server.pocket as p; p.MODEL_DIR; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
