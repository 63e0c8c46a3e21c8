"""What people with other eyes and other hands need of a page, read off the page as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

# Roles whose elements do something, or mean nothing without a name.
NAMED = {
    "button", "checkbox", "combobox", "dialog", "form", "group", "image", "link", "list", "listbox",
    "progressbar", "radio", "radiogroup", "region", "searchbox", "slider", "spinbutton", "switch",
    "tab", "tablist", "tabpanel", "textbox", "Canvas", "application", "navigation",
}  # fmt: skip
NAMELESS_IS_FINE = {"list", "form", "group", "image"}
"""A name helps there and is not needed: of an image, an empty alt says that it is decoration."""

CONTRASTS = Path(__file__).with_name("contrasts.js").read_text()
FOCUSABLE = """() => {
    const names = "a[href], button, input, select, textarea, summary, [tabindex]";
    const groups = new Set();
    return [...document.querySelectorAll(names)].filter((each) => {
        if (each.disabled || each.tabIndex < 0 || !each.checkVisibility({ visibilityProperty: true })) return false;
        if (each.type !== "radio") return true;
        if (!each.checked || groups.has(each.name)) return false;
        return groups.add(each.name);
    }).length;
}"""
FOCUSED = """() => {
    const each = document.activeElement;
    if (!each || each === document.body) return null;
    // A control that is drawn by its label is where its label is.
    const drawn = each.getBoundingClientRect().width > 2 ? each : each.labels?.[0] ?? each;
    const box = drawn.getBoundingClientRect();
    const style = getComputedStyle(drawn);
    const ring = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none";
    const text = each.getAttribute("aria-label") ?? each.labels?.[0]?.innerText ?? each.innerText ?? each.id;
    return {
        name: text.trim(), left: box.left, right: box.right, top: box.top, bottom: box.bottom, ring,
        seen: [0.1, 0.5, 0.9].some((part) => {
            const top = document.elementFromPoint((box.left + box.right) / 2, box.top + part * box.height);
            return drawn.contains(top) || top?.contains(drawn);
        }),
        order: [...document.querySelectorAll("*")].indexOf(each),
    };
}"""

TO_THE_TOP = """() => {
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
}"""
TARGETS = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary")]
    .filter((each) => each.checkVisibility({ visibilityProperty: true }))
    .map((each) => {
        const drawn = ["radio", "checkbox"].includes(each.type) ? each.labels[0] : each;
        const { width, height } = drawn.getBoundingClientRect();
        return { name: each.getAttribute("aria-label") ?? each.innerText ?? each.id, side: Math.min(width, height) };
    })"""


def tree(page: Page) -> list[dict[str, Any]]:
    """The accessibility tree's nodes that are not ignored, as the browser computes them."""
    devtools = page.context.new_cdp_session(page)
    nodes: list[dict[str, Any]] = devtools.send("Accessibility.getFullAXTree")["nodes"]
    devtools.detach()
    return [node for node in nodes if not node["ignored"]]


def nameless(page: Page) -> list[str]:
    """Roles of controls and landmarks that have no name."""
    return [
        role
        for node in tree(page)
        if (role := node["role"]["value"]) in NAMED - NAMELESS_IS_FINE
        and not node.get("name", {}).get("value", "").strip()
    ]


def faint(page: Page) -> list[str]:
    """Texts of less contrast than WCAG's AA wants (1.4.3), with their ratios."""
    measured = page.evaluate(CONTRASTS)
    assert len(measured) > 10, "texts were looked at"
    return [
        f"{each['text']!r}: {each['ratio']:.2f}"
        for each in measured
        if each["ratio"] < each["least"] and not each["image"]
    ]


def tabbed(page: Page) -> Iterator[dict[str, Any]]:
    """Each element that Tab comes to, from the top, once round."""
    page.evaluate(TO_THE_TOP)
    for _ in range(200):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused is None:
            return
        yield focused
    raise AssertionError("Tab does not come round")


def focusable(page: Page) -> int:
    """How many elements Tab should come to."""
    count: int = page.evaluate(FOCUSABLE)
    return count


def small(page: Page) -> list[str]:
    """What a finger would miss: under 24 pixels in one way or the other (WCAG 2.5.8)."""
    targets = page.evaluate(TARGETS)
    assert len(targets) > 10
    return [f"{each['name']}: {each['side']:.0f}" for each in targets if each["side"] < 24]


def overflow(page: Page) -> int:
    """Pixels that the page is wider than its window."""
    wider: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return wider
