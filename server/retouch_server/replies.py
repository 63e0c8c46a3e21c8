"""What leaves the server: pictures, timings, the models, the load report."""

from __future__ import annotations

import struct

import numpy as np
from torch import Tensor

from retouch.v1 import image_edit_pb2 as pb

from . import images
from .engine.edit import Edit
from .engine.engine import Engine
from .errors import ModelFailed
from .models import Inputs, Model
from .validation import PB_FORMATS, Plan


def picture(model: Model, plan: Plan, inputs: Inputs, tensor: Tensor) -> pb.EditedImage:
    """Tensor (1x3xHxW, 0..1) to encoded bytes, the input kept exactly outside the mask. For the pool."""
    pixels = tensor[0].permute(1, 2, 0).numpy()
    if not np.isfinite(pixels).all():
        raise ModelFailed("the model's result is not a number")
    pixels = images.composite(pixels, inputs.image, inputs.mask, model.blend(inputs))
    return pb.EditedImage(
        data=images.encode(pixels, plan.format, plan.quality),
        format=PB_FORMATS[plan.format],
        width=inputs.image.width,
        height=inputs.image.height,
        seed=inputs.seed,
        revised_prompt=inputs.prompt,
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
            negative_prompt=model.family.negative_prompt,
            max_mode=model.entry.max is not None,
            guidance_scale=model.takes_guidance,
        ),
        defaults=pb.Defaults(
            strength=defaults.strength if model.takes_strength else None,
            guidance_scale=defaults.guidance_scale if model.takes_guidance else None,
            num_inference_steps=model.default_steps,
        ),
        limits=pb.Limits(
            max_images=1,
            size_multiple=model.family.multiple,
            min_pixels=model.entry.limits.min_pixels,
            max_pixels=model.entry.limits.max_pixels,
            max_image_bytes=limits.max_bytes,
            max_partial_images=0,
        ),
    )


def load_report(engine: Engine) -> bytes:
    """An xds.data.orca.v3.OrcaLoadReport, for weighted balancing.

    Fields 6, rps_fractional, and 9, application_utilization: doubles. gRPC ignores a report that lacks one or says 0.
    """
    return struct.pack("<BdBd", 0x31, engine.edits_per_second, 0x49, max(engine.load, 0.01))
