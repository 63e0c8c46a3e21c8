"""Bytes <-> pixels: limits before decoding, EXIF, colour, masks, sizes, encoding. CPU work, for a thread pool."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from . import containers
from .catalog import Limits
from .colour import to_srgb
from .errors import InvalidRequest, Violation
from .feather import soft_edge

Format = Literal["PNG", "JPEG", "WEBP"]
FORMATS: tuple[Format, ...] = ("PNG", "JPEG", "WEBP")
MAX_SIDE = 8192
# Pillow's own bound warns in the log; ours is held against each header.
Image.MAX_IMAGE_PIXELS = None
STRIP = 256  # rows at a time, where a copy of all would be large
# Each scan of a progressive JPEG is a pass over the whole picture; real ones have about ten. Thousands in a small file
# would take minutes, which nothing can interrupt.
MAX_SCANS = 64
# As JPEG allows. A picture of one column takes a pointer for each pixel, thrice what others take.
MAX_INPUT_SIDE = 65535
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what undoes it."""
Pixels = npt.NDArray[np.float32]
"""Height x width x 3, float32, 0..1, sRGB."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of some picture."""


@dataclass(frozen=True)
class InputLimits:
    """What one encoded image may be: at most `max_bytes`, and `max_pixels` by its header, before it is decoded."""

    max_bytes: int = 4 * 1024 * 1024
    max_pixels: int = 50_000_000


def decode(data: bytes, field: str, limits: InputLimits) -> Image.Image:
    """Decode one PNG, JPEG or WebP, told by content, upright, in sRGB; mode RGB, or RGBA where it has alpha.

    Metadata is left behind. Raises InvalidRequest naming `field`: too many bytes or pixels, another format,
    animation, damage.
    """
    image, exif = _open(data, field, limits)
    try:
        if turn := _UPRIGHT.get(containers.orientation(exif)):
            image = image.transpose(turn)
        return to_srgb(image)
    except MemoryError:
        raise  # which is the server's own
    # A decoder may raise nearly anything on hostile bytes; whatever it is, the bytes are the caller's.
    except Exception as error:
        raise _bad(field, f"cannot be decoded ({_reason(error)})") from error


def area(data: bytes, field: str, limits: InputLimits) -> int:
    """Pixels of an encoded image, by its header. Raises InvalidRequest as `decode` does for a header."""
    image, _ = _open(data, field, limits)
    return image.width * image.height


