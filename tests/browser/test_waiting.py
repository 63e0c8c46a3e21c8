"""Edits that take long: cancelled, left, in the queue, and with a tier that goes away under them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser import stack
from tests.browser.conftest import Start, Visit
from tests.browser.desk import Desk, payload
from tests.e2e.conftest import Tiers
from tests.run_up import wait_for

FREED_SECONDS = 20.0
WITHIN_MS = 20_000


def running(tiers: Tiers, model: str) -> float:
    return tiers.metric("server", "retouch_server_running", model=model)


def cancelled(tiers: Tiers, model: str) -> float:
    return tiers.metric("server", "retouch_server_edits_total", model=model, outcome="cancelled")


def begin_long(desk: Desk, small: Image.Image, model: str = "pocket") -> None:
    """Starts an edit of a minute or more."""
    desk.field("Model").select_option(model)
    desk.add(payload(small))
    desk.field("Size").select_option("512x512")
    desk.fill(Steps="100")
    desk.edit("make it look like night")


def under_way(desk: Desk) -> None:
    expect(desk.status).to_have_text(re.compile(r"^Step [1-9]\d* of 100$"), timeout=WITHIN_MS)


@pytest.mark.parametrize("how", ["the button", "Escape", "leaving the page"])
def test_cancel_frees_the_slot(desk: Desk, small: Image.Image, tiers: Tiers, how: str) -> None:
    wait_for(lambda: running(tiers, "pocket") == 0, FREED_SECONDS, "idle")
    before = cancelled(tiers, "pocket")
    begin_long(desk, small)
    under_way(desk)
    expect(desk.page.get_by_role("progressbar", name="Progress")).to_be_visible()
    assert running(tiers, "pocket") == 1
    desk.shot("progress")
    if how == "the button":
        desk.button("Cancel").click()
    elif how == "Escape":
        desk.page.keyboard.press("Escape")
    else:
        desk.page.close()
    wait_for(lambda: running(tiers, "pocket") == 0, FREED_SECONDS, "the slot free")
    assert cancelled(tiers, "pocket") == before + 1
    if desk.page.is_closed():
        return
    expect(desk.status).to_have_text("Cancelled")
    expect(desk.button("Cancel")).to_be_hidden()
    expect(desk.results).to_have_count(0)
    expect(desk.alert.filter(has_text=re.compile(r"\w"))).to_have_count(0)
    desk.fill(Steps="2")
    desk.edit()
    desk.done()


def test_a_place_in_the_queue(visit: Visit, small: Image.Image, tiers: Tiers) -> None:
    first, second, third = visit(), visit(), visit()
    begin_long(first, small, "narrow")
    under_way(first)
    begin_long(second, small, "narrow")
    expect(second.status).to_have_text("Next in the queue", timeout=WITHIN_MS)
    begin_long(third, small, "narrow")
    expect(third.status).to_have_text("In the queue, 1 ahead", timeout=WITHIN_MS)
    third.shot("queue")
    first.button("Cancel").click()
    under_way(second)
    second.button("Cancel").click()
    third.button("Cancel").click()
    expect(third.status).to_have_text("Cancelled")
    wait_for(lambda: running(tiers, "narrow") == 0, FREED_SECONDS, "the slot free")
    assert tiers.metric("server", "retouch_server_queued", model="narrow") == 0


def test_the_gateway_goes_away(start: Start, visit: Visit, small: Image.Image) -> None:
    gateway = start("killed")
    desk = visit(gateway.url)
    begin_long(desk, small)
    under_way(desk)
    desk.watch.expected.add(0)
    gateway.kill()
    expect(desk.alert).to_contain_text(re.compile("lost|connection|reach", re.IGNORECASE))
    expect(desk.button("Edit")).to_be_enabled()
    desk.shot("error-gateway-gone")
    # And once more, with nobody there from the start.
    desk.edit()
    expect(desk.alert).to_contain_text(re.compile("lost|connection|reach", re.IGNORECASE))
    expect(desk.button("Cancel")).to_be_hidden()


def test_the_server_goes_away(visit: Visit, small: Image.Image, tmp_path: Path) -> None:
    """In the middle of a stream it is told as the gateway tells it; after that there is nobody to ask."""
    with (
        stack.server("pocket", "server-killed") as server,
        stack.gateway(server, "bereft", tmp_path) as gateway,
    ):
        desk = visit(gateway.url)
        begin_long(desk, small)
        under_way(desk)
        server.process.kill()
        server.process.wait()
        expect(desk.alert).to_contain_text(re.compile(r"\w{4}"), timeout=WITHIN_MS)
        expect(desk.status).not_to_have_text(re.compile("Done|Step"))
        expect(desk.results).to_have_count(0)
        desk.watch.expected.add(503)
        desk.edit()
        expect(desk.alert).to_contain_text(re.compile(r"again in \d+ s", re.IGNORECASE))
        desk.shot("error-server-gone")
