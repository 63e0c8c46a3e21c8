"""Pictures put together piece by piece, so that any piece can be wrong: chunks, segments, deflated zeros."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from PIL import Image

PNG_MAGIC, SOI, EOI = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd9"
_PIECE = 2**20
END = b"\0\0\0\0IEND\xaeB`\x82"


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return b"%b%b%b%b" % (_u32(len(data)), kind, data, _u32(zlib.crc32(data, zlib.crc32(kind))))


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    """IHDR. `colour`: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png(*chunks: bytes) -> bytes:
    """A PNG of these, and its end."""
    return PNG_MAGIC + b"".join(chunks) + END


def zeros(count: int) -> bytes:
    """`count` zeros as zlib has them, a thousandth as long; made in no time however many."""
    squeeze = zlib.compressobj(9, wbits=-15)
    piece = squeeze.compress(bytes(_PIECE)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    rest = squeeze.compress(bytes(count % _PIECE)) + squeeze.flush()
    return b"\x78\xda" + piece * (count // _PIECE) + rest + _u32((count % 65521) << 16 | 1)


def black(width: int, height: int, depth: int = 8, colour: int = 2, *others: bytes) -> bytes:
    """A whole PNG of zeros; `others` are chunks before the pixels."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * samples * depth + 7) // 8
    return png(header(width, height, depth, colour), *others, chunk(b"IDAT", zeros(row * height)))


def segment(marker: int, data: bytes = b"") -> bytes:
    """A segment of a JPEG: of up to 65533 bytes."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def exif(entries: Iterable[tuple[int, int, int, int]], rest: bytes = b"") -> bytes:
    """A TIFF directory as EXIF has it: (tag, type, count, value or offset), and what is behind it."""
    packed = [struct.pack("<HHLL", *entry) for entry in entries]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(packed)) + b"".join(packed) + rest


def riff(*chunks: bytes) -> bytes:
    """A WebP of these."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def piece(kind: bytes, data: bytes) -> bytes:
    """A chunk of a WebP."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def canvas(width: int, height: int, flags: int) -> bytes:
    """VP8X. `flags`: 2 animated, 8 EXIF, 16 alpha, 32 ICC."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return piece(b"VP8X", bytes([flags, 0, 0, 0]) + sides)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)
