"""An edit from the prompt to the picture, and what may be done with it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Route, expect

from tests.browser.conftest import Start, Visit
from tests.browser.desk import EDIT_MS, Desk, edited, payload, seed_of, shown, url_of
from tests.e2e.conftest import Tiers
from tests.e2e.pictures import chroma, difference, photo, pixels
from tests.run_up import wait_for

GREY = "turn it into a black and white photo"


def test_an_edit_is_followed_and_shown(ready: Desk, small: Image.Image) -> None:
    ready.listen()
    ready.fill(Steps="8", Previews="2")
    ready.edit(GREY)
    (result,) = ready.done().all()
    said, shares = ready.heard()
    steps = [int(told[1]) for each in said if (told := re.match(r"Step (\d+) of 8$", each))]
    assert steps == sorted(steps)
    assert len(steps) >= 3
    assert shares == sorted(shares)
    assert len(shares) >= 3
    expect(ready.page.get_by_role("progressbar", name="Progress")).to_be_hidden()
    expect(ready.button("Cancel")).to_be_hidden()
    ready.shot("result-light")

    picture = edited(result)
    assert picture.size == small.size
    assert chroma(pixels(picture)) < 0.5 * chroma(pixels(small))
    opened = httpx.get(url_of(result))
    assert (opened.status_code, opened.headers["content-type"]) == (200, "image/png")
    assert difference(opened.content, picture) == 0


def test_the_url_opens_in_its_own_tab_and_its_time_runs(ready: Desk) -> None:
    ready.edit(GREY)
    result = ready.done().first
    left = result.get_by_text(re.compile(r"^5\d:\d\d left$"))
    before = left.inner_text()
    link = result.get_by_role("link", name="Open URL")
    expect(link).to_have_attribute("target", "_blank")
    expect(link).to_have_attribute("rel", "noopener")
    with ready.page.context.expect_page() as opened:
        link.click()
    opened.value.wait_for_load_state()
    assert opened.value.url == url_of(result)
    assert opened.value.evaluate("opener") is None
    opened.value.close()
    expect(left).not_to_have_text(before)


def test_the_url_may_be_copied(visit: Visit, small: Image.Image) -> None:
    desk = visit(permissions=["clipboard-read", "clipboard-write"])
    desk.add(payload(small))
    desk.edit(GREY)
    result = desk.done().first
    result.get_by_role("button", name="Copy URL").click()
    assert desk.page.evaluate("navigator.clipboard.readText()") == url_of(result)


def test_three_images_their_seeds_and_one_of_them_again(ready: Desk) -> None:
    ready.page.get_by_role("spinbutton", name="Number of images").fill("3")
    ready.fill(Seed="18446744073709551000")  # no double holds it
    ready.listen()
    ready.edit("make it look like night")
    results = ready.done(3).all()
    assert {seed_of(each) for each in results} == {f"1844674407370955100{i}" for i in range(3)}
    assert any(re.match(r"Image [1-3] of 3, step \d of 6$", each) for each in ready.heard()[0])
    ready.shot("three-results")

    one = next(each for each in results if seed_of(each).endswith("1"))
    picture = edited(one)
    one.get_by_role("button", name="Use seed").click()
    expect(ready.field("Seed")).to_have_value("18446744073709551001")
    ready.page.get_by_role("spinbutton", name="Number of images").fill("1")
    ready.edit()
    again = ready.done(4).first
    assert seed_of(again) == "18446744073709551001"
    # Alone or in company it may differ by a rounding.
    assert difference(edited(again), picture) <= 1


def test_one_of_three_that_does_not_come(ready: Desk) -> None:
    """The others are shown, and where that one is to be had is said."""
    ready.watch.expected.add(0)
    gone: list[str] = []

    def cut_the_second(route: Route) -> None:
        gone.append(route.request.url)
        if len(gone) == 2:
            route.abort()
        else:
            route.continue_()

    ready.page.route("**/images/*.png", cut_the_second)
    ready.page.get_by_role("spinbutton", name="Number of images").fill("3")
    ready.fill(Seed="7")
    ready.edit(GREY)
    expect(ready.results).to_have_count(2, timeout=EDIT_MS)
    expect(ready.alert).to_contain_text(f"cannot be reached. Is it running? It is at {gone[1]}")
    assert [seed_of(each) for each in ready.results.all()] == ["7", "9"]
    expect(ready.button("Edit")).to_be_enabled()
    ready.shot("error-one-lost")


def test_a_random_seed_is_another_each_time_and_newest_is_first(ready: Desk) -> None:
    ready.edit(GREY)
    first = seed_of(ready.done().first)
    ready.edit()
    assert seed_of(ready.done(2).last) == first
    assert seed_of(ready.results.first) != first


def test_a_result_becomes_the_input(ready: Desk) -> None:
    ready.edit(GREY)
    result = ready.done().first
    picture = edited(result)
    result.get_by_role("button", name="Use as input").click()
    image = ready.inputs.first.get_by_role("img")
    expect(ready.inputs).to_have_count(1)
    expect(image).not_to_have_attribute("alt", "photo.png")
    assert difference(shown(image), picture) == 0
    ready.edit("invert the colours")
    assert difference(edited(ready.done(2).first), picture) > 20


def test_a_download(ready: Desk, tmp_path: Path) -> None:
    ready.fill(Seed="7")
    ready.edit(GREY)
    result = ready.done().first
    with ready.page.expect_download() as download:
        result.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "retouch-7.png"
    download.value.save_as(tmp_path / "saved.png")
    assert difference((tmp_path / "saved.png").read_bytes(), edited(result)) == 0


def test_other_formats(ready: Desk) -> None:
    expect(ready.field("Quality")).to_be_hidden()
    ready.fill()
    ready.field("Format").select_option("webp")
    ready.fill(Quality="50")
    ready.edit(GREY)
    opened = httpx.get(url_of(ready.done().first))
    assert opened.headers["content-type"] == "image/webp"


def _seen(slider: Locator, size: tuple[int, int]) -> Image.Image:
    """What the eye has where the slider's pictures are."""
    item = slider.locator("xpath=ancestor::li[1]")
    shot = item.get_by_role("img").last.screenshot()
    return Image.open(io.BytesIO(shot)).convert("RGB").resize(size)


