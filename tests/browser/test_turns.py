"""What was true a moment ago: things that go while others come, and errors that are over."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.desk import Desk, payload

READ_MS = 60_000
ADD_AND_REMOVE = """async ([name, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const given = new DataTransfer();
    given.items.add(new File([bytes], name));
    const input = document.querySelector("input[type=file]");
    input.files = given.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    for (let i = 0; i < 5; i++) await null; // begun, and not yet read: that takes tasks, not microtasks
    document.querySelector("[aria-label='Remove photo.png']").click();
}"""
EVENTS = """async ([text, size]) => {
    const { events } = await import("./playground/sse.js");
    const bytes = new TextEncoder().encode(text);
    const body = new ReadableStream({
        start(controller) {
            for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
            controller.close();
        },
    });
    const got = [];
    for await (const each of events(body)) got.push(each);
    return got;
}"""
STREAM = (
    ': queued {"position":0}\n\n: keep-alive\n\nevent: one\ndata: {"text":"é€😀"}\n\n'
    "event: two\ndata: a\ndata:b\n\ndata: bare\n\n\nevent: none\n\nevent: cut\ndata: of"
)
TOLD: list[dict[str, Any]] = [
    {"comment": 'queued {"position":0}'},
    {"comment": "keep-alive"},
    {"event": "one", "data": '{"text":"é€😀"}'},
    {"event": "two", "data": "a\nb"},
    {"event": "message", "data": "bare"},
]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_cut_anywhere(desk: Desk, size: int, ends: str) -> None:
    """Pieces end within a letter, a line, an event; what is cut off at the end is no event."""
    assert desk.page.evaluate(EVENTS, [STREAM.replace("\n", ends), size]) == TOLD


def test_removed_while_another_is_read(ready: Desk, small: Image.Image) -> None:
    data = base64.b64encode(payload(small)["buffer"]).decode()
    ready.page.evaluate(ADD_AND_REMOVE, ["other.png", data])
    expect(ready.inputs.get_by_role("img")).to_have_attribute("alt", "other.png")
    expect(ready.inputs).to_have_count(1)


def test_cancelled_while_a_photo_is_read(desk: Desk) -> None:
    """What takes its time is said; an edit that waits for it can be cancelled."""
    noise = Image.effect_noise((4000, 3000), 60).convert("RGB")
    desk.field("Add images").set_input_files([payload(noise, "large.jpg", quality=95)])
    desk.edit("make it night")
    expect(desk.page.get_by_text("Reading large.jpg")).to_be_visible()
    desk.button("Cancel").click()
    expect(desk.status).to_have_text("Cancelled", timeout=READ_MS)
    expect(desk.inputs).to_have_count(1)
    expect(desk.page.get_by_text("Reading large.jpg")).to_be_hidden()
    expect(desk.button("Edit")).to_be_enabled()
    expect(desk.results).to_have_count(0)


def test_the_mask_is_saved_at_once(ready: Desk) -> None:
    """The canvas loses the focus to the button that is pressed."""
    ready.button("Paint a mask").click()
    ready.field("Mask canvas").click()
    with ready.page.expect_download() as download:
        ready.button("Save mask.png").click()
    assert download.value.suggested_filename == "mask.png"


def test_what_is_wrong_in_a_hidden_field(ready: Desk) -> None:
    """It is not sent, so it is not wrong."""
    ready.fill()
    ready.field("Format").select_option("jpeg")
    ready.field("Quality").press("e")
    ready.edit("make it night")
    expect(ready.field("Quality")).to_have_attribute("aria-invalid", "true")
    ready.field("Format").select_option("png")
    ready.edit()
    ready.done()


def test_an_error_is_read_until_it_is_mended(ready: Desk) -> None:
    ready.watch.expected.add(400)
    ready.fill(Steps="101")
    ready.edit("make it night")
    steps = ready.field("Steps")
    expect(steps).to_have_attribute("aria-invalid", "true")
    steps.click()
    expect(steps).to_have_attribute("aria-invalid", "true")
    steps.press("Backspace")
    expect(steps).not_to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize("how", ["removed", "another model"])
def test_an_error_at_an_image_goes_with_what_it_was_about(
    ready: Desk, small: Image.Image, how: str
) -> None:
    ready.watch.expected.add(400)
    ready.field("Model").select_option("plain")
    moving = payload(small, "moving.webp", save_all=True, append_images=[small.rotate(9)])
    ready.add(moving)
    ready.edit("make it night")
    images = ready.field("Add images")
    expect(images).to_have_attribute("aria-invalid", "true")
    expect(ready.inputs.nth(1)).to_contain_text("animated")
    if how == "removed":
        ready.button("Remove moving.webp").click()
    else:
        ready.field("Model").select_option("pocket")
    expect(images).not_to_have_attribute("aria-invalid", "true")


def test_an_error_of_the_mask_is_in_sight(ready: Desk) -> None:
    ready.watch.expected.add(400)
    ready.button("Paint a mask").click()
    ready.button("Invert").click()
    ready.edit("make it night")
    expect(ready.field("Mask canvas")).to_be_focused()
    expect(ready.editor.get_by_text("selects everything")).to_be_in_viewport(ratio=1)
    bar = ready.button("Edit").bounding_box()
    told = ready.editor.get_by_text("selects everything").bounding_box()
    assert bar
    assert told
    assert told["y"] + told["height"] < bar["y"], "not behind the bar that sticks"
