"""The request as it is shown does what the page does, to the same picture, whatever the prompt."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.browser.desk import Desk, edited, payload, seed_of
from tests.conformance import matrix
from tests.e2e.conftest import tool
from tests.e2e.pictures import difference

LANGUAGES = ("curl", "Python", "Node")
NASTY = "it's \"night\" `id` $HOME $(id) \\n \\\\ %s {x} !! ünï 🌃 </script>\n\n@second 'line'\ttab"
# What curl's -F would take for a file.
FILES = ("@photo.png", "<photo.png;type=text/plain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs run, with the packages of tests/conformance."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "node_modules").symlink_to(matrix.HERE / "node_modules")
    return folder


def program(language: str, code: str, folder: Path) -> list[str]:
    """The command that runs it, as its reader would."""
    if language == "curl":
        return [tool("bash"), "-euc", f"{tool('curl')} --version >/dev/null; {code}"]
    file = folder / {"Python": "edit.py", "Node": "edit.mjs"}[language]
    file.write_text(code)
    if language == "Python":
        return [sys.executable, file.name]
    if not matrix.CLIENTS["node"].installed:
        pytest.skip("npm's openai is not installed: scripts/client-tools installs it")
    return ["node", file.name]


def code_of(desk: Desk, language: str) -> str:
    """What is shown, and what Copy copies, which are the same."""
    region = desk.page.get_by_role("region", name="The request")
    region.get_by_role("tab", name=language).click()
    expect(region.get_by_role("tab", name=language)).to_have_attribute("aria-selected", "true")
    region.get_by_role("button", name="Copy").click()
    copied: str = desk.page.evaluate("navigator.clipboard.readText()")
    assert region.get_by_role("tabpanel").inner_text().strip() == copied.strip()
    return copied


def run(language: str, code: str, folder: Path) -> list[bytes]:
    """The pictures that it makes."""
    done = subprocess.run(
        program(language, code, folder),
        cwd=folder,
        env={**os.environ, "RETOUCH_API_KEY": "none", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    urls = re.findall(r"http://[^\s\"']+/images/[^\s\"']+", done.stdout)
    return [httpx.get(url).content for url in urls]


@pytest.fixture
def writer(visit: Visit, small: Image.Image, folder: Path) -> Desk:
    """A desk with a photo that lies in that folder too."""
    desk = visit(permissions=["clipboard-read", "clipboard-write"])
    file = payload(small)
    (folder / file["name"]).write_bytes(file["buffer"])
    desk.add(file)
    return desk


@pytest.mark.parametrize(
    ("prompt", "languages"),
    [(NASTY, LANGUAGES), *((each, ("curl",)) for each in FILES)],
    ids=["quoted", "at", "less"],
)
def test_it_makes_the_same_picture(
    writer: Desk, folder: Path, prompt: str, languages: Sequence[str]
) -> None:
    writer.fill(Steps="3", Seed="18446744073709551615", Strength="0.7")
    writer.field("Prompt").fill(prompt)
    codes = {language: code_of(writer, language) for language in languages}
    writer.edit()
    result = writer.done().first
    assert seed_of(result) == "18446744073709551615"
    for language, code in codes.items():
        (made,) = run(language, code, folder)
        assert difference(made, edited(result)) == 0, language


def test_all_that_may_be_said(writer: Desk, folder: Path, small: Image.Image) -> None:
    """Two pictures of several images, in another format and size."""
    writer.field("Model").select_option("plain")
    second = payload(small.rotate(90), 'second "one" $HOME.png')
    (folder / second["name"]).write_bytes(second["buffer"])
    writer.add(second)
    writer.field("Size").select_option("256x256")
    writer.page.get_by_role("spinbutton", name="Number of images").fill("2")
    writer.fill(Seed="5")
    writer.field("Format").select_option("webp")
    writer.fill(Quality="80")
    writer.field("Max mode").check()
    writer.field("Prompt").fill("both")
    codes = {language: code_of(writer, language) for language in LANGUAGES}
    writer.shot("code")
    writer.edit()
    results = writer.done(2).all()
    shown_by_seed = {seed_of(each): edited(each) for each in results}
    for language, code in codes.items():
        made = run(language, code, folder)
        assert [Image.open(io.BytesIO(each)).format for each in made] == ["WEBP", "WEBP"]
        apart = [difference(made[i], shown_by_seed[str(5 + i)]) for i in range(2)]
        assert max(apart) <= 2, language  # a rounding, through WebP


def test_nothing_is_said_of_what_is_not_sent(writer: Desk) -> None:
    writer.field("Prompt").fill("make it night")
    code = code_of(writer, "curl")
    assert "make it night" in code
    for name in ("seed", "strength", "mask", "num_inference_steps", "negative_prompt"):
        assert name not in code
    assert "Authorization" not in code


def test_the_tabs_go_by_arrows(desk: Desk) -> None:
    tabs = desk.page.get_by_role("tablist", name="Language").get_by_role("tab")
    tabs.first.focus()
    for language in (*LANGUAGES[1:], LANGUAGES[0]):
        desk.page.keyboard.press("ArrowRight")
        expect(desk.page.get_by_role("tab", name=language)).to_be_focused()
    desk.page.keyboard.press("End")
    expect(desk.page.get_by_role("tab", name=LANGUAGES[-1])).to_be_focused()


def test_the_mask_can_be_had(writer: Desk, folder: Path, small: Image.Image) -> None:
    """A program that names mask.png needs one: the page gives it."""
    writer.button("Paint a mask").click()
    canvas = writer.field("Mask canvas").bounding_box()
    assert canvas
    writer.page.mouse.move(canvas["x"] + 40, canvas["y"] + 40)
    writer.page.mouse.down()
    writer.page.mouse.move(canvas["x"] + 80, canvas["y"] + 80, steps=5)
    writer.page.mouse.up()
    writer.fill(Steps="3", Seed="7")
    writer.field("Prompt").fill("invert the colours")
    code = code_of(writer, "curl")
    assert "mask.png" in code
    with writer.page.expect_download() as download:
        writer.page.get_by_role("region", name="The request").get_by_role(
            "link", name=re.compile("mask.png")
        ).or_(writer.button("Save mask.png")).click()
    download.value.save_as(folder / "mask.png")
    writer.edit()
    (made,) = run("curl", code, folder)
    assert difference(made, edited(writer.done().first)) == 0
