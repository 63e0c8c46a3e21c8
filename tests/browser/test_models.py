"""The page shows what the model can do and no more; and a gateway may show no page."""

from __future__ import annotations

import httpx
from playwright.sync_api import expect

from tests.browser.conftest import Start
from tests.browser.desk import Desk
from tests.e2e.conftest import Tiers

KNOBS = ("Strength", "Guidance scale", "Negative prompt")


def test_the_models_are_those_that_are_served(desk: Desk, tiers: Tiers) -> None:
    served = [model["id"] for model in tiers.rest.get("/v1/models").json()["data"]]
    assert desk.field("Model").get_by_role("option").all_inner_texts() == served


def test_knobs_are_those_of_the_model(desk: Desk) -> None:
    desk.fill()
    for each in KNOBS:
        expect(desk.field(each)).to_be_visible()
    expect(desk.field("Max mode")).to_be_hidden()
    desk.field("Model").select_option("plain")
    for each in KNOBS:
        expect(desk.field(each)).to_be_hidden()
    expect(desk.field("Max mode")).to_be_visible()
    expect(desk.button("Paint a mask")).to_be_hidden()
    expect(desk.page.get_by_role("group", name="Examples")).to_be_hidden()
    desk.shot("plain-model")
    desk.field("Model").select_option("pocket")
    for each in KNOBS:
        expect(desk.field(each)).to_be_visible()


def test_a_knob_set_for_another_model_is_not_sent(ready: Desk) -> None:
    ready.fill(Strength="0.5", Guidance_scale="3", Negative_prompt="dull")
    ready.field("Model").select_option("plain")
    ready.edit("anything")
    ready.done()


def test_the_defaults_are_shown(desk: Desk, tiers: Tiers) -> None:
    defaults = tiers.rest.get("/v1/models/pocket").json()["defaults"]
    names = {
        "strength": "Strength",
        "guidance_scale": "Guidance scale",
        "num_inference_steps": "Steps",
    }
    desk.fill()
    for name, label in names.items():
        placeholder = desk.field(label).get_attribute("placeholder")
        assert placeholder
        assert float(placeholder.split()[0]) == defaults[name]


def test_the_sizes_are_those_that_the_model_makes(desk: Desk, tiers: Tiers) -> None:
    limits = tiers.rest.get("/v1/models/pocket").json()["limits"]
    options = desk.field("Size").get_by_role("option").all_inner_texts()
    assert options[0] == "As the image"
    sizes = [each.replace(" ", "").replace("×", "x") for each in options if each[0].isdigit()]
    assert {"256x256", "512x512", "1024x1024"} <= set(sizes)
    for each in sizes:
        width, height = map(int, each.split("x"))
        assert limits["min_pixels"] <= width * height <= limits["max_pixels"]
        assert width % limits["size_multiple"] == height % limits["size_multiple"] == 0


def test_switched_off_there_is_no_page(start: Start) -> None:
    url = start("off", RETOUCH_GATEWAY_PLAYGROUND="false").url
    for path in ("/", "/playground/app.js", "/playground/index.html", "/playground/style.css"):
        assert httpx.get(f"{url}{path}").status_code == 404
    assert httpx.get(f"{url}/v1/models").status_code == 200


def test_a_page_that_is_known_is_not_sent_again(desk: Desk) -> None:
    """The tag of each file is asked for, and holds."""
    with desk.page.expect_response(lambda response: response.url.endswith("app.js")) as again:
        desk.page.reload()
    assert again.value.status in (200, 304)
    assert again.value.headers["cache-control"] == "no-cache"
