"""What a request may ask of a model of each family, and what its further images become."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from retouch.v1 import image_edit_pb2 as pb
from retouch_server import replies, validation
from retouch_server.catalog import Defaults
from retouch_server.errors import InvalidRequest
from retouch_server.images import InputLimits
from retouch_server.models import Inputs
from tests.server.conftest import Load
from tests.server.test_equality import mask, picture

LIMITS = InputLimits()


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


PHOTO, MASK = png(picture(0)), png(mask())


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
        ("fill", {}, "mask", "needs one, or a strength below 1"),
        ("inpaint", {"strength": 1.0}, "mask", "needs one, or a strength below 1"),
        ("qwen-plus", {"strength": 0.5}, "strength", "takes none"),
        ("kontext", {"negative_prompt": "dull"}, "negative_prompt", "takes none"),
        ("qwen-edit", {"negative_prompt": "x", "guidance_scale": 1.0}, "negative_prompt", "above 1"),
        ("z-image", {"negative_prompt": "x", "guidance_scale": 0.0}, "negative_prompt", "above 0"),
        ("klein", {"size": pb.Size(width=128, height=48)}, "size", "sides of 64 pixels or more"),
        ("klein", {"images": [png(picture(1, (640, 64)))]}, "images[0]", "aspect of at most 8:1"),
        ("klein", {"images": [PHOTO, png(picture(1, (40, 90)))]}, "images[1]", "64 pixels"),
        ("longcat", {"prompt": "ü" * 300}, "prompt", "at most 512 bytes"),
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
