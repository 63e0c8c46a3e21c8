"""What a request may ask of a model of each family, and what its further images become."""

from __future__ import annotations

import io
from dataclasses import replace
from string import ascii_letters
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from retouch.v1 import image_edit_pb2 as pb
from retouch_server import images, replies, validation
from retouch_server.catalog import Defaults, Limits
from retouch_server.engine.edit import Edit
from retouch_server.engine.engine import Engine
from retouch_server.engine.standins import Alone
from retouch_server.errors import InvalidRequest
from retouch_server.images import InputLimits
from retouch_server.models import Inputs
from tests.server.conftest import Load
from tests.server.test_equality import drain, mask, picture

LIMITS = InputLimits()


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


PHOTO, MASK = png(picture(0)), png(mask())
ALL = png(Image.new("L", (64, 64), 255))
# 301 bytes of ordinary English, of which LongCat's pipeline makes more than it takes.
CONTRACTIONS = (
    "Remove the dog's leash, the cat's collar, the girl's hat, the boy's bag, the man's tie, the woman's scarf, the "
    "baby's bib, the chef's knife and the king's crown; don't touch what's behind, it's fine and I'm happy, let's keep "
    "everything that's in the car's mirror, the bike's lamp and the house's door."
)
# And what it would take seconds to divide.
HOSTILE = " ".join(f"{a}'{b}" for a in ascii_letters for b in ascii_letters)[:4000]


def prepared(load: Load, model: str, **fields: Any) -> Inputs:
    usual: dict[str, Any] = {"images": [PHOTO], "prompt": "make it red"}
    request = pb.EditRequest(**(usual | fields))
    plan = validation.plan(request, load(model), streamed=False)
    return validation.prepare(request, plan, load(model), LIMITS)[0]


