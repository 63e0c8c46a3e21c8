"""A key is asked for where one is needed, kept in the tab, and shown to nobody."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import Start, Visit
from tests.browser.desk import Desk, payload

KEY, OLD = "sk-of-the-browser-tests", "sk-of-last-year"
ENTRY = '[[keys]]\nid = "{}"\nhash = "sha256:{}"\n'


@pytest.fixture(scope="module")
def locked(start: Start, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a gateway that wants that key, and had another."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    old = ENTRY.format("old", sha256(OLD.encode()).hexdigest())
    keys.write_text(
        f"{old}expires = 2026-01-01T00:00:00Z\n{ENTRY.format('ada', sha256(KEY.encode()).hexdigest())}"
    )
    return start("locked", RETOUCH_GATEWAY_KEYS=str(keys)).url


@pytest.fixture
def asked(locked: str, visit: Visit) -> Desk:
    desk = visit(locked)
    desk.watch.expected.add(401)
    expect(desk.field("API key")).to_be_visible()
    return desk


def enter(desk: Desk, key: str) -> None:
    desk.field("API key").fill(key)
    desk.field("API key").press("Enter")


def test_asked_for(asked: Desk) -> None:
    field = asked.field("API key")
    expect(field).to_have_attribute("type", "password")
    expect(field).to_have_attribute("autocomplete", "off")
    asked.shot("key")


def test_a_wrong_one(asked: Desk) -> None:
    enter(asked, "sk-wrong")
    expect(asked.field("API key")).to_have_attribute("aria-invalid", "true")
    expect(asked.field("API key")).to_be_visible()
    asked.shot("key-wrong")


def test_one_that_has_expired(asked: Desk) -> None:
    enter(asked, OLD)
    expect(asked.field("API key")).to_have_attribute("aria-invalid", "true")
    expect(asked.page.get_by_text("This API key expired at 2026-01-01")).to_be_visible()


@pytest.mark.parametrize("key", ["ключ", "a\tb", "clé"])
def test_one_that_no_header_can_carry(asked: Desk, key: str) -> None:
    enter(asked, key)
    expect(asked.field("API key")).to_have_attribute("aria-invalid", "true")


def test_the_right_one_is_kept_in_the_tab_alone(asked: Desk, small: Image.Image) -> None:
    enter(asked, KEY)
    expect(asked.field("Model")).to_have_value("pocket")
    asked.add(payload(small))
    asked.edit("make it night")
    asked.done()
    for language in ("curl", "Python", "Node"):
        asked.page.get_by_role("tab", name=language).click()
        code = asked.page.get_by_role("region", name="The request").inner_text()
        assert "RETOUCH_API_KEY" in code
        assert KEY not in code
    assert asked.page.evaluate("JSON.stringify(localStorage)") == "{}"
    assert asked.page.evaluate("document.cookie") == ""
    assert KEY not in asked.page.url

    asked.page.reload()
    expect(asked.field("Model")).to_have_value("pocket")
    asked.add(payload(small))
    asked.edit("make it night")
    asked.done()


def test_another_tab_knows_nothing_of_it(asked: Desk) -> None:
    enter(asked, KEY)
    expect(asked.field("Model")).to_have_value("pocket")
    other = asked.page.context.new_page()
    other.goto(asked.page.url)
    expect(other.get_by_label("API key", exact=True)).to_be_visible()
    expect(other.get_by_label("API key", exact=True)).to_have_value("")


def test_taken_away_while_at_work(
    start: Start, visit: Visit, tmp_path: Path, small: Image.Image
) -> None:
    """A key that is revoked is asked for anew, and what was typed is still there."""
    keys = tmp_path / "keys.toml"
    keys.write_text(ENTRY.format("ada", sha256(KEY.encode()).hexdigest()))
    desk = visit(start("revoked", RETOUCH_GATEWAY_KEYS=str(keys)).url)
    desk.watch.expected.add(401)
    enter(desk, KEY)
    desk.add(payload(small))
    keys.write_text(ENTRY.format("bob", sha256(b"another").hexdigest()))
    desk.page.wait_for_timeout(3000)  # the gateway looks every second, twice
    desk.edit("make it night")
    expect(desk.field("API key")).to_be_visible()
    expect(desk.field("API key")).to_have_attribute("aria-invalid", "true")
    expect(desk.field("Prompt")).to_have_value("make it night")
    expect(desk.results).to_have_count(0)
    assert re.search("key", desk.page.get_by_role("main").inner_text(), re.IGNORECASE)
