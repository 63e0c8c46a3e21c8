"""The first minute: how few steps there are to a first edit, and what is said where nothing can be edited yet."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from hashlib import sha256
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Route, expect

from tests.browser import stack
from tests.browser.conftest import Start, Visit
from tests.browser.desk import Desk, payload, url_of
from tests.browser.stack import Server
from tests.e2e.conftest import free_ports
from tests.run_up import wait_for

RECONNECTED_MS = 60_000
PHONE = {"width": 360, "height": 740}
IN_SIGHT = """(element) => {
    const { left, top, right, bottom } = element.getBoundingClientRect();
    const seen = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
    return bottom <= innerHeight && element.contains(seen);
}"""


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Hands on what comes, then that nothing more does."""
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def relay(to: str) -> type[socketserver.BaseRequestHandler]:
    """Lets those who connect speak with the host `to`."""
    host, port = to.split(":")

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as other:
                forth = threading.Thread(target=pump, args=(self.request, other))
                forth.start()
                pump(other, self.request)
                forth.join()

    return Relay


def test_three_clicks_and_nothing_moves(desk: Desk) -> None:
    desk.button("Use the sample photo").click()
    expect(desk.field("Prompt")).to_be_focused()
    example = desk.page.get_by_role("group", name="Examples").get_by_role("button").first
    example.click()
    desk.button("Edit").click()
    expect(desk.button("Cancel")).to_be_focused()
    assert desk.page.evaluate("scrollY") == 0
    desk.done()
    assert desk.page.evaluate("scrollY") == 0


def test_its_modules_are_asked_for_together_and_once(desk: Desk) -> None:
    """All of them, before the one that imports the others is there: here it never comes."""
    asked: list[str] = []
    desk.page.on("request", lambda request: asked.append(request.url))
    desk.page.reload(wait_until="networkidle")
    modules = sorted(url for url in asked if url.endswith(".js"))
    assert len(modules) == len(set(modules)) > 10
    asked.clear()
    desk.watch.expected.add(0)
    desk.page.route("**/app.js", lambda route: route.abort())
    desk.page.reload(wait_until="networkidle")
    assert sorted(url for url in asked if url.endswith(".js")) == modules


def test_on_a_phone_the_result_comes_into_sight(visit: Visit, small: Image.Image) -> None:
    desk = visit(viewport=PHONE)
    desk.add(payload(small))
    desk.edit("make it night")
    picture = desk.done().first.get_by_role("img", name="Before")
    expect(picture).to_be_in_viewport(ratio=1)  # in a while: it scrolls there smoothly


def test_the_sample_cannot_be_had(desk: Desk) -> None:
    desk.watch.expected.add(0)

    def cut(route: Route) -> None:
        route.abort()

    desk.page.route("**/sample.jpg", cut)
    desk.button("Use the sample photo").click()
    expect(desk.alert).to_contain_text("cannot be reached")
    desk.page.unroute("**/sample.jpg", cut)
    desk.button("Use the sample photo").click()
    expect(desk.inputs).to_have_count(1)
    expect(desk.alert).to_be_hidden()


def test_a_server_that_comes_later(visit: Visit, server: Server, tmp_path: Path) -> None:
    """Said on a phone too, where the form is longer than the window; the page goes on by itself."""
    ports = free_ports()
    relaying = socketserver.ThreadingTCPServer(
        ("127.0.0.1", 0), relay(server.upstream), bind_and_activate=False
    )
    with relaying:
        relaying.server_bind()  # not listening yet: who comes is turned away
        given = {
            **{name: port for name, port in ports.items() if "GATEWAY" in name},
            "RETOUCH_GATEWAY_UPSTREAM": f"127.0.0.1:{relaying.server_address[1]}",
            "RETOUCH_GATEWAY_STORE": str(tmp_path),
        }
        with stack.process("retouch-gateway", "early", **given):
            url = f"http://127.0.0.1:{ports['RETOUCH_GATEWAY_PORT']}"
            wait_for(lambda: answers(url), 30, "the gateway answers")
            desk = visit(url, viewport=PHONE)
            desk.watch.expected.add(503)
            expect(desk.alert).to_contain_text(re.compile(r"The page tries again in \d+ s"))
            assert desk.alert.evaluate(IN_SIGHT)
            relaying.server_activate()
            threading.Thread(target=relaying.serve_forever).start()
            expect(desk.field("Model")).to_have_value("pocket", timeout=RECONNECTED_MS)
            expect(desk.alert).to_be_hidden()
        relaying.shutdown()


def answers(url: str) -> bool:
    """Whether the gateway lives, ready or not."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    return False


def test_an_edit_without_the_key(
    start: Start, visit: Visit, small: Image.Image, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nid = "ada"\nhash = "sha256:{sha256(b"sk-ada").hexdigest()}"\n')
    desk = visit(start("keyless", RETOUCH_GATEWAY_KEYS=str(keys)).url)
    desk.watch.expected.add(401)
    desk.add(payload(small))
    desk.edit("make it night")
    expect(desk.field("API key")).to_be_focused()
    expect(desk.field("API key")).to_have_attribute("aria-invalid", "true")
    expect(desk.button("Cancel")).to_be_hidden()


def test_urls_of_another_name(start: Start, visit: Visit, small: Image.Image) -> None:
    """Hosted images come from the page's own gateway, whatever name others know it by."""
    desk = visit(start("public", RETOUCH_GATEWAY_PUBLIC_URL="https://pictures.example/of").url)
    desk.add(payload(small))
    desk.edit("make it night")
    assert url_of(desk.done().first).startswith("https://pictures.example/of/images/")