def _apart(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(pixels(one) - pixels(other)).mean())


def test_before_and_after_by_the_keyboard(ready: Desk, small: Image.Image) -> None:
    ready.edit("invert the colours")
    result = ready.done().first
    slider = result.get_by_role("slider", name="Compare before and after")
    slider.focus()
    ends = {}
    for key in ("Home", "End"):
        ready.page.keyboard.press(key)
        ends[key] = _seen(slider, small.size)
    ready.page.keyboard.press("ArrowLeft")
    expect(slider).not_to_have_value(str(slider.get_attribute("max")))
    after = edited(result)
    first, last = ends["Home"], ends["End"]
    if _apart(first, small) > _apart(first, after):
        first, last = last, first
    assert _apart(first, small) < 0.3 * _apart(first, after), "one end is before"
    assert _apart(last, after) < 0.3 * _apart(last, small), "the other is after"


def test_a_size_that_crops(desk: Desk) -> None:
    desk.add(payload(photo(256, 128)))
    desk.field("Size").select_option("256x256")
    desk.edit(GREY)
    assert edited(desk.done().first).size == (256, 256)
    desk.shot("cropped")


def test_a_size_that_is_typed(ready: Desk) -> None:
    ready.size("192x96")
    ready.edit(GREY)
    assert edited(ready.done().first).size == (192, 96)


def test_the_examples_are_the_models_own(ready: Desk, tiers: Tiers) -> None:
    model = tiers.rest.get("/v1/models/pocket").json()
    examples = ready.page.get_by_role("group", name="Examples").get_by_role("button")
    assert examples.all_inner_texts() == model["examples"]
    assert model["examples"]
    examples.first.click()
    expect(ready.field("Prompt")).to_have_value(model["examples"][0])
    ready.field("Prompt").press("Control+Enter")
    ready.done()


def test_reset_puts_all_back(ready: Desk) -> None:
    placeholder = ready.field("Steps").get_attribute("placeholder")
    assert placeholder
    assert "6" in placeholder
    ready.fill(Steps="3", Seed="9")
    ready.button("Reset").click()
    expect(ready.field("Steps")).to_have_value("")
    expect(ready.field("Seed")).to_have_value("")
    expect(ready.inputs).to_have_count(1)


def test_time_runs_out(start: Start, visit: Visit, small: Image.Image) -> None:
    """After its seconds a URL is said to be gone; the picture stays."""
    desk = visit(start("short", RETOUCH_GATEWAY_TTL="4").url)
    desk.add(payload(small))
    desk.edit(GREY)
    result = desk.done().first
    url = url_of(result)
    assert httpx.get(url).status_code == 200
    expect(result.get_by_text("Expired")).to_be_visible()
    wait_for(lambda: httpx.get(url).status_code == 410, 2, "gone, as it is said to be")
    assert edited(result).size == small.size
