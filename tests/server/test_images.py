"""Pictures from strangers: what is let in, what is refused by name, and what comes out."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from retouch_server import images
from retouch_server.catalog import Limits
from retouch_server.errors import InvalidRequest
from retouch_server.images import InputLimits

LIMITS = InputLimits()


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def photo(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def refusal(data: bytes, limits: InputLimits = LIMITS) -> str:
    with pytest.raises(InvalidRequest) as refused:
        images.decode(data, "images[2]", limits)
    (violation,) = refused.value.violations
    assert violation.field == "images[2]"
    return violation.description


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_told_by_content(format: str) -> None:
    decoded = images.decode(encoded(photo(), format), "images[0]", LIMITS)
    assert (decoded.mode, decoded.size) == ("RGB", (40, 30))
    assert abs(np.asarray(decoded, float) - np.asarray(photo(), float)).mean() < 12


def test_refusals() -> None:
    assert refusal(b"") == "is empty"
    assert "not a PNG, JPEG or WebP" in refusal(b"just a text file")
    assert "not a PNG, JPEG or WebP" in refusal(encoded(photo(), "GIF"))
    assert "not a PNG, JPEG or WebP" in refusal(encoded(photo(), "BMP"))
    whole = encoded(photo(90, 80))
    assert "cannot be decoded" in refusal(whole[: len(whole) // 2])
    assert "cannot be decoded" in refusal(encoded(photo(200, 200), "JPEG")[:400])
    for side in (9000, 10_000, 60_000):
        words = f"is {side}x{side}; at most 50000000 pixels are allowed"
        assert refusal(png_header(side, side)) == words


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animation_is_refused(format: str) -> None:
    frames = [photo(), photo().rotate(90), photo().rotate(180)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert "animated (3 frames)" in refusal(data)


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() -> None:
    data = encoded(photo(64, 64), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert images.decode(data, "images[0]", LIMITS).size == (64, 64)
    assert refusal(data[:-2] + scan * 100 + b"\xff\xd9") == "is a JPEG of more than 64 scans"


def test_a_cameras_preview_is_not_animation() -> None:
    data = encoded(photo(64, 48), "MPO", save_all=True, append_images=[photo(16, 12)])
    assert images.decode(data, "images[0]", LIMITS).size == (64, 48)


def test_transparency_survives_palettes_and_profiles() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for image in (photo(), photo(mode="P")):
        first = image.getpixel((0, 0))
        data = encoded(image, transparency=first, icc_profile=profile)
        decoded = images.decode(data, "images[0]", LIMITS)
        assert decoded.mode == "RGBA"
        assert decoded.getpixel((0, 0))[3] == 0  # type: ignore[index]


def test_bytes_at_the_limit_and_one_more() -> None:
    data = encoded(photo())
    assert images.decode(data, "images[0]", InputLimits(max_bytes=len(data))).size == (40, 30)
    assert f"at most {len(data) - 1}" in refusal(data, InputLimits(max_bytes=len(data) - 1))


def test_exif_orientation_is_applied_and_metadata_left_behind() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    decoded = images.decode(encoded(photo(), "JPEG", exif=exif), "images[0]", LIMITS)
    assert decoded.size == (30, 40)
    assert not decoded.getexif()
    assert not decoded.info


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_rgb_or_rgba(mode: str) -> None:
    image = photo(mode="L").convert("I;16") if mode == "I;16" else photo(mode=mode)
    decoded = images.decode(
        encoded(image, "JPEG" if mode == "CMYK" else "PNG"), "images[0]", LIMITS
    )
    assert decoded.mode == ("RGBA" if mode in ("LA", "RGBA") else "RGB")


def test_sixteen_bit_grey_is_scaled() -> None:
    image = Image.fromarray(np.full((8, 8), 257 * 100, dtype=np.uint16))
    assert images.decode(encoded(image), "images[0]", LIMITS).getpixel((3, 3)) == (100, 100, 100)


def test_a_colour_profile_is_applied_and_a_broken_one_is_not_fatal() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = images.decode(encoded(photo(), icc_profile=lab), "images[0]", LIMITS)
    assert abs(np.asarray(same, int) - np.asarray(photo(), int)).max() <= 2
    broken = images.decode(encoded(photo(), icc_profile=b"no profile"), "images[0]", LIMITS)
    assert np.array_equal(np.asarray(broken), np.asarray(photo()))


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]),
)
def test_rubbish_is_always_the_callers_mistake(rubbish: bytes, magic: bytes) -> None:
    refusal(magic + rubbish)


def test_masks_are_read_by_alpha_else_by_luminance() -> None:
    first = photo()
    white_right = Image.new("L", (40, 30), 0)
    white_right.paste(255, (20, 0, 40, 30))
    by_luminance = images.decode_mask(encoded(white_right), first, LIMITS)
    assert (by_luminance.getpixel((5, 5)), by_luminance.getpixel((30, 5))) == (0, 255)
    clear_right = photo(mode="RGBA")
    clear_right.putalpha(Image.eval(white_right, lambda v: 255 - v))
    by_alpha = images.decode_mask(encoded(clear_right), first, LIMITS)
    assert np.array_equal(np.asarray(by_alpha), np.asarray(by_luminance))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("L", (41, 30), 255), "is 41x30, the first image 40x30"),
        (Image.new("L", (40, 30), 0), "selects nothing; it was read by white = edit"),
        (Image.new("L", (40, 30), 255), "selects everything; it was read by white = edit"),
        (
            Image.new("RGBA", (40, 30), (0, 0, 0, 0)),
            "selects everything; it was read by alpha 0 = edit",
        ),
    ],
)
def test_masks_that_cannot_be_meant(mask: Image.Image, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        images.decode_mask(encoded(mask), photo(), LIMITS)
    assert refused.value.violations[0].field == "mask"
    assert reason in refused.value.violations[0].description


def test_a_mask_fades_rather_than_vanishes_and_one_that_is_cropped_away_is_refused() -> None:
    line = Image.new("L", (2000, 2000), 0)
    line.paste(255, (1000, 0, 1001, 2000))
    assert images.fit_mask(line, (500, 500)).getextrema() == (0, 64)
    left = Image.new("L", (1000, 500), 0)
    left.paste(255, (0, 0, 50, 500))
    with pytest.raises(InvalidRequest) as refused:
        images.fit_mask(left, (512, 512))
    assert refused.value.violations[0].field == "mask"
    sharp = images.fit(Image.new("L", (64, 64), 255), (512, 512))
    assert sharp.getextrema() == (255, 255)


@given(
    st.integers(1, 90_000), st.integers(1, 9000), st.sampled_from([8, 16, 64]),
    st.sampled_from([(64 * 64, 1024 * 1024), (256 * 256, 256 * 256), (4096, 3_000_000)]),
)  # fmt: skip
def test_an_unset_size_is_the_images_own_fitted(
    w: int, h: int, multiple: int, area: tuple[int, int]
) -> None:
    limits = Limits(min_pixels=area[0], max_pixels=area[1])
    width, height = images.output_size((w, h), None, multiple, limits)
    assert width % multiple == height % multiple == 0
    assert width * height <= limits.max_pixels
    assert max(width, height) <= images.MAX_SIDE
    if max(w, h) < 8 * min(w, h) and area[0] < area[1] / 4:
        assert limits.min_pixels <= width * height
        if min(width, height) >= 8 * multiple:
            assert 0.75 < (width / height) / (w / h) < 1.33
    if w % multiple == h % multiple == 0 and limits.min_pixels <= w * h <= limits.max_pixels:
        assert (width, height) == (w, h)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ((100, 64), "size.width"),
        ((64, 100), "size.height"),
        ((16, 16), "size"),
        ((4096, 4096), "size"),
    ],
)
def test_an_asked_size_is_kept_or_refused(asked: tuple[int, int], field: str) -> None:
    assert images.output_size((33, 44), (256, 512), 16, Limits()) == (256, 512)
    with pytest.raises(InvalidRequest) as refused:
        images.output_size((33, 44), asked, 16, Limits())
    assert refused.value.violations[0].field == field


def test_fit_covers_and_crops_at_the_centre() -> None:
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste((255, 0, 0), (100, 0, 200, 100))
    fitted = images.fit(wide, (64, 64))
    assert fitted.size == (64, 64)
    assert fitted.getpixel((32, 32)) == (255, 0, 0)
    assert images.fit(wide, (300, 100)) is wide


def test_outside_the_mask_the_result_is_the_input_bit_for_bit() -> None:
    base, mask = photo(64, 64), Image.new("L", (64, 64), 0)
    mask.paste(255, (10, 10, 30, 30))
    mask.paste(128, (30, 10, 34, 30))
    result = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    out = images.encode(images.composite(result, base, mask, 1.0), "PNG", 90)
    pixels, inside = np.asarray(Image.open(io.BytesIO(out))), np.asarray(mask) > 0
    assert np.array_equal(pixels[~inside], np.asarray(base)[~inside])
    core = np.s_[11:29, 11:30]
    assert np.array_equal(pixels[core], (result * 255).round().astype(np.uint8)[core])
    assert np.array_equal(images.composite(result, base, None, 1.0), result)


def test_the_edge_is_soft_inside_the_mask_and_strength_scales_the_move() -> None:
    base, mask = Image.new("RGB", (256, 256), "black"), Image.new("L", (256, 256), 0)
    mask.paste(255, (100, 0, 256, 256))
    white = np.ones((256, 256, 3), dtype=np.float32)
    for strength in (1.0, 0.5):
        across = images.composite(white, base, mask, strength)[128, 99:105, 0]
        assert across == pytest.approx(strength * np.array([0, 0.25, 0.5, 0.75, 1, 1]))


def test_strength_zero_is_the_input_bit_for_bit() -> None:
    result = np.random.default_rng(0).random((30, 40, 3), dtype=np.float32)
    out = images.encode(images.composite(result, photo(), None, 0.0), "PNG", 90)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(out))), np.asarray(photo()))


@pytest.mark.parametrize(
    ("format", "magic"), [("PNG", b"\x89PNG"), ("JPEG", b"\xff\xd8"), ("WEBP", b"RIFF")]
)
def test_encode(format: images.Format, magic: bytes) -> None:
    pixels = np.asarray(photo(64, 48), dtype=np.float32) / np.float32(255)
    data = images.encode(pixels, format, 90)
    assert data.startswith(magic)
    assert Image.open(io.BytesIO(data)).size == (64, 48)
    if format != "PNG":
        assert len(images.encode(pixels, format, 10)) < len(data)