def refused(load: Load, model: str, **fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as failure:
        prepared(load, model, **fields)
    return {v.field: v.description for v in failure.value.violations}


@pytest.mark.parametrize(
    ("model", "fields", "named", "words"),
    [
        ("instruct", {"images": [PHOTO] * 2}, "images[1]", "takes one image"),
        ("kontext", {"images": [PHOTO] * 2}, "images[1]", "one image without a mask or a strength"),
        ("klein", {"images": [PHOTO] * 5}, "images[4]", "takes 4 images"),
        ("klein", {"images": [PHOTO] * 3, "mask": MASK}, "images[2]", "2 images with a mask"),
        ("klein", {"images": [PHOTO] * 3, "strength": 0.5}, "images[2]", "a mask or a strength"),
        ("klein", {"negative_prompt": "dull"}, "negative_prompt", "takes none"),
        ("klein-distilled", {"guidance_scale": 2.0}, "guidance_scale", "takes none"),
        ("klein-kv", {"mask": MASK}, "mask", "takes none"),
        ("fill", {}, "mask", "needs one, all white to edit"),
        ("inpaint", {"strength": 1.0}, "mask", "or a strength below 1"),
        ("qwen-plus", {"strength": 0.5}, "strength", "takes none"),
        ("kontext", {"negative_prompt": "dull"}, "negative_prompt", "takes none"),
        ("qwen-edit", {"negative_prompt": "x", "guidance_scale": 1.0}, "negative_prompt", "above 1"),
        ("z-image", {"negative_prompt": "x", "guidance_scale": 0.0}, "negative_prompt", "above 0"),
        ("klein", {"size": pb.Size(width=128, height=48)}, "size", "sides of 64 pixels or more"),
        ("klein", {"images": [png(picture(1, (640, 64)))]}, "images[0]", "aspects up to 8:1"),
        ("klein", {"images": [PHOTO, png(picture(1, (40, 90)))]}, "images[1]", "64 pixels"),
        ("kontext", {"images": [PHOTO, png(picture(1, (15, 90)))], "mask": MASK}, "images[1]", "16"),
        ("kontext", {"images": [PHOTO, png(picture(1, (900, 20)))], "mask": MASK}, "images[1]", "16"),
        ("qwen-edit", {"images": [png(picture(1, (3216, 16)))]}, "images[0]", "aspects up to 160:1"),
        ("sd3", {"size": pb.Size(width=272, height=64)}, "size.width", "up to 256"),
        ("sd3", {"size": pb.Size(width=64, height=272)}, "size.height", "up to 256"),
        ("longcat", {"prompt": "ü" * 300}, "prompt", "more than the 512 tokens"),
        ("longcat", {"prompt": "\u0958" * 170}, "prompt", "more than the 512 tokens"),
        ("longcat", {"prompt": CONTRACTIONS}, "prompt", "more than the 512 tokens"),
        ("longcat", {"prompt": HOSTILE}, "prompt", "more than the 512 tokens"),
        ("longcat", {"negative_prompt": CONTRACTIONS}, "negative_prompt", "more than the 512"),
        ("qwen-edit", {"prompt": "a" * 2001}, "prompt", "more than the 2000 tokens"),
        ("qwen-plus", {"negative_prompt": "é" * 1001}, "negative_prompt", "more than the 2000"),
        *((model, {field: f"put {mark} here"}, field, f"{mark} has a meaning of its own")
          for model in ("qwen-edit", "qwen-plus", "longcat")
          for field, mark in (("prompt", "<|image_pad|>"), ("negative_prompt", "<|vision_start|>"),
                              ("prompt", "<|vision_end|>"), ("prompt", "<|im_end|>"))),
        ("qwen-edit", {"prompt": "<|image_pad|>", "mask": MASK}, "prompt", "<|image_pad|>"),
        ("qwen-plus", {"images": [PHOTO, b"text"]}, "images[1]", "not a PNG"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_honour_is_refused_by_name(
    tiny_model: Load, model: str, fields: dict[str, Any], named: str, words: str
) -> None:
    violations = refused(tiny_model, model, **fields)
    assert list(violations) == [named]
    assert words in violations[named]


def test_z_image_is_guided_from_zero_on(tiny_model: Load) -> None:
    inputs = prepared(tiny_model, "z-image", negative_prompt="dull", guidance_scale=0.5)
    assert (inputs.negative_prompt, inputs.guidance_scale) == ("dull", 0.5)


def test_a_filling_model_takes_a_strength_instead_of_a_mask(tiny_model: Load) -> None:
    assert prepared(tiny_model, "fill", strength=0.5).mask is None
    assert prepared(tiny_model, "inpaint", mask=MASK).mask is not None


@pytest.mark.parametrize("model", ["fill", "inpaint", "xl-inpaint"])
def test_a_filling_model_edits_everywhere_under_a_white_mask(tiny_model: Load, model: str) -> None:
    inputs = prepared(tiny_model, model, mask=ALL)
    assert inputs.mask is not None
    assert inputs.mask.getextrema() == (255, 255)
    assert "all white" in refused(tiny_model, model)["mask"]
    assert "Leave it out" in refused(tiny_model, "kontext", mask=ALL)["mask"]


@pytest.mark.parametrize(
    ("model", "prompt"),
    [
        ("longcat", CONTRACTIONS[:60]),
        ("longcat", "ü" * 256),
        ("longcat", "write 'hello' and \"x\" " + "a" * 400),
        ("qwen-edit", "a" * 2000),
        ("qwen-plus", "a" * 2000),
        ("klein", "put <|image_pad|><|im_end|> here"),
        ("z-omni", "<|vision_start|><|vision_end|><|im_end|>"),
        ("qwen", "put <|image_pad|><|im_end|> here"),
        ("flux2", "[IMG] <|image_pad|>"),
    ],
)
def test_prompts_that_are_not_refused_run(tiny_model: Load, model: str, prompt: str) -> None:
    inputs = prepared(tiny_model, model, prompt=prompt, num_inference_steps=2)
    loaded = tiny_model(model)
    edit, engine = Edit(loaded.run(inputs)), Engine(loaded.denoiser)
    engine.submit([edit])
    drain(engine, [edit])
    assert edit.future.result().isfinite().all()


def test_an_unset_size_fits_the_models_longest_side(tiny_model: Load) -> None:
    inputs = prepared(tiny_model, "sd3", images=[png(picture(1, (800, 200)))])
    assert inputs.image.size == (256, 64)
    loaded = tiny_model("sd3")
    assert loaded.run(replace(inputs, steps=2))(Alone(loaded.denoiser)).shape == (1, 3, 64, 256)


@given(
    st.integers(1, 8000), st.integers(1, 500), st.sampled_from([8, 16]),
    st.integers(64, 2**20), st.integers(0, 5000), st.sampled_from([256, 8192]),
)  # fmt: skip
def test_an_unset_size_is_one_that_may_be_asked_for(
    w: int, h: int, multiple: int, least: int, more: int, longest: int
) -> None:
    limits = Limits(min_pixels=least, max_pixels=least + more)
    assume(any(images.sizes(multiple, limits, longest)))
    size = images.output_size((w, h), None, multiple, limits, longest)
    assert images.output_size((1, 1), size, multiple, limits, longest) == size


def test_a_strength_of_the_catalogue_counts_too(tiny_model: Load) -> None:
    model = tiny_model("klein")
    entry = model.entry.model_copy(update={"defaults": Defaults(strength=0.5)})
    assert "images[2]" in refused(lambda _: replace(model, entry=entry), "", images=[PHOTO] * 3)


def test_references_keep_their_aspect_and_shrink_to_the_outputs_area(tiny_model: Load) -> None:
    clear = Image.new("RGBA", (70, 70), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = io.BytesIO()
    picture(2, (320, 160)).save(turned, "PNG", exif=exif)
    size = pb.Size(width=128, height=64)
    inputs = prepared(tiny_model, "klein", images=[PHOTO, png(clear), turned.getvalue()], size=size)
    assert inputs.image.size == (128, 64)
    small, large = inputs.references
    assert (small.size, small.mode, small.getpixel((0, 0))) == ((70, 70), "RGB", (255, 255, 255))
    assert large.size == (64, 128)


def test_what_a_model_takes_is_listed(tiny_model: Load) -> None:
    klein = replies.describe(tiny_model("klein"), LIMITS)
    assert (klein.pipeline, klein.limits.max_images) == ("Flux2KleinPipeline", 4)
    assert klein.capabilities.mask
    assert not klein.capabilities.negative_prompt
    distilled = replies.describe(tiny_model("klein-distilled"), LIMITS)
    assert not distilled.capabilities.guidance_scale
    assert not distilled.defaults.HasField("guidance_scale")
    qwen = replies.describe(tiny_model("qwen-plus"), LIMITS)
    assert (qwen.defaults.guidance_scale, qwen.limits.max_images) == (4.0, 3)
    assert qwen.capabilities.negative_prompt
