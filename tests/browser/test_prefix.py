"""Behind a proxy, below a path of its own: the page works there too."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import Start, Visit
from tests.browser.desk import edited, payload, url_of
from tests.e2e.pictures import difference

PREFIX = "/tools/retouch"
OWN = ("connection", "keep-alive", "transfer-encoding")
"""Headers of a connection, not of what is sent by it."""


def handler(behind: str) -> type[BaseHTTPRequestHandler]:
    """Passes what is below PREFIX on to the host `behind`, and its answers back as they come."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != PREFIX and not self.path.startswith(f"{PREFIX}/"):
                return self.send_error(404)
            upstream = http.client.HTTPConnection(behind, timeout=60)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            told = {name: value for name, value in self.headers.items() if name.lower() not in OWN}
            told |= {"x-forwarded-host": told["Host"], "x-forwarded-prefix": PREFIX}
            upstream.request(self.command, self.path.removeprefix(PREFIX) or "/", body, told)
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in OWN:
                    self.send_header(name, value)
            self.end_headers()
            while piece := answer.read1():
                self.wfile.write(piece)
                self.wfile.flush()
            upstream.close()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    return Proxy


@pytest.fixture(scope="module")
def below(start: Start) -> Iterator[str]:
    """The page's address through the proxy."""
    gateway = start("below", RETOUCH_GATEWAY_TRUSTED_PROXIES="127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(urlsplit(gateway.url).netloc)) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        yield f"http://127.0.0.1:{proxy.server_port}{PREFIX}"
        proxy.shutdown()


@pytest.mark.parametrize("slash", ["/", ""])
def test_all_of_it_works(below: str, visit: Visit, small: Image.Image, slash: str) -> None:
    desk = visit(f"{below}{slash}")
    desk.button("Use the sample photo").click()
    expect(desk.inputs).to_have_count(1)
    desk.button("Remove sample.jpg").click()
    desk.add(payload(small))
    desk.edit("make it night")
    result = desk.done().first
    assert url_of(result).startswith(f"{below}/images/")
    assert difference(httpx.get(url_of(result)).content, edited(result)) == 0
    code = desk.page.get_by_role("region", name="The request").get_by_role("tabpanel")
    expect(code).to_contain_text(f"{below}/v1/images/edits")
    link = desk.page.get_by_role("link", name="API reference")
    assert link.evaluate("(link) => link.href") == f"{below}/docs"
