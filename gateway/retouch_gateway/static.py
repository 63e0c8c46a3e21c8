"""The playground: a page to try edits on, and its files, read once and served as they are.

The page needs nothing from elsewhere: no build, no network but this gateway's own routes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from retouch_gateway import origin
from retouch_gateway.errors import NotFound

FOLDER = Path(__file__).with_name("playground")
INDEX = "index.html"
# Where the page names another of our paths: all of them relative to it.
_LINK = re.compile(rb' (?:href|src)="')
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# The page asks its own gateway alone, for hosted images too, whatever name their URLs have.
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
# What a page that holds API keys and private photos needs said of it.
HEADERS = {
    "content-security-policy": "; ".join(POLICY),
    "cache-control": "no-cache",  # asked for each time, by its tag: a new release shows at once
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, suffix: str) -> _File:
        digest = hashlib.sha256(body).hexdigest()[:32]
        return cls(body, MEDIA_TYPES[suffix], f'"{digest}"')


class Playground:
    """The folder's files by their names. Those of other kinds than MEDIA_TYPES are for its readers, not served."""

    def __init__(self, trusted: origin.Networks) -> None:
        self.trusted = trusted
        self.files = {
            path.name: _File.of(path.read_bytes(), path.suffix)
            for path in FOLDER.iterdir()
            if path.suffix in MEDIA_TYPES
        }

    async def page(self, request: Request) -> Response:
        """Its addresses are relative to it; below a prefix that a trusted proxy tells of they begin with that.

        For there `/prefix` is this page too, and relative ones would lead beside it.
        """
        page = self.files[INDEX]
        if prefix := origin.prefix(request, self.trusted):
            page = _File.of(_LINK.sub(rb"\g<0>%b/" % prefix.encode(), page.body), ".html")
        return _answer(request, page)

    async def file(self, request: Request) -> Response:
        """What the page loads. Raises NotFound."""
        file = self.files.get(request.path_params["name"])
        if not file:
            raise NotFound
        return _answer(request, file)


def _answer(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    # Of a list of tags one is ours, weak or strong: they are of one length, and in quotes.
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)
