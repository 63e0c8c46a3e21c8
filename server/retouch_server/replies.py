"""What leaves the server: pictures, timings, the models, the load report."""

from __future__ import annotations

import struct

import numpy as np
from torch import Tensor

from retouch.v1 import image_edit_pb2 as pb

from . import images, prompts
from .engine.edit import Edit
from .engine.engine import Engine
from .errors import ModelFailed
from .models import Inputs, Model
from .previews import Previewer
from .validation import MAX_PREVIEWS, PB_FORMATS, Plan


def picture(model: Model, plan: Plan, inputs: Inputs, tensor: Tensor) -> pb.EditedImage:
    """A result (1x3xHxW, 0..1) as encoded bytes. For the pool."""
    pixels = to_pixels(tensor)
    if not np.isfinite(pixels).all():
        raise ModelFailed("the model's result is not a number")
    return _encoded(model, plan, inputs, pixels)


def preview(
    model: Model, previewer: Previewer, plan: Plan, inputs: Inputs, latents: Tensor
) -> pb.EditedImage:
    """Latents of an unfinished edit as a picture of the output's size. For the pool. Raises ValueError."""
    return _encoded(model, plan, inputs, previewer.preview(latents, inputs.image.size))


def to_pixels(tensor: Tensor) -> images.Pixels:
    """1x3xHxW, float, as height x width x 3."""
    pixels: images.Pixels = tensor[0].permute(1, 2, 0).numpy()
    return pixels


def _encoded(model: Model, plan: Plan, inputs: Inputs, pixels: images.Pixels) -> pb.EditedImage:
    """What the model made, laid over the input: outside the mask that is kept exactly."""
    base, mask = inputs.image, inputs.mask
    if inputs.region:
        base, mask, pixels = inputs.region.base, inputs.region.mask, inputs.region.paste(pixels)
    pixels = images.composite(pixels, base, mask, model.blend(inputs))
    return pb.EditedImage(
        data=images.encode(pixels, plan.format, plan.quality),
        format=PB_FORMATS[plan.format],
        width=base.width,
        height=base.height,
        seed=inputs.seed,
        revised_prompt=prompts.read(inputs.prompt, model.readers),
    )


def timings(edit: Edit) -> pb.Timings:
    return pb.Timings(
        queue_seconds=edit.queue_seconds,
        encode_seconds=edit.encode_seconds,
        denoise_seconds=edit.denoise_seconds,
        decode_seconds=edit.decode_seconds,
    )


def describe(model: Model, limits: images.InputLimits) -> pb.Model:
    """What ListModels says of a model."""
    defaults = model.defaults
    return pb.Model(
        id=model.entry.id,
        pipeline=model.family.edit,
        created=model.created,
        capabilities=pb.Capabilities(
            mask=model.takes_mask,
            strength=model.takes_strength,
            negative_prompt=model.takes_negative_prompt,
            max_mode=model.entry.max is not None,
            guidance_scale=model.takes_guidance,
        ),
        defaults=pb.Defaults(
            strength=defaults.strength if model.takes_strength else None,
            guidance_scale=defaults.guidance_scale if model.takes_guidance else None,
            num_inference_steps=model.default_steps,
        ),
        limits=pb.Limits(
            max_images=model.family.max_images,
            size_multiple=model.family.multiple,
            min_pixels=model.entry.limits.min_pixels,
            max_pixels=model.entry.limits.max_pixels,
            max_image_bytes=limits.max_bytes,
            max_partial_images=MAX_PREVIEWS,
        ),
        examples=model.examples,
    )


def load_report(engine: Engine) -> bytes:
    """An xds.data.orca.v3.OrcaLoadReport, for weighted balancing.

    Fields 6, rps_fractional, and 9, application_utilization: doubles. gRPC ignores a report that lacks one or says 0.
    """
    return struct.pack("<BdBd", 0x31, engine.edits_per_second, 0x49, max(engine.load, 0.01))
