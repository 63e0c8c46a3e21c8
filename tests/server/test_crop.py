"""Editing the part around a small mask: where it lies, and that everything else stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from retouch_server import crop, images
from retouch_server.catalog import Limits
from retouch_server.images import Pixels


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise without detail that resampling would lose."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return noise.filter(ImageFilter.GaussianBlur(6))


def as_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    """A photo, a rectangular mask on it, an output size as the server would choose it, a padding."""
    width, height = draw(st.integers(40, 700)), draw(st.integers(40, 700))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    mask = Image.new("L", (width, height), 0)
    right, bottom = left + draw(st.integers(1, width)), top + draw(st.integers(1, height))
    mask.paste(255, (left, top, min(right, width), min(bottom, height)))
    multiple = draw(st.sampled_from([8, 16]))
    limits = Limits(min_pixels=64 * 64, max_pixels=draw(st.sampled_from([128 * 128, 256 * 256])))
    asked = draw(st.sampled_from([None, (128, 128), (64, 160), (192, 64)]))
    size = images.output_size((width, height), asked, multiple, limits)
    return {"size": size, "mask": mask, "padding": draw(st.integers(0, 60))}


@given(cases())
def test_the_part_holds_the_mask_and_lies_within(case: dict[str, Any]) -> None:
    mask, (width, height) = case["mask"], case["size"]
    base, fitted = Image.new("RGB", case["size"]), images.fit(mask, case["size"])
    region = crop.region(base, fitted, mask.size, case["padding"])
    held = fitted.getbbox()
    if region is None:
        return
    assert held
    left, top, right, bottom = region.box
    assert 0 <= left <= held[0] < held[2] <= right <= width
    assert 0 <= top <= held[1] < held[3] <= bottom <= height
    assert (right - left) * (bottom - top) <= width * height / 2
    across, down = right - left, bottom - top
    assert across - 1 < down * width / height < across + max(1, width / height)
    # The padding, unless the picture ends before; a mask that is scaled up is rounded to half of its own pixels.
    source_left, source_top, source_right, source_bottom = region.source
    shown = images.covered(mask.size, case["size"])
    left, top, right, bottom = mask.getbbox()
    assert source_left <= max(left - case["padding"], shown[0]) + 0.51
    assert source_top <= max(top - case["padding"], shown[1]) + 0.51
    assert source_right >= min(right + case["padding"], shown[2]) - 0.51
    assert source_bottom >= min(bottom + case["padding"], shown[3]) - 0.51
    assert region.cut(mask).size == case["size"]
    assert region.cut(mask).getbbox()


@given(cases(), st.integers(0, 5))
def test_an_edit_that_changes_nothing_gives_the_picture_back(
    case: dict[str, Any], seed: int
) -> None:
    width, height = case["mask"].size
    photo = smooth(width, height, seed)
    base, fitted = images.fit(photo, case["size"]), images.fit(case["mask"], case["size"])
    region = crop.region(base, fitted, photo.size, case["padding"])
    if region is None:
        return
    pasted = region.paste(as_pixels(region.cut(photo)))
    result = images.composite(pasted, base, fitted, 1.0)
    outside = np.asarray(fitted) == 0
    assert np.array_equal(result[outside], as_pixels(base)[outside])
    assert abs(result - as_pixels(base)).max() < 0.1


def test_what_the_model_makes_of_it_lands_where_the_mask_is() -> None:
    photo, mask = smooth(1000, 600), Image.new("L", (1000, 600), 0)
    mask.paste(255, (700, 100, 760, 180))
    base, fitted = images.fit(photo, (512, 512)), images.fit_mask(mask, (512, 512))
    region = crop.region(base, fitted, photo.size, 20)
    assert region
    # 600 rows are 512; the columns before 200 are cropped away. 80 rows and 20 more on each side are the taller.
    assert region.box == pytest.approx((401, 68, 504, 171), abs=2)
    view = region.cut(mask)
    assert np.asarray(view).mean() / 255 == pytest.approx(60 * 80 / 120**2, rel=0.05)
    green = np.where(np.asarray(view)[..., None] > 0, [0.0, 1.0, 0.0], as_pixels(region.cut(photo)))
    result = images.composite(region.paste(green.astype(np.float32)), base, fitted, 1.0)
    core = np.s_[96:143, 439:466]
    assert result[core] == pytest.approx(np.broadcast_to([0, 1, 0], result[core].shape), abs=0.02)


@pytest.mark.parametrize("input_size", [(256, 192), (640, 480), (500, 700), (100, 75)])
def test_it_comes_back_to_where_it_was_to_a_fraction_of_a_pixel(
    input_size: tuple[int, int],
) -> None:
    width, height = input_size
    waves = [np.sin(np.arange(side) * 2 * np.pi * 6 / max(input_size)) for side in input_size]
    grey = (127 + 60 * (waves[0][None, :] + waves[1][:, None])).round().astype(np.uint8)
    photo, mask = Image.fromarray(grey).convert("RGB"), Image.new("L", input_size, 0)
    mask.paste(255, (width // 2, height // 3, width * 3 // 4, height // 2))
    base, fitted = images.fit(photo, (256, 192)), images.fit(mask, (256, 192))
    region = crop.region(base, fitted, photo.size, 8)
    assert region
    change = region.paste(as_pixels(region.cut(photo))) - as_pixels(base)
    assert np.abs(change).max() < 2.5 / 255  # one pixel off is 9 or more


def test_a_part_of_a_large_photo_has_its_detail() -> None:
    """Stripes that are gone at the output's size are there for the model."""
    stripes = np.zeros((2048, 2048, 3), dtype=np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 255
    photo, mask = Image.fromarray(stripes), Image.new("L", (2048, 2048), 0)
    mask.paste(255, (1000, 1000, 1100, 1100))
    base, fitted = images.fit(photo, (256, 256)), images.fit_mask(mask, (256, 256))
    region = crop.region(base, fitted, photo.size, 32)
    assert region
    assert np.asarray(base).std() < 5
    assert np.asarray(region.cut(photo)).std() > 100


def test_large_masks_and_none_are_not_for_a_crop() -> None:
    base = Image.new("RGB", (256, 128))
    for box, padding, cropped in [
        ((0, 0, 180, 90), 0, True),
        ((0, 0, 182, 91), 0, False),
        ((0, 0, 180, 90), 10, False),
        ((0, 0, 10, 128), 0, False),
        ((0, 0, 0, 0), 0, False),
    ]:
        mask = Image.new("L", (256, 128), 0)
        mask.paste(255, box)
        assert (crop.region(base, mask, base.size, padding) is not None) == cropped
