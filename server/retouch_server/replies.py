"""What leaves the server: pictures, timings, the models, the load report."""

from __future__ import annotations

import struct

from torch import Tensor

from retouch.v1 import image_edit_pb2 as pb

from . import images, prompts
from .engine.edit import Edit
from .engine.engine import Engine
from .models import Inputs, Model
from .previews import Previewer
from .provenance import Provenance
from .validation import MAX_PREVIEWS, PB_FORMATS, Plan


def finished(model: Model, inputs: Inputs, tensor: Tensor) -> images.Pixels:
    """A result (1x3xHxW, 0..1) as the caller is to see it. For the pool."""
    return _laid(model, inputs, to_pixels(tensor))


def preview(
    model: Model,
    previewer: Previewer,
    provenance: Provenance,
    plan: Plan,
    inputs: Inputs,
    latents: Tensor,
) -> pb.EditedImage:
    """Latents of an unfinished edit as a picture of the output's size. For the pool. Raises ValueError."""
    pixels = _laid(model, inputs, previewer.preview(latents, inputs.image.size))
    return _picture(model, provenance, plan, inputs, pixels)


def to_pixels(tensor: Tensor) -> images.Pixels:
    """1x3xHxW, float, as height x width x 3."""
    pixels: images.Pixels = tensor[0].permute(1, 2, 0).numpy()
    return pixels


def _laid(model: Model, inputs: Inputs, pixels: images.Pixels) -> images.Pixels:
    """What the model made, laid over the input: outside the mask that is kept exactly."""
    base, mask = inputs.image, inputs.mask
    if inputs.region:
        base, mask, pixels = inputs.region.base, inputs.region.mask, inputs.region.paste(pixels)
    return images.composite(pixels, base, mask, model.blend(inputs))


def picture(
    model: Model,
    provenance: Provenance,
    plan: Plan,
    parent: bytes | None,
    inputs: Inputs,
    pixels: images.Pixels,
) -> pb.EditedImage:
    """What the caller is to see, as encoded bytes, signed as edited from `parent`. For the pool. Raises NotSigned."""
    result = _picture(model, provenance, plan, inputs, pixels)
    result.data = provenance.sign(result.data, plan.format, parent)
    return result


def _picture(
    model: Model, provenance: Provenance, plan: Plan, inputs: Inputs, pixels: images.Pixels
) -> pb.EditedImage:
    height, width, _ = pixels.shape
    return pb.EditedImage(
        data=images.encode(pixels, plan.format, plan.quality, provenance.xmp),
        format=PB_FORMATS[plan.format],
        width=width,
        height=height,
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
            max_partial_images=MAX_PREVIEWS if model.shows_previews else 0,
        ),
        examples=model.examples,
    )


def load_report(engine: Engine) -> bytes:
    """An xds.data.orca.v3.OrcaLoadReport, for weighted balancing.

    Fields 6, rps_fractional, and 9, application_utilization: doubles. gRPC ignores a report that lacks one or says 0,
    and weighs a server by the first over the second. An idle one counts as one edit in both: were it nearly 0 in the
    second alone, the server that fell idle last would get all that comes until it reports again.
    """
    used = max(engine.load, 1 / engine.slots)
    return struct.pack("<BdBd", 0x31, engine.edits_per_second, 0x49, used)
