"""Chromium, the tiers, and a fresh desk for each test; each desk is watched to the end."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser import stack
from tests.browser.desk import Desk, payload
from tests.browser.stack import Gateway, Server
from tests.browser.watch import Watch
from tests.e2e.conftest import Tiers
from tests.e2e.pictures import photo

DESKTOP = {"width": 1280, "height": 900}
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the network is cut: no name leads anywhere
)
expect.set_options(timeout=10_000)


class Visit(Protocol):
    """Opens the playground of a gateway in a context of its own."""

    def __call__(self, url: str | None = None, **options: Any) -> Desk: ...


class Start(Protocol):
    """Starts one more gateway before the same server, with settings of its own."""

    def __call__(self, log: str, **variables: str) -> Gateway: ...


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; without one the test skips, which CI does not allow."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium is installed: scripts/ci-tools installs it on Debian")


@pytest.fixture(scope="session")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all of this folder's tests."""
    catalogue = stack.models(tmp_path_factory.mktemp("models"))
    with stack.server(str(catalogue), "server") as running:
        yield running


@pytest.fixture(scope="session")
def tiers(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    """That server with a gateway of default settings."""
    with stack.before(server, tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def start(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """More gateways, each until its module is over."""
    with contextlib.ExitStack() as running:

        def begin(log: str, **variables: str) -> Gateway:
            store = tmp_path_factory.mktemp("store")
            return running.enter_context(stack.gateway(server, log, store, **variables))

        yield begin


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Of a module: Playwright's loop must not outlive the modules whose tests need one of their own."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def visit(tiers: Tiers, browser: Browser) -> Iterator[Visit]:
    """Opens desks; when the test is over each of them must have been as quiet as it should."""
    watches: list[Watch] = []

    def open_one(url: str | None = None, **options: Any) -> Desk:
        url = url or tiers.url
        parts = urlsplit(url)
        watches.append(Watch(f"{parts.scheme}://{parts.netloc}"))
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        watches[-1].over(context)
        desk = Desk(context.new_page(), watches[-1])
        desk.page.goto(url)
        return desk

    yield open_one
    for context in browser.contexts:
        context.close()
    for watch in watches:
        watch.check()


@pytest.fixture
def desk(visit: Visit) -> Desk:
    """A desk at the tiers' own gateway."""
    return visit()


@pytest.fixture(scope="session")
def small() -> Image.Image:
    """A photo that is edited in a second."""
    return photo(128, 128)


@pytest.fixture
def ready(desk: Desk, small: Image.Image) -> Desk:
    """A desk with that photo on it."""
    desk.add(payload(small))
    return desk
