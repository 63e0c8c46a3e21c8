"""What a decoder is shown: the same pixels, colours and way up as before, of every kind; and nothing else."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from retouch_server import images
from retouch_server.containers import MAX_EXIF, orientation, slim
from tests.hostile import pieces
from tests.hostile.pictures import small
from tests.hostile.test_pictures import LIMITS, originals

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KINDS = list(originals())
SHOT = Image.linear_gradient("L").resize((24, 16)).convert("RGB")


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_the_pixels_are_the_same(number: int) -> None:
    whole, less = opened(KINDS[number]), opened(slim(KINDS[number]).data)
    assert (less.mode, less.size) == (whole.mode, whole.size)
    assert np.array_equal(np.asarray(less), np.asarray(whole))
    for name in ("icc_profile", "transparency", "adobe_transform"):
        assert less.info.get(name) == whole.info.get(name)


def turned(way: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = way
    return exif


@pytest.mark.parametrize("format", images.FORMATS)
@pytest.mark.parametrize("way", range(1, 9))
def test_a_picture_is_turned_as_pillow_would(way: int, format: str) -> None:
    data = pieces.encoded(SHOT, format, exif=turned(way), lossless=True)
    upright = ImageOps.exif_transpose(opened(data))
    decoded = images.decode(data, "images[0]", LIMITS)
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def test_only_the_first_exif_counts() -> None:
    data = pieces.encoded(SHOT, "JPEG", exif=turned(6))
    at = data.index(b"\xff\xe1")
    other = pieces.segment(0xE1, b"Exif\0\0" + pieces.exif([(0x0112, 3, 1, 3)]))
    assert images.decode(data[:at] + other + data[at:], "images[0]", LIMITS).size == SHOT.size
    assert images.decode(data, "images[0]", LIMITS).size == SHOT.size[::-1]


def big_endian(kind: int, value: bytes) -> bytes:
    return b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHI", 0x0112, kind, 1) + value + bytes(4)


@pytest.mark.parametrize(
    ("exif", "way"),
    [
        (b"", 1),
        (b"Exif\0\0", 1),
        (big_endian(3, b"\0\x06\0\0"), 6),
        (b"Exif\0\0" + big_endian(3, b"\0\x08\0\0"), 8),
        (big_endian(4, b"\0\0\0\x06"), 1),
        (big_endian(3, b"\0\x09\0\0"), 1),
        (pieces.exif([(0x0100, 3, 1, 6), (0x0112, 3, 1, 5)]), 5),
        (pieces.exif([(0x0112, 3, 1, 0)]), 1),
        (pieces.exif([(0x0112, 3, 1, 6)])[:-8], 1),
        (b"II*\0" + b"\xff" * 4, 1),
        (b"II*\0" + struct.pack("<I", MAX_EXIF) + bytes(MAX_EXIF), 1),
        (b"XX*\0\x08\0\0\0\x01\0", 1),
        (pieces.exif([(tag, 3, 1, 6) for tag in range(0x0112 - 65000, 0x0113) if tag > 0]), 6),
    ],
)
def test_orientation(exif: bytes, way: int) -> None:
    assert orientation(exif) == way


def test_a_profile_in_parts_stays_whole() -> None:
    profile = PROFILE + bytes(150_000)
    data = pieces.encoded(SHOT, "JPEG", icc_profile=profile)
    assert opened(slim(data).data).info["icc_profile"] == profile


def test_what_is_neither_png_nor_jpeg_is_left_alone() -> None:
    for data in (b"", b"GIF89a", small("WEBP")):
        assert slim(data).data is data


def test_metadata_is_left_out() -> None:
    place = Image.Exif()
    place.get_ifd(0x8825)[1] = "N"
    for format in ("PNG", "JPEG"):
        data = pieces.encoded(SHOT, format, exif=place, comment=b"secret", xmp=b"<x:secret/>")
        assert b"secret" not in slim(data).data
        assert b"Exif" not in slim(data).data
        assert b"eXIf" not in slim(data).data
