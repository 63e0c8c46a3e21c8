"""A mask's edge: soft, inside it only, and never at the price of the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from retouch_server.feather import soft_edge

SHAPES = ("rectangle", "ellipse")


@st.composite
def masks(draw: Any) -> Image.Image:
    """Rectangles and ellipses in black, grey and white, also over the border, at sizes with ramps of 2 to 5 pixels."""
    width, height = draw(st.integers(1, 330)), draw(st.integers(1, 330))
    mask = Image.new("L", (width, height), draw(st.sampled_from([0, 0, 0, 255])))
    for _ in range(draw(st.integers(0, 5))):
        x, y = draw(st.integers(-9, width)), draw(st.integers(-9, height))
        right, bottom = x + draw(st.integers(0, width)), y + draw(st.integers(0, height))
        shape = getattr(ImageDraw.Draw(mask), draw(st.sampled_from(SHAPES)))
        shape((x, y, right, bottom), fill=draw(st.sampled_from([0, 90, 255, 255])))
    return mask


def largest_around(values: npt.NDArray[Any], by: int) -> npt.NDArray[Any]:
    padded = np.pad(values, by)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * by + 1, 2 * by + 1))
    return np.asarray(windows.max((2, 3)))


@given(masks())
def test_within_the_mask_and_never_more_than_it(mask: Image.Image) -> None:
    alpha, grey = soft_edge(mask), np.asarray(mask) / np.float32(255)
    assert alpha.dtype == np.float32
    assert alpha.shape == grey.shape
    assert (alpha <= grey).all()
    assert ((alpha > 0) == (grey > 0)).all()


@given(masks())
def test_wherever_the_mask_is_its_full_strength_is_near(mask: Image.Image) -> None:
    solid = mask.point(lambda grey: 255 if grey else 0)
    width = min(max(min(mask.size) // 64, 2), 16)
    full = (soft_edge(solid) == 1).astype(np.uint8)
    assert (largest_around(full, 2 * width) >= (np.asarray(solid) > 0)).all()


@given(masks(), st.booleans(), st.booleans(), st.booleans())
def test_no_direction_is_another(mask: Image.Image, flip: bool, mirror: bool, turn: bool) -> None:
    def moved(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        values = values[:: -1 if flip else 1, :: -1 if mirror else 1]
        return values.T if turn else values

    other = Image.fromarray(np.ascontiguousarray(moved(np.asarray(mask))))
    assert np.array_equal(soft_edge(other), moved(soft_edge(mask)))


@pytest.mark.parametrize(("side", "width"), [(64, 2), (256, 4), (1024, 16), (2048, 16)])
def test_it_rises_evenly_over_a_64th_of_the_side(side: int, width: int) -> None:
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 2, 0, side, side))
    ramp = soft_edge(mask)[side // 3, side // 2 - 1 :]
    assert ramp[: width + 1] == pytest.approx(np.arange(width + 1) / width)
    assert (ramp[width:] == 1).all()  # up to the picture's border, which is no edge


@pytest.mark.parametrize("lean", [0, 150, 400, 900])
def test_it_is_as_wide_in_every_direction(lean: int) -> None:
    mask = Image.new("L", (1024, 1024), 0)
    ImageDraw.Draw(mask).polygon(
        [(500 - lean, -1), (500 + lean, 1024), (2000, 1024), (2000, -1)], 255
    )
    alpha = soft_edge(mask)
    # The ramp's area over the edge's length is its width in the normal's direction.
    ramp = ((alpha > 0) & (alpha < 1))[300:700].sum() / np.hypot(400, 400 * lean / 512)
    assert ramp == pytest.approx(15.5, rel=0.1)


@pytest.mark.parametrize("thick", [1, 2, 3, 7])
def test_a_thin_line_keeps_its_strength_also_where_it_meets_a_shape(thick: int) -> None:
    mask = Image.new("L", (1024, 1024), 0)
    mask.paste(255, (100, 300, 500, 300 + thick))
    mask.paste(255, (500, 100, 900, 900))
    alpha = soft_edge(mask)
    assert (alpha[300 + thick // 2, 100 + thick // 2 : 499 - thick // 2] == 1).all()
    assert (alpha[500, 500:515] < 1).all()


def test_a_single_pixel_stays() -> None:
    mask = Image.new("L", (1024, 1024), 0)
    mask.putpixel((512, 0), 255)
    mask.putpixel((3, 700), 255)
    assert soft_edge(mask).sum() == 2


def test_a_mask_of_everything_has_no_edge_and_an_empty_one_nothing() -> None:
    for grey in (0, 100, 255):
        assert (soft_edge(Image.new("L", (300, 200), grey)) == np.float32(grey / 255)).all()


def test_a_soft_brush_is_left_as_it_is() -> None:
    """What fades more slowly than the edge would is the caller's own softness."""
    ramp = np.clip(np.arange(512) - 100, 0, 255).astype(np.uint8)
    mask = Image.fromarray(np.tile(ramp, (512, 1)))
    assert np.array_equal(soft_edge(mask), np.asarray(mask) / np.float32(255))
