"""What a page must never do, whatever it is used for: complain, break its own policy, or go elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Request, WebError

# The browser's own line for an answer of 4xx and 5xx, which no page can keep from the console.
STATUS = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")
GONE = re.compile(r"Failed to load resource: net::ERR_")
REPORT = """addEventListener("securitypolicyviolation", (event) =>
    console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));"""


@dataclass
class Watch:
    """Watches all pages of a context. `expected`: statuses that the test provokes, and 0 for no answer at all."""

    origin: str
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)

    def over(self, context: BrowserContext) -> None:
        context.add_init_script(REPORT)
        context.on("console", self._console)
        context.on("weberror", self._error)
        context.on("request", self._request)

    def check(self) -> None:
        assert not self.complaints, "\n".join(self.complaints)
        assert not self.elsewhere, "\n".join(self.elsewhere)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if (told := STATUS.match(message.text)) and int(told[1]) in self.expected:
            return
        if GONE.match(message.text) and 0 in self.expected:
            return
        self.complaints.append(f"{message.type}: {message.text}")

    def _error(self, error: WebError) -> None:
        self.complaints.append(f"exception: {error.error}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("blob", "data"):
            return
        if f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.elsewhere.append(request.url)
