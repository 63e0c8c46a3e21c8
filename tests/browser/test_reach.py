"""By keyboard alone, on a phone, in the dark, with a screen reader's tree: each can do all of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser import looks
from tests.browser.conftest import DESKTOP, Visit
from tests.browser.desk import Desk, payload

PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "has_touch": True,
    "is_mobile": True,
}


def at_first(_desk: Desk, _small: Image.Image) -> None:
    pass


def at_work(desk: Desk, small: Image.Image) -> None:
    """Everything is open: More, the mask's editor, a result, and an error at a field."""
    desk.add(payload(small))
    desk.edit("make it night")
    desk.done()
    desk.button("Paint a mask").click()
    desk.watch.expected.add(400)
    desk.fill(Negative_prompt="dull")
    desk.edit()
    expect(desk.field("Negative prompt")).to_have_attribute("aria-invalid", "true")


State = Callable[[Desk, Image.Image], None]
STATES = [at_first, at_work]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_names_contrast_and_structure(
    visit: Visit, small: Image.Image, state: State, scheme: str
) -> None:
    desk = visit(color_scheme=scheme)
    state(desk, small)
    desk.shot(f"{state.__name__}-{scheme}")
    assert looks.nameless(desk.page) == []
    assert looks.faint(desk.page) == []
    levels = [_level(node) for node in looks.tree(desk.page) if node["role"]["value"] == "heading"]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    roles = [node["role"]["value"] for node in looks.tree(desk.page)]
    assert roles.count("main") == 1
    assert roles.count("banner") == 1
    assert desk.page.locator("html").get_attribute("lang") == "en"


def _level(node: dict[str, Any]) -> int:
    return next(
        int(each["value"]["value"]) for each in node["properties"] if each["name"] == "level"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_as_dark_as_asked(visit: Visit, scheme: str) -> None:
    desk = visit(color_scheme=scheme)
    colour = desk.page.evaluate("getComputedStyle(document.body).backgroundColor")
    ground = [int(each) for each in re.findall(r"\d+", colour)[:3]]
    assert (min(ground) > 200) if scheme == "light" else (max(ground) < 60)


@pytest.mark.parametrize("state", STATES)
def test_nothing_lies_beside_the_window(visit: Visit, small: Image.Image, state: State) -> None:
    desk = visit(**PHONE)
    state(desk, small)
    for width in (320, 360, 600, 768, 1024, 1920):
        desk.page.set_viewport_size({"width": width, "height": 740})
        assert looks.overflow(desk.page) <= 0, width
        if width in (320, 360):
            desk.shot(f"{state.__name__}-{width}")


@pytest.mark.parametrize("device", [PHONE, {"viewport": DESKTOP}], ids=["phone", "desktop"])
@pytest.mark.parametrize("state", STATES)
def test_tab_comes_to_everything_in_order(
    visit: Visit, small: Image.Image, state: State, device: dict[str, Any]
) -> None:
    desk = visit(**device)
    state(desk, small)
    stops = list(looks.tabbed(desk.page))
    assert len(stops) == looks.focusable(desk.page)
    assert [stop["order"] for stop in stops] == sorted(stop["order"] for stop in stops)
    window = desk.page.viewport_size
    assert window
    for stop in stops:
        assert stop["name"], stop
        assert stop["ring"], f"{stop['name']}: focus is not seen"
        assert stop["left"] >= 0, stop
        assert stop["right"] <= window["width"] + 1, stop
        assert stop["seen"], f"{stop['name']}: focus is out of sight or covered"
    names = [stop["name"] for stop in stops]
    order = [names.index(each) for each in ("Add images", "Prompt", "Model", "Edit", "Copy")]
    assert order == sorted(order)


def test_a_finger_meets_everything(visit: Visit, small: Image.Image) -> None:
    desk = visit(**PHONE)
    at_work(desk, small)
    assert looks.small(desk.page) == []


def test_all_of_an_edit_by_the_keyboard(desk: Desk, small: Image.Image) -> None:
    """From the prompt by Tab and keys alone to a result, cancelled and made."""
    desk.add(payload(small))
    keyboard = desk.page.keyboard
    desk.field("Prompt").focus()
    keyboard.type("make it night")
    for _ in range(30):
        keyboard.press("Tab")
        if desk.button("Edit").evaluate("(button) => button === document.activeElement"):
            break
    keyboard.press("Enter")
    desk.done()


@pytest.mark.parametrize("wish", ["reduce", "no-preference"])
def test_little_moves_where_that_is_wished(visit: Visit, small: Image.Image, wish: str) -> None:
    desk = visit(reduced_motion=wish)
    desk.add(payload(small))
    desk.page.evaluate(
        """() => { window.moved = []; for (const kind of ["transitionrun", "animationstart"])
            addEventListener(kind, (event) => moved.push(event.propertyName ?? event.animationName), true); }"""
    )
    desk.edit("make it night")
    desk.done()
    desk.button("Paint a mask").click()
    desk.button("Edit").hover()
    if wish == "reduce":
        assert desk.page.evaluate("moved") == []


def test_forced_colours(visit: Visit, small: Image.Image) -> None:
    desk = visit(forced_colors="active")
    at_work(desk, small)
    assert looks.nameless(desk.page) == []
    desk.shot("forced-colours")
