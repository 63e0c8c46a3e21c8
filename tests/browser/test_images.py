"""Pictures come in: by the picker, by drop, by paste, of every kind, and leave again."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.browser.desk import Desk, edited, payload, shown
from tests.e2e.pictures import difference, photo, pixels, png

COPY = """async (data) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const item = new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) });
    await navigator.clipboard.write([item]);
}"""


def test_the_first_sight(desk: Desk) -> None:
    expect(desk.page).to_have_title("Retouch playground")
    expect(desk.page.get_by_role("main")).to_have_count(1)
    expect(desk.field("Prompt")).to_be_visible()
    expect(desk.button("Paint a mask")).to_be_disabled()
    expect(desk.field("API key")).to_be_hidden()
    expect(desk.field("Model")).to_have_value("pocket")
    desk.shot("first-light")


def test_by_the_picker(desk: Desk, small: Image.Image, tmp_path: Path) -> None:
    small.save(tmp_path / "my photo.png")
    desk.field("Add images").set_input_files(tmp_path / "my photo.png")
    image = desk.inputs.get_by_role("img", name="my photo.png")
    expect(image).to_be_visible()
    assert difference(shown(image), small) == 0
    expect(desk.button("Paint a mask")).to_be_enabled()
    desk.button("Remove my photo.png").click()
    expect(desk.inputs).to_have_count(0)
    expect(desk.button("Paint a mask")).to_be_disabled()


def test_by_drop_of_a_file_anywhere(desk: Desk, small: Image.Image, tmp_path: Path) -> None:
    small.save(tmp_path / "dropped.png")
    data = {"items": [], "files": [str(tmp_path / "dropped.png")], "dragOperationsMask": 1}
    devtools = desk.page.context.new_cdp_session(desk.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 900, "y": 700, "data": data})
    image = desk.inputs.get_by_role("img", name="dropped.png")
    expect(image).to_be_visible()
    assert difference(shown(image), small) == 0


def test_by_paste(visit: Visit, small: Image.Image) -> None:
    desk = visit(permissions=["clipboard-read", "clipboard-write"])
    desk.page.evaluate(COPY, base64.b64encode(png(small)).decode())
    desk.page.keyboard.press("Control+v")
    expect(desk.inputs).to_have_count(1)
    assert difference(shown(desk.inputs.get_by_role("img")), small) == 0
    # Words are still pasted as words.
    desk.page.evaluate("() => navigator.clipboard.writeText('make it night')")
    desk.field("Prompt").focus()
    desk.page.keyboard.press("Control+v")
    expect(desk.field("Prompt")).to_have_value("make it night")
    expect(desk.inputs).to_have_count(1)


def test_several_and_which_is_the_first(desk: Desk) -> None:
    desk.field("Model").select_option("plain")
    colours = ("red", "green", "blue")
    desk.add(*(payload(Image.new("RGB", (64, 64), each), f"{each}.png") for each in colours))
    expect(desk.button("Make red.png the first")).to_have_count(0)
    desk.button("Make blue.png the first").click()
    first = desk.inputs.first.get_by_role("img")
    expect(first).to_have_attribute("alt", "blue.png")
    expect(desk.button("Make blue.png the first")).to_have_count(0)
    desk.button("Remove green.png").click()
    expect(desk.inputs).to_have_count(2)
    desk.edit("all of them")
    desk.done()


def test_more_than_the_model_takes(desk: Desk, small: Image.Image) -> None:
    """pocket takes one: the others are said not to be sent, and are there for another model."""
    desk.add(payload(small, "one.png"), payload(small.rotate(180), "two.png"))
    kept = desk.inputs.nth(1)
    expect(kept).to_contain_text("Not sent: pocket takes one image.")
    expect(desk.inputs.first).not_to_contain_text("Not sent")
    expect(desk.page.get_by_text("Not sent: two.png")).to_have_attribute("aria-live", "polite")
    code = desk.page.get_by_role("region", name="The request").get_by_role("tabpanel")
    expect(code).to_contain_text("one.png")
    expect(code).not_to_contain_text("two.png")
    desk.shot("unsent")
    desk.fill(Strength="0")
    desk.edit("make it night")
    assert difference(edited(desk.done().first), small) <= 1
    desk.button("Make two.png the first").click()
    expect(desk.inputs.nth(1)).to_contain_text("Not sent")
    expect(code).to_contain_text("two.png")
    desk.field("Model").select_option("plain")
    expect(kept).not_to_contain_text("Not sent")
    expect(code).to_contain_text("one.png")
    desk.edit()
    desk.done(2)


def test_two_of_one_name_that_are_sent_as_another_format(desk: Desk, small: Image.Image) -> None:
    """Programs read them from one folder: each has a name of its own there, also one that is sent as it is."""
    desk.field("Model").select_option("plain")
    for name in ("a.bmp", "a.gif"):
        desk.add(payload(small, name))
    desk.add(payload(small, "a-sent.png"))
    files = desk.page.get_by_role("button", name=re.compile(r"^Save a-sent"))
    names = ["a-sent.png", "a-sent-2.png", "a-sent-3.png"]
    assert files.all_inner_texts() == [f"Save {name}" for name in names]
    code = desk.page.get_by_role("region", name="The request").get_by_role("tabpanel")
    assert re.findall(r'@"(.+?)"', code.inner_text()) == names
    desk.edit("all of them")
    desk.done()


@pytest.mark.parametrize("name", ["notes.png", "empty.png", "photo.heic", "animation.gif"])
def test_what_is_no_picture(desk: Desk, name: str) -> None:
    """Said at the field, and nothing is listed."""
    data = b"" if name == "empty.png" else b"no picture at all"
    file = desk.field("Add images")
    file.set_input_files({"name": name, "mimeType": "image/png", "buffer": data})
    expect(file).to_have_attribute("aria-invalid", "true")
    message = file.evaluate(
        "(input) => input.getAttribute('aria-describedby').split(' ')"
        ".map((id) => document.getElementById(id).innerText).join(' ')"
    )
    assert name in message
    expect(desk.inputs).to_have_count(0)
    if name == "notes.png":
        desk.shot("error-file")


def test_a_photo_on_its_side(desk: Desk) -> None:
    """EXIF says how to turn it: shown, edited and sized upright."""
    lying = photo(192, 128).transpose(Image.Transpose.ROTATE_90)  # as the sensor had it
    exif = Image.Exif()
    exif[0x0112] = 6
    desk.add(payload(lying, "side.jpg", exif=exif, quality=95))
    assert shown(desk.inputs.get_by_role("img")).size == (192, 128)
    desk.edit("invert the colours")
    result = desk.done().first
    assert edited(result).size == (192, 128)


def test_a_transparent_picture(desk: Desk, small: Image.Image) -> None:
    clear = small.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 64, 128))
    desk.add(payload(clear, "clear.png"))
    desk.fill(Strength="0")
    desk.edit("make it night")
    moved = np.abs(pixels(edited(desk.done().first)) - 255)[:, :60]
    assert moved.max() <= 1, "flattened over white"


def test_a_webp(desk: Desk, small: Image.Image) -> None:
    desk.add(payload(small, "photo.webp", lossless=True))
    assert difference(shown(desk.inputs.get_by_role("img")), small) == 0
    desk.edit("make it night")
    desk.done()


def test_a_photo_of_24_megapixels(desk: Desk) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((6000, 4000))
    file = payload(large, "large.jpg", quality=90)
    desk.add(file)
    # Whatever the page sends of it, the gateway takes it: an edit of an image above its limit would be a 400.
    desk.field("Size").select_option("256x256")
    desk.edit("make it night")
    assert edited(desk.done().first).size == (256, 256)
    if len(file["buffer"]) > 4 * 2**20:
        expect(desk.inputs).to_contain_text(re.compile(r"MB|MiB|scaled|smaller|reduced"))
    desk.shot("large-photo")
