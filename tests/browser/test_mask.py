"""A mask is painted by mouse, keys and touch; what is outside it stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, Visit
from tests.browser.desk import Desk, edited, payload
from tests.e2e.conftest import Tiers
from tests.e2e.pictures import photo, pixels

INVERT = "invert the colours"
Point = tuple[float, float]
"""Across and down, each 0..1 of the canvas."""


def open_editor(desk: Desk) -> None:
    desk.button("Paint a mask").click()
    expect(desk.editor).to_be_visible()


def at(desk: Desk, point: Point) -> Point:
    """Where a point of the mask is in the window."""
    canvas = desk.field("Mask canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]


def drag(desk: Desk, *points: Point) -> None:
    """One stroke of the mouse through these."""
    first, *rest = (at(desk, each) for each in points)
    desk.page.mouse.move(*first)
    desk.page.mouse.down()
    for each in rest:
        desk.page.mouse.move(*each, steps=6)
    desk.page.mouse.up()


def changed(result: Image.Image, was: Image.Image) -> Any:
    """True where a pixel differs at all, height x width."""
    moved: Any = np.abs(pixels(result) - pixels(was)).max(axis=2) > 0
    return moved


def edit_of(desk: Desk, was: Image.Image, count: int = 1) -> Any:
    """Where an edit with the mask as it is changes the picture."""
    desk.edit(INVERT)
    return changed(edited(desk.done(count).first), was)


def only_left(moved: Any) -> bool:
    """It changed in the left half, and not one pixel of the right half did."""
    half = moved.shape[1] // 2
    return bool(moved[:, :half].mean() > 0.05 and not moved[:, half + 8 :].any())


LEFT: Sequence[Point] = ((0.2, 0.3), (0.3, 0.7), (0.2, 0.7))


def test_by_the_mouse(ready: Desk, small: Image.Image) -> None:
    open_editor(ready)
    drag(ready, *LEFT)
    ready.shot("mask-light")
    moved = edit_of(ready, small)
    assert only_left(moved)
    assert moved[40:88, 26:36].mean() > 0.8, "inside the stroke"
    ready.shot("mask-result")


def test_nothing_painted_is_no_mask(ready: Desk, small: Image.Image) -> None:
    open_editor(ready)
    assert edit_of(ready, small).mean() > 0.9


def test_erase_undo_redo_clear(ready: Desk, small: Image.Image) -> None:
    open_editor(ready)
    expect(ready.button("Undo")).to_be_disabled()
    drag(ready, *LEFT)
    drag(ready, (0.8, 0.2), (0.8, 0.8))
    ready.button("Undo").click()
    assert only_left(edit_of(ready, small)), "the second stroke is undone"
    ready.button("Redo").click()
    expect(ready.button("Redo")).to_be_disabled()
    ready.editor.get_by_role("radio", name="Erase").check()
    drag(ready, (0.8, 0.1), (0.8, 0.9))
    ready.editor.get_by_role("slider", name="Brush size").press("End")
    drag(ready, (0.85, 0.1), (0.85, 0.9))
    assert only_left(edit_of(ready, small, 2)), "the second stroke is erased"
    ready.button("Clear").click()
    assert edit_of(ready, small, 3).mean() > 0.9, "no mask is left"


def test_invert(ready: Desk, small: Image.Image) -> None:
    open_editor(ready)
    drag(ready, *LEFT)
    ready.button("Invert").click()
    moved = edit_of(ready, small)
    assert not moved[60:68, 30:35].any(), "what was painted is kept"
    assert moved[:, 80:].mean() > 0.9


def test_by_the_keys(ready: Desk, small: Image.Image) -> None:
    open_editor(ready)
    keyboard = ready.page.keyboard
    ready.field("Mask canvas").focus()
    size = ready.editor.get_by_role("slider", name="Brush size")
    was = float(size.input_value())
    keyboard.press("]")
    assert float(size.input_value()) > was
    keyboard.press("[")
    assert float(size.input_value()) == was
    for _ in range(40):
        keyboard.press("ArrowLeft")
    for _ in range(4):
        keyboard.press("ArrowRight")
    keyboard.press("Space")
    expect(ready.button("Undo")).to_be_enabled()
    keyboard.press("Control+z")
    expect(ready.button("Undo")).to_be_disabled()
    keyboard.press("Control+y")
    moved = edit_of(ready, small)
    assert moved.any()
    assert not moved[:, 72:].any()


def test_by_touch(visit: Visit, small: Image.Image) -> None:
    desk = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    desk.add(payload(small))
    open_editor(desk)
    points = [at(desk, each) for each in LEFT]
    touch = desk.page.context.new_cdp_session(desk.page)
    for kind, point in zip(("touchStart", "touchMove", "touchMove"), points, strict=True):
        where = [{"x": point[0], "y": point[1]}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": where})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(desk.button("Undo")).to_be_enabled()
    desk.shot("mask-phone")
    assert only_left(edit_of(desk, small))


def test_on_a_photo_on_its_side(desk: Desk) -> None:
    """The mask has the upright photo's size."""
    upright = photo(192, 96)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    desk.add(payload(lying, "side.jpg", exif=exif, quality=100, subsampling=0))
    open_editor(desk)
    drag(desk, *LEFT)
    desk.edit(INVERT)
    result = edited(desk.done().first)
    assert result.size == upright.size
    apart = np.abs(pixels(result) - pixels(upright)).max(axis=2)
    assert apart[:, 108:].max() < 40, "the JPEG's own loss at most"
    assert apart[40:60, 40:56].mean() > 40


def test_another_first_image_takes_its_mask_away(ready: Desk) -> None:
    """A mask is of the picture that it was painted on."""
    open_editor(ready)
    drag(ready, *LEFT)
    ready.button("Remove photo.png").click()
    other = photo(96, 64)
    ready.add(payload(other, "other.png"))
    assert edit_of(ready, other).mean() > 0.9


def test_a_model_without_masks(ready: Desk, tiers: Tiers) -> None:
    """It is not sent one that was painted for another model."""
    open_editor(ready)
    drag(ready, *LEFT)
    ready.field("Model").select_option("plain")
    expect(ready.button("Paint a mask")).to_be_hidden()
    expect(ready.editor).to_be_hidden()
    ready.edit(INVERT)
    ready.done()


def test_a_large_photo_is_painted_at_once(visit: Visit) -> None:
    """A stroke over 12 megapixels keeps the page answering: no frame waits for a second."""
    desk = visit(viewport=DESKTOP)
    desk.add(payload(photo(800, 600).resize((4000, 3000)), "large.jpg", quality=80))
    open_editor(desk)
    desk.page.evaluate(
        """() => {
            window.slowest = 0;
            let last = performance.now();
            const tick = (now) => { slowest = Math.max(slowest, now - last); last = now; requestAnimationFrame(tick); };
            requestAnimationFrame(tick);
        }"""
    )
    drag(desk, (0.1, 0.1), (0.9, 0.2), (0.1, 0.4), (0.9, 0.6))
    assert desk.page.evaluate("slowest") < 1000