def _open(data: bytes, field: str, limits: InputLimits) -> tuple[Image.Image, bytes]:
    """Read the header alone and hold it against the limits; and what EXIF there is."""
    if not data:
        raise _bad(field, "is empty")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise _bad(field, f"is a JPEG of more than {MAX_SCANS} scans")
    if len(data) > limits.max_bytes:
        raise _bad(field, f"has {len(data)} bytes; at most {limits.max_bytes} are allowed")
    try:
        slim = containers.slim(data)
        image: Image.Image = Image.open(io.BytesIO(slim.data), formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
    except MemoryError:
        raise  # which is the server's own
    except UnidentifiedImageError:
        raise _bad(field, "is not a PNG, JPEG or WebP image") from None
    except Exception as error:
        raise _bad(field, f"cannot be decoded ({_reason(error)})") from error
    size = f"{image.width}x{image.height}"
    if image.width * image.height > limits.max_pixels:
        raise _bad(field, f"is {size}; at most {limits.max_pixels} pixels are allowed")
    if max(image.size) > MAX_INPUT_SIDE:
        raise _bad(field, f"is {size}; sides of at most {MAX_INPUT_SIDE} pixels are allowed")
    if frames > 1:
        raise _bad(field, f"is animated ({frames} frames); send one frame")
    return image, slim.exif or image.info.get("exif", b"")


def decode_mask(
    data: bytes, first: Image.Image, limits: InputLimits, everything: bool = False
) -> Image.Image:
    """Decode a mask for `first`, of the same size. Mode L: 255 = edit, 0 = keep.

    With any alpha below 255 it is read by alpha, 0 = edit; otherwise by luminance, white = edit. Raises InvalidRequest,
    unless `everything` is allowed also for one that selects all of it.
    """
    mask = decode(data, "mask", limits)
    if mask.size != first.size:
        sizes = f"{mask.width}x{mask.height}, the first image {first.width}x{first.height}"
        raise _bad("mask", f"is {sizes}; they must be the same")
    alpha = mask.getchannel("A") if mask.mode == "RGBA" else None
    by_alpha = alpha is not None and _range(alpha)[0] < 255
    edit = ImageOps.invert(alpha) if alpha is not None and by_alpha else mask.convert("L")
    low, high = _range(edit)
    rule = "alpha 0 = edit" if by_alpha else "white = edit"
    if high == 0:
        raise _bad("mask", f"selects nothing; it was read by {rule}")
    if low == 255 and not everything:
        raise _bad(
            "mask", f"selects everything; it was read by {rule}. Leave it out to edit everywhere"
        )
    return edit


def fit_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`fit` for a mask. Raises InvalidRequest when all of it is cropped away."""
    fitted = fit(mask, size)
    if _range(fitted)[1] == 0:
        raise _bad("mask", f"selects nothing of the part that is left at {size[0]}x{size[1]}")
    return fitted


def _range(channel: Image.Image) -> tuple[int, int]:
    """Least and greatest value of a one-channel picture, 0..255."""
    return cast(tuple[int, int], channel.getextrema())


def flatten(image: Image.Image) -> Image.Image:
    """RGBA over white; RGB as it is. Edit models know no alpha."""
    if image.mode != "RGBA":
        return image
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        part = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        flat.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part), (0, top))
    return flat


def output_size(
    image: tuple[int, int],
    asked: tuple[int, int] | None,
    multiple: int,
    limits: Limits,
    longest: int = MAX_SIDE,
) -> tuple[int, int]:
    """Width and height of the output, pixels.

    `asked` must be within `limits`, its sides multiples of `multiple` up to `longest`, or InvalidRequest is raised.
    Without it, what may be asked for and is nearest to the image's own size scaled into all that, aspect kept.
    """
    if asked:
        _check_size(asked, multiple, limits, longest)
        return asked
    area = image[0] * image[1]
    scale = sqrt(min(max(area, limits.min_pixels), limits.max_pixels) / area)
    width, height = (side * min(scale, longest / max(image)) for side in image)
    best = (
        (each, min(max(round(height / multiple) * multiple, heights[0]), heights[-1]))
        for each, heights in sizes(multiple, limits, longest)
    )
    return min(best, key=lambda size: abs(size[0] - width) + abs(size[1] - height))


def sizes(multiple: int, limits: Limits, longest: int) -> Iterator[tuple[int, range]]:
    """Each width that an output may have, with the heights that go with it."""
    for width in range(multiple, longest + 1, multiple):
        least = max(1, -(-limits.min_pixels // (width * multiple)))
        most = min(longest // multiple, limits.max_pixels // (width * multiple))
        if heights := range(least * multiple, most * multiple + 1, multiple):
            yield width, heights


def _check_size(asked: tuple[int, int], multiple: int, limits: Limits, longest: int) -> None:
    wrong = [
        Violation(f"size.{name}", f"must be a multiple of {multiple} up to {longest}, not {side}")
        for name, side in zip(("width", "height"), asked, strict=True)
        if side < multiple or side > longest or side % multiple
    ]
    if not wrong and not limits.min_pixels <= asked[0] * asked[1] <= limits.max_pixels:
        allowed = f"{limits.min_pixels} to {limits.max_pixels} pixels"
        wrong = [Violation("size", f"must have {allowed}, not {asked[0]}x{asked[1]}")]
    if wrong:
        raise InvalidRequest(wrong)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale to cover `size` (width, height) and crop at the centre: the one rule for every other aspect."""
    return image if image.size == size else resample(image, size, covered(image.size, size))


def covered(image: tuple[int, int], size: tuple[int, int]) -> Box:
    """What `fit` shows of an image: the largest part in the middle of it with the aspect of `size`."""
    scale = min(image[0] / size[0], image[1] / size[1])
    # What was divided and multiplied again may have become a hair larger.
    width, height = min(size[0] * scale, image[0]), min(size[1] * scale, image[1])
    left, top = (image[0] - width) / 2, (image[1] - height) / 2
    return left, top, left + width, top + height


def resample(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """That part of an image at `size` (width, height).

    A mask (mode L) is averaged over the area of each pixel: nothing outside it becomes selected, a thin line fades but
    does not vanish.
    """
    method = Image.Resampling.BOX if image.mode == "L" else Image.Resampling.LANCZOS
    return image.resize(size, method, box=box)


def composite(
    result: Pixels, base: Image.Image, mask: Image.Image | None, strength: float
) -> Pixels:
    """`result` inside `mask` (L, 255 = edit), with its soft edge; outside it `base`, bit for bit.

    `strength` 0..1 scales the move.
    """
    if mask is None and strength == 1.0:
        return result
    under: Pixels = np.asarray(base, dtype=np.float32) / np.float32(255)
    alpha: Pixels = np.full((1, 1, 1), strength, dtype=np.float32)
    if mask is not None:
        alpha = alpha * soft_edge(mask)[..., None]
    return under + alpha * (result - under)


def to_image(pixels: Pixels) -> Image.Image:
    """Rounded to 8 bits."""
    return Image.fromarray((pixels * 255.0).round().clip(0, 255).astype(np.uint8))


def encode(pixels: Pixels, format: Format, quality: int, xmp: bytes | None = None) -> bytes:
    """Encode with no metadata but an XMP packet. `quality` 0..100 is for JPEG and WebP; PNG is lossless."""
    image = to_image(pixels)
    out = io.BytesIO()
    if format == "PNG":
        info = PngInfo()
        if xmp:
            info.add_itxt("XML:com.adobe.xmp", xmp)
        # Run-length matching only: on photos as small as zlib's own search, in half the time.
        image.save(out, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=info)
    else:
        image.save(out, format, quality=quality, xmp=xmp or b"")
    return out.getvalue()


def _bad(field: str, description: str) -> InvalidRequest:
    return InvalidRequest([Violation(field, description)])


def _reason(error: Exception) -> str:
    """A decoder's own words, one line, bounded."""
    return " ".join(str(error).split())[:120] or type(error).__name__
