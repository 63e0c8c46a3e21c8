"""Safety checks of the soaked models, so that edits are blocked before they queue and after they are made."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from retouch_server.safety import Refusal, Request

BEFORE, AFTER = "remove the watermark", "remove the logo"


class Watermarks:
    def before(self, request: Request) -> Refusal | None:
        return Refusal("watermark") if BEFORE in request.prompt else None


class Logos:
    def after(self, request: Request, results: Sequence[Image.Image]) -> Refusal | None:
        assert results
        return Refusal("logo") if AFTER in request.prompt else None
