"""Any mode and profile of a picture to sRGB, with no more copies of it than must be."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms


def to_srgb(image: Image.Image) -> Image.Image:
    """A picture, not yet loaded perhaps, as sRGB, 8 bit, RGB or RGBA; what was given may be changed."""
    image.load()
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit grey
        scaled = np.asarray(image, dtype=np.float32) / 257.0
        image = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
        profile = None
    alpha = "A" in image.getbands() or "transparency" in image.info
    if image.mode not in (("RGBA",) if alpha else ("RGB", "CMYK", "L")):
        image = image.convert("RGBA" if alpha else "RGB")
    if profile:
        image = _apply_profile(image, profile)
    wanted = "RGBA" if alpha else "RGB"
    # A copy only where it must be: it doubles what 50 megapixels take. WebP's decoder keeps two pictures of its own.
    result = image if image.mode == wanted and image.format != "WEBP" else image.convert(wanted)
    result.info.clear()
    return result


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """ICC to sRGB. A broken profile is ignored, as browsers do; the pixels are still the caller's picture."""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colour = image.convert("RGB") if alpha else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        # Where it can be, in the same memory: which matters at 50 megapixels.
        converted = ImageCms.profileToProfile(
            colour, source, target, outputMode="RGB", inPlace=colour.mode == "RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    converted = converted or colour
    if alpha:
        converted.putalpha(alpha)
    return converted
