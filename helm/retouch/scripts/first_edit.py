"""`helm test`: one real edit through the gateway, and its image by the URL in the answer. Standard library alone.

RETOUCH_URL is the gateway's Service, RETOUCH_API_KEY a key where it wants one, RETOUCH_SECONDS how long all may take.
"""

import base64
import json
import os
import struct
import sys
import time
import urllib.error
import urllib.request
import zlib
from urllib.parse import urlsplit

SIDE = 64
PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture() -> bytes:
    """A PNG of SIDE x SIDE: red grows to the right, green downwards."""
    scale = 255 // (SIDE - 1)
    rows = (
        bytes([0]) + b"".join(bytes([x * scale, y * scale, 128]) for x in range(SIDE))
        for y in range(SIDE)
    )
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return (
        PNG
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def ask(url: str, body: bytes | None, until: float) -> bytes:
    """The answer's body. While nobody is there, or no server is ready, it asks again."""
    headers = {"Content-Type": "application/json"}
    if body and (key := os.environ.get("RETOUCH_API_KEY", "").strip()):
        headers["Authorization"] = f"Bearer {key}"
    while True:
        left = max(1.0, until - time.monotonic())
        try:
            # Both addresses begin with the chart's own RETOUCH_URL.
            request = urllib.request.Request(url, body, headers)  # noqa: S310
            with urllib.request.urlopen(request, timeout=left) as answer:  # noqa: S310
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            if error.code == 401 and "Authorization" not in headers:
                sys.exit(
                    "the gateway wants a key: give one in `gateway.keys.testKey` of its Secret"
                )
            if error.code not in (429, 503) or left <= 1:
                sys.exit(f"{url}: {error.code}: {said}")
        except OSError as error:
            if left <= 1:
                sys.exit(f"{url}: {error}")
        time.sleep(2)


def main() -> None:
    gateway = os.environ["RETOUCH_URL"]
    until = time.monotonic() + float(os.environ.get("RETOUCH_SECONDS", "300"))
    edit = {
        "prompt": "black and white",
        "images": [base64.b64encode(picture()).decode()],
        "response_format": "url",
        "seed": 7,
    }
    answer = json.loads(ask(f"{gateway}/v1/images/edits", json.dumps(edit).encode(), until))
    image = answer["data"][0]
    if "url" not in image:
        sys.exit(f"the edit was made, and could not be stored: {answer.get('warning')}")
    # The public address may lead through what cannot be reached from here: ask for its path.
    path = urlsplit(image["url"]).path
    stored = ask(gateway + path[path.index("/images/") :], None, until)
    if not stored.startswith(PNG):
        sys.exit(f"{path} is no PNG, but {len(stored)} bytes that begin with {stored[:16]!r}")
    print(f"{answer['model']}: {answer['size']}, {len(stored)} bytes, by its URL")


if __name__ == "__main__":
    main()
