"""Stores of C2PA manifests by the box (JUMBF, ISO 19566-5), and pictures that have them, well made or not."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

# The types of boxes are four letters and the rest of a UUID.
UUID = b"\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71"


def picture(format: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((48, 48), 60).convert("RGB").save(out, format)
    return out.getvalue()


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def superbox(type_: bytes, label: bytes, *content: bytes) -> bytes:
    return box(b"jumb", box(b"jumd", type_ + UUID + b"\3" + label + b"\0") + b"".join(content))


def store_of(png: bytes) -> bytes:
    """The store of a PNG."""
    at = png.index(b"caBX")
    (length,) = struct.unpack(">I", png[at - 4 : at])
    return png[at + 4 : at + 4 + length]


def inserted(store: bytes, extra: bytes) -> bytes:
    """A store with one more box in its first manifest."""
    described = 8 + int.from_bytes(store[8:12], "big")  # of the store
    manifest = store[described:]
    return box(b"jumb", store[8:described] + box(b"jumb", manifest[8:] + extra))


def png_of(*stores: bytes) -> bytes:
    data = picture("png")
    chunks = (
        struct.pack(">I", len(each))
        + b"caBX"
        + each
        + struct.pack(">I", zlib.crc32(b"caBX" + each))
        for each in stores
    )
    return data[:33] + b"".join(chunks) + data[33:]


def webp_of(*stores: bytes) -> bytes:
    chunks = (
        b"C2PA" + struct.pack("<I", len(each)) + each + b"\0" * (len(each) % 2) for each in stores
    )
    body = picture("webp")[8:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def app11(number: int, part: int, box: bytes) -> bytes:
    """A JPEG's segment that holds a part of a box: its head, and bytes of it."""
    body = b"JP" + struct.pack(">HI", number, part) + box
    return b"\xff\xeb" + struct.pack(">H", 2 + len(body)) + body


def jpeg_with(*segments: bytes) -> bytes:
    data = picture("jpeg")
    at = data.index(b"\xff\xdb")
    return data[:at] + b"".join(segments) + data[at:]


def jpeg_of(*stores: bytes) -> bytes:
    return jpeg_with(*(app11(number, 1, each) for number, each in enumerate(stores)))


def same_number(*stores: bytes) -> bytes:
    return jpeg_with(*(app11(1, 1, each) for each in stores))
