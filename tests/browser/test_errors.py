"""What is wrong is said where it is wrong, and focus goes there."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from playwright.sync_api import Locator, expect

from tests.browser.conftest import Start, Visit
from tests.browser.desk import Desk, payload

LONG = "x" * 4001


def told_at(field: Locator) -> str:
    """What stands at a field that is said to be wrong, and has the focus."""
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    told: str = field.evaluate(
        """(field) => field.getAttribute("aria-describedby").split(" ")
            .map((id) => document.getElementById(id))
            .filter((each) => each.checkVisibility()).map((each) => each.innerText).join(" ")"""
    )
    return told


@pytest.mark.parametrize(
    ("label", "text", "says"),
    [
        ("Steps", "101", "1 to 100"),
        ("Steps", "0", "1 to 100"),
        ("Guidance scale", "21", "0 to 20"),
        ("Strength", "1.5", "0 to 1"),
        ("Seed", "18446744073709551616", "2^64-1"),
    ],
)
def test_a_knob(ready: Desk, label: str, text: str, says: str) -> None:
    ready.watch.expected.add(400)
    ready.fill(**{label: text})
    ready.edit("make it night")
    assert says in told_at(ready.field(label))
    expect(ready.results).to_have_count(0)
    ready.fill(**{label: ""})
    expect(ready.field(label)).not_to_have_attribute("aria-invalid", "true")


def test_what_is_mended_goes_through(ready: Desk) -> None:
    ready.watch.expected.add(400)
    ready.fill(Negative_prompt="dull")
    ready.edit("make it night")
    assert "guidance" in told_at(ready.field("Negative prompt"))
    ready.shot("error-field")
    ready.fill(Guidance_scale="2")
    ready.edit()
    ready.done()
    expect(ready.field("Negative prompt")).not_to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize(("size", "says"), [("100x100", "8"), ("4096x4096", "pixels"), ("big", "")])
def test_a_size(ready: Desk, size: str, says: str) -> None:
    ready.watch.expected.add(400)
    ready.size(size)
    ready.edit("make it night")
    assert says in told_at(ready.field("Custom size"))
    expect(ready.results).to_have_count(0)


@pytest.mark.parametrize("prompt", ["", "   ", LONG], ids=["none", "blank", "long"])
def test_a_prompt(ready: Desk, prompt: str) -> None:
    ready.watch.expected.add(400)
    ready.edit(prompt)
    assert told_at(ready.field("Prompt"))
    expect(ready.results).to_have_count(0)


def test_no_image(desk: Desk) -> None:
    desk.watch.expected.add(400)
    desk.edit("make it night")
    assert told_at(desk.field("Add images"))


def test_too_often(start: Start, visit: Visit, small: Image.Image) -> None:
    """A 429 says in how many seconds, and counts them down."""
    desk = visit(start("limited", RETOUCH_GATEWAY_RATE_LIMIT="1/minute").url)
    desk.add(payload(small))
    desk.edit("make it night")
    desk.done()
    desk.watch.expected.add(429)
    desk.edit()
    expect(desk.alert).to_contain_text(re.compile(r"\d+ s"))
    first = seconds(desk)
    assert 0 < first <= 60
    desk.shot("error-429")
    expect(desk.alert).not_to_contain_text(f" {first} s")
    assert first - 5 < seconds(desk) < first
    expect(desk.results).to_have_count(1)


def seconds(desk: Desk) -> int:
    """How long the alert says to wait."""
    found = re.search(r"(\d+) s", desk.alert.inner_text())
    assert found
    return int(found[1])
