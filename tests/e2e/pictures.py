"""Pictures for the end-to-end tests: made, encoded, compared."""

import base64
import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from retouch_cli.up import SAMPLE

Pixels = npt.NDArray[np.int16]
"""Height x width x 3, 0..255, wide enough to subtract."""


def photo(width: int = 256, height: int = 256) -> Image.Image:
    """The photo that ships, cropped."""
    with Image.open(SAMPLE) as image:
        return ImageOps.fit(image.convert("RGB"), (width, height))


def left_half(width: int = 256, height: int = 256) -> Image.Image:
    """A mask that selects the left half: white = edit."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pixels(data: bytes | Image.Image) -> Pixels:
    image = Image.open(io.BytesIO(data)) if isinstance(data, bytes) else data
    return np.asarray(image.convert("RGB")).astype(np.int16)


def chroma(shown: Pixels) -> float:
    """Mean distance between a pixel's strongest and weakest channel, 0 = grey."""
    return float((shown.max(axis=2) - shown.min(axis=2)).mean())


def warmth(shown: Pixels) -> float:
    """How much more red than blue there is, in the mean, levels of 255."""
    return float((shown[..., 0] - shown[..., 2]).mean())


def difference(one: bytes | Image.Image, other: bytes | Image.Image) -> int:
    """The largest difference of any pixel's channel, levels of 255."""
    return int(np.abs(pixels(one) - pixels(other)).max())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int = 60_000) -> bytes:
    """A correct black PNG of side x side pixels in half a megabyte."""
    squeeze = zlib.compressobj(1)
    rows = bytes((1 + side // 8) * 100)
    squeezed = b"".join(squeeze.compress(rows) for _ in range(side // 100)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", squeezed) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    return out.getvalue()


def padded(size: int) -> bytes:
    """A correct PNG of exactly `size` bytes."""
    data = png(photo(64, 64))
    body, end = data[:-12], data[-12:]
    return body + _chunk(b"prVt", bytes(size - len(data) - 12)) + end
