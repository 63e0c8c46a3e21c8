"""Edits over REST, as any client sends them."""

import base64
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from retouch_cli.errors import Failure

EDITS = "/v1/images/edits"


@dataclass(frozen=True)
class Edited:
    """A finished edit: the URL that the gateway gave, and what it opens to."""

    url: str
    data: bytes
    seconds: float


async def edit(client: httpx.AsyncClient, photo: bytes, prompt: str) -> Edited:
    """Edits `photo` (PNG, JPEG or WebP) and opens the result's URL. Raises Failure."""
    body = {"images": [base64.b64encode(photo).decode()], "prompt": prompt}
    reply = checked(await client.post(EDITS, json=body))
    try:
        url: str = reply.json()["data"][0]["url"]
    except (ValueError, LookupError, TypeError) as error:
        raise Failure(f"{EDITS} answered without a URL: {reply.text[:200]}") from error
    # By this machine's own way to the gateway: a public URL may not lead back here.
    result = checked(await client.get(urlsplit(url).path))
    return Edited(url, result.content, reply.elapsed.total_seconds())


def checked(reply: httpx.Response) -> httpx.Response:
    if reply.is_success:
        return reply
    raise Failure(f"{reply.request.url} answered {reply.status_code}: {message(reply)}")


def message(reply: httpx.Response) -> str:
    """The envelope's message, or what the reply says of itself."""
    try:
        content: Any = reply.json()
        return str(content["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return reply.text.strip() or reply.reason_phrase


def as_curl(base_url: str, photo: Path, prompt: str) -> str:
    """The same edit for a shell.

    An image is too large for an argument, so the body goes in by a pipe; curl's `-d @-` drops the
    line breaks that `base64` makes.
    """
    head = shlex.quote(f'{{"prompt": {json.dumps(prompt)}, "images": ["')
    image = shlex.quote(str(photo.resolve()))
    return (
        f"(printf %s {head}; base64 < {image}; printf '\"]}}') |\n"
        f"  curl -sS {base_url}{EDITS} -H 'Content-Type: application/json' -d @-"
    )
