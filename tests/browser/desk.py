"""The playground as its user has it: found by role and name alone."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from typing import Any

from PIL import Image
from playwright.sync_api import FilePayload, Locator, Page, expect

from tests.browser.stack import LOGS
from tests.browser.watch import Watch

EDIT_MS = 60_000
DECODED = """async (image) => {
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL("image/png").split(",")[1];
}"""
LISTEN = """() => {
    window.heard = { said: [], shares: [] };
    const look = () => {
        const said = document.querySelector("[role=status]").textContent.trim();
        if (said && said !== heard.said.at(-1)) heard.said.push(said);
        const bar = document.querySelector("progress");
        if (bar?.checkVisibility() && bar.value !== heard.shares.at(-1)) heard.shares.push(bar.value);
    };
    new MutationObserver(look).observe(document.body, {
        subtree: true, childList: true, characterData: true, attributes: true,
    });
}"""


def payload(image: Image.Image, name: str = "photo.png", **options: Any) -> FilePayload:
    """A picture as a file of that name, in the format that the name says."""
    out = io.BytesIO()
    ending = name.rpartition(".")[2].upper()
    form = {"JPG": "JPEG"}.get(ending, ending)
    image.save(out, form, **options)
    return {"name": name, "mimeType": f"image/{form.lower()}", "buffer": out.getvalue()}


@dataclass(frozen=True)
class Desk:
    """A page of the playground, and who watches it."""

    page: Page
    watch: Watch

    @property
    def status(self) -> Locator:
        return self.page.get_by_role("status")

    @property
    def alert(self) -> Locator:
        return self.page.get_by_role("alert")

    @property
    def inputs(self) -> Locator:
        return self.page.get_by_role("list", name="Input images").get_by_role("listitem")

    @property
    def results(self) -> Locator:
        return self.page.get_by_role("list", name="Results").get_by_role("listitem")

    @property
    def editor(self) -> Locator:
        return self.page.get_by_role("region", name="Mask editor")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def field(self, label: str) -> Locator:
        return self.page.get_by_label(label, exact=True)

    def add(self, *files: FilePayload) -> None:
        """Gives these to the picker and waits until they are listed."""
        before = self.inputs.count()
        self.field("Add images").set_input_files(list(files))
        expect(self.inputs).to_have_count(before + len(files))

    def fill(self, **fields: str) -> None:
        """Types into the fields under More, which is opened; `Steps="4"`."""
        if not self.field("Steps").is_visible():
            self.page.get_by_text("More", exact=True).click()
        for name, text in fields.items():
            self.field(name.replace("_", " ")).fill(text)

    def size(self, text: str) -> None:
        """Types a size of its own."""
        self.field("Size").select_option(label="Custom")
        self.field("Custom size").fill(text)

    def edit(self, prompt: str | None = None) -> None:
        """Presses Edit."""
        if prompt is not None:
            self.field("Prompt").fill(prompt)
        self.button("Edit").click()

    def done(self, count: int = 1) -> Locator:
        """The results, newest first, when there are `count` and the edit is said to be done."""
        expect(self.results).to_have_count(count, timeout=EDIT_MS)
        expect(self.status).to_have_text(re.compile(r"Done in [\d.]+ s"))
        return self.results

    def listen(self) -> None:
        """From now on keeps what the status says and what the progress shows; see `heard`."""
        self.page.evaluate(LISTEN)

    def heard(self) -> tuple[list[str], list[float]]:
        """Each text of the status, and each value of the progress, in their order."""
        heard = self.page.evaluate("heard")
        return heard["said"], heard["shares"]

    def shot(self, name: str) -> None:
        """Keeps a picture of the whole page for people to look at."""
        LOGS.mkdir(parents=True, exist_ok=True)
        window = self.page.viewport_size
        assert window
        # Not full_page: what sticks to the window's edge would lie across the middle.
        whole = self.page.evaluate("document.documentElement.scrollHeight")
        self.page.set_viewport_size({"width": window["width"], "height": whole})
        self.page.screenshot(path=LOGS / f"{name}.png")
        self.page.set_viewport_size(window)


def shown(image: Locator) -> Image.Image:
    """The pixels of an <img>, at its own size."""
    return Image.open(io.BytesIO(base64.b64decode(image.evaluate(DECODED))))


def seed_of(result: Locator) -> str:
    """The digits after "Seed" in a result."""
    found = re.search(r"Seed (\d+)", result.inner_text())
    assert found
    return found[1]


def url_of(result: Locator) -> str:
    """Where a result is hosted."""
    url = result.get_by_role("link", name="Open URL").get_attribute("href")
    assert url
    return url


def edited(result: Locator) -> Image.Image:
    """What a result shows as edited."""
    return shown(result.get_by_role("img").last)
