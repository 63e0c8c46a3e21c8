"""Everything a stranger may send: a 4xx in the envelope, soon, and the next good request works."""

from __future__ import annotations

import gzip
import struct
import time
import zlib
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Live, b64, error_of, picture

GOOD = b64(picture())
MIB4 = 4 * 2**20
ROUTE = "/v1/images/edits"
ENOUGH = 0.5  # seconds of CPU: 3 % of it are taken


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def huge_png() -> bytes:
    """A PNG whose header says 60000x60000."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def animated() -> bytes:
    from PIL import Image

    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    return picture((8, 8), save_all=True, append_images=frames)


CASES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "truncated base64": ({"images": [GOOD[:-5]]}, "images[0]", "whole base64"),
    "base64 cut at four": ({"images": [GOOD[:-40]]}, "images[0]", "cannot be decoded"),
    "not base64": ({"images": ["&&&&"]}, "images[0]", "whole base64"),
    "not ascii": ({"images": ["é" * 8]}, "images[0]", "whole base64"),
    "a web address": ({"images": ["https://example.com/a.png"]}, "images[0]", "address"),
    "http:": ({"images": [GOOD, "http://example.com/a.png"]}, "images[1]", "must be an https"),
    "a text file": ({"images": [GOOD, b64(b"hello" * 9)]}, "images[1]", "not a PNG, JPEG or WebP"),
    "an empty image": ({"images": [""]}, "images[0]", "is empty"),
    "an empty data URL": ({"images": ["data:image/png;base64,"]}, "images[0]", "is empty"),
    "60000x60000": ({"images": [b64(huge_png())]}, "images[0]", "too many pixels"),
    "an APNG": ({"images": [b64(animated())]}, "images[0]", "animated"),
    "4 MiB + 1": (
        {"images": [b64(picture() + bytes(MIB4 + 1 - len(picture())))]},
        "images[0]",
        "has 4194305 bytes; at most 4194304 are allowed",
    ),
    "n = 0": ({"n": 0}, "n", "must be 1 to 10"),
    "n = 11": ({"n": 11}, "n", "must be 1 to 10"),
    "n = -1": ({"n": -1}, "n", "must be 1 to 10"),
    "n = 2^32": ({"n": 2**32}, "n", "must be 1 to 10"),
    "n = 2^70": ({"n": 2**70}, "n", "must be 1 to 10"),
    "n as text": ({"n": "1"}, "n", 'must be a number, not "1"'),
    "n as a switch": ({"n": True}, "n", "must be a number, not a boolean"),
    "n = 1.5": ({"n": 1.5}, "n", "must be an integer"),
    "negative guidance": ({"guidance_scale": -1}, "guidance_scale", "must be 0 to 20"),
    "strength 2": ({"strength": 2}, "strength", "must be 0 to 1"),
    "strength as list": ({"strength": [1]}, "strength", "not an array"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps", "must be 1 to 100"),
    "steps -1": ({"num_inference_steps": -1}, "num_inference_steps", "must be 1 to 100"),
    "negative seed": ({"seed": -1}, "seed", "must be 0 to 2^64-1"),
    "seed 2^64": ({"seed": 2**64}, "seed", "must be 0 to 2^64-1"),
    "an empty prompt": ({"prompt": ""}, "prompt", "must not be empty"),
    "no prompt": ({"prompt": None}, "prompt", "must not be empty"),
    "prompt as number": ({"prompt": 5}, "prompt", "must be a string, not a number"),
    "a wrong size": ({"size": "big"}, "size", "must be 256x256"),
    "a size with a sign": ({"size": "-1x10"}, "size", "must be 256x256"),
    "an odd size": ({"size": "513x512"}, "size", "size.width: must be a multiple of 8"),
    "size 0x0": ({"size": "0x1", "n": 99}, "n", "must be 1 to 10"),
    "no images": ({"images": []}, "images", "must be 1 to 16 images, not 0"),
    "absent images": ({"images": None}, "images", "is required"),
    "17 images": ({"images": [GOOD] * 17}, "images", "must be 1 to 16 images, not 17"),
    "an image alone": ({"images": GOOD}, "images", "must be an array"),
    "an image object": ({"images": [{"image": GOOD}]}, "images[0]", "object with image_url alone"),
    "an object of no image": ({"images": [{"image_url": "x"}]}, "images[0]", "whole base64"),
    "a file id": ({"images": [{"file_id": "f"}]}, "images[0]", "files are not kept here"),
    "a null image": ({"images": [None]}, "images[0]", "not null"),
    "mask of other size": ({"mask": b64(picture((8, 8)))}, "mask", "another size"),
    "mask of text": ({"mask": b64(b"hello hello")}, "mask", "not a PNG, JPEG or WebP"),
    "response_format": ({"response_format": "png"}, "response_format", "must be url or b64_json"),
    "kontext_max_mode": ({"kontext_max_mode": "yes"}, "kontext_max_mode", "must be a boolean"),
    "kontext_max_mode 1": ({"kontext_max_mode": 1}, "kontext_max_mode", "must be a boolean"),
    "a thousand unknown fields": (
        {f"{'x' * 100}{i}": 1 for i in range(1000)},
        "x" * 64 + "…",
        "and maybe more",
    ),
    "a bomb of objects": ({"n": [{}] * 100_000}, None, "too much to be an edit"),
    "unknown field": ({"imagez": 1}, "imagez", "unknown field"),
    "images by both names": ({"image": [GOOD]}, "image", "is another name"),
    "output_format": ({"output_format": "gif"}, "output_format", "must be png, jpeg or webp"),
    "output_compression": ({"output_compression": "9"}, "output_compression", 'not "9"'),
    "stream": ({"stream": "true"}, "stream", 'must be a boolean, not "true"'),
    "partial_images": ({"partial_images": 1}, "partial_images", "only with stream"),
    "quality": ({"quality": 1}, "quality", "must be a string, not a number"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_bad_field_is_named(gateway: Live, case: str) -> None:
    body, param, text = CASES[case]
    began = time.process_time()
    response = await gateway.edit(**body)
    assert time.process_time() - began < ENOUGH
    error = error_of(response, 400, param)
    assert error["type"] == "invalid_request_error"
    assert len(response.content) < 5000
    assert text in error["message"]
    assert (await gateway.edit()).status_code == 200


async def test_every_mistake_is_named_at_once(gateway: Live) -> None:
    fields = {"zoom": "1", "n": "x", "seed": "-1", "mask": "?"}
    for response in (await gateway.edit(**fields), await form(gateway, **fields)):
        error = error_of(response, 400, "zoom")
        for field in ("zoom:", "n:", "seed:", "mask:", "the fields are images, image, mask"):
            assert field in error["message"]


async def test_4_mib_exactly_is_allowed(gateway: Live) -> None:
    # Bytes after the end of a PNG are nobody's business.
    whole = picture() + bytes(MIB4 - len(picture()))
    assert (await gateway.edit(images=[b64(whole)])).status_code == 200


async def test_base64_may_have_line_breaks(gateway: Live) -> None:
    import base64

    text = base64.encodebytes(picture((64, 64))).decode()
    assert "\n" in text.strip()
    assert (await gateway.edit(images=[text])).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"prompt=x", b"\xff\xfe", b'{"n": NaN}', b'{"n": 1e999}', b'{"prompt": "\\ud800"}'],
)
async def test_not_json(gateway: Live, body: bytes) -> None:
    response = await gateway.client.post(
        ROUTE, content=body, headers={"content-type": "application/json"}
    )
    assert "not JSON" in error_of(response, 400)["message"]


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"text"', b"[" * 1000 + b"]" * 1000])
async def test_not_an_object(gateway: Live, body: bytes) -> None:
    response = await gateway.client.post(
        ROUTE, content=body, headers={"content-type": "application/json"}
    )
    assert "object" in error_of(response, 400)["message"]


@pytest.mark.parametrize("depth", [900, 100_000])
async def test_deep_nesting(gateway: Live, depth: int) -> None:
    for field in (b"images", b"n", b"deep"):
        body = b'{"%b": %b}' % (field, b'[{"a":' * depth + b"1" + b"}]" * depth)
        response = await gateway.client.post(
            ROUTE, content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
    assert (await gateway.edit()).status_code == 200


FORMS: dict[str, tuple[dict[str, bytes | str], str | None, str]] = {
    "n = 0": ({"n": "0"}, "n", "must be 1 to 10"),
    "n in words": ({"n": "two"}, "n", 'must be a number, not "two"'),
    "n = 1.5": ({"n": "1.5"}, "n", "must be an integer"),
    "no n": ({"n": ""}, "n", "must be a number"),
    "strength": ({"strength": "2"}, "strength", "must be 0 to 1"),
    "seed 2^64": ({"seed": str(2**64)}, "seed", "must be 0 to 2^64-1"),
    "stream": ({"stream": "yes"}, "stream", "must be a boolean"),
    "prompt in latin-1": ({"prompt": "é".encode("latin-1")}, "prompt", "is not UTF-8"),
    "no prompt": ({"prompt": ""}, "prompt", "must not be empty"),
    "a text file": ({"image": b"hello"}, "images[0]", "not a PNG, JPEG or WebP"),
    "an empty file": ({"image": b""}, "images[0]", "is empty"),
    "a mask in text": ({"mask": "hello"}, "mask", "whole base64"),
    "a mask of other size": ({"mask": picture((8, 8))}, "mask", "another size"),
    "4 MiB + 1": ({"image": picture() + bytes(MIB4)}, "images[0]", "at most 4194304"),
    "a list": ({"prompt[]": "x"}, "prompt[]", "unknown field"),
    "an unknown file": ({"video": b"x"}, "video", "unknown field"),
    "a long name": ({"x" * 3000: "1"}, "x" * 64 + "…", "unknown field"),
}


async def form(gateway: Live, **fields: bytes | str) -> httpx.Response:
    """Send the smallest good form, with `fields` over it; bytes are files."""
    given: dict[str, bytes | str] = {"image": picture(), "prompt": "warmer"}
    given |= fields
    files = [
        (name, ("a.png", value) if isinstance(value, bytes) else (None, value.encode()))
        for name, value in given.items()
    ]
    return await gateway.client.post(ROUTE, files=files)


@pytest.mark.parametrize("case", FORMS)
async def test_a_bad_part_is_named(gateway: Live, case: str) -> None:
    fields, param, text = FORMS[case]
    began = time.process_time()
    error = error_of(await form(gateway, **fields), 400, param)
    assert time.process_time() - began < ENOUGH
    assert text in error["message"]
    assert (await form(gateway)).status_code == 200


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("multipart/form-data", b"--x--", "no boundary"),
        ("multipart/form-data; boundary=x", b"", "ends before its last boundary"),
        ("multipart/form-data; boundary=x", b"{}", "ends before its last boundary"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--", "part 1 has no name"),
        ("multipart/form-data; boundary=x", b"--x--", "images: is required"),
        ("multipart/form-data; boundary=x", b"--x\r\nx" * 100, "malformed"),
    ],
)
async def test_a_malformed_form(gateway: Live, kind: str, body: bytes, text: str) -> None:
    response = await gateway.client.post(ROUTE, content=body, headers={"content-type": kind})
    assert text in error_of(response, 400, "images" if "images" in text else None)["message"]
    assert (await form(gateway)).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
async def test_wrong_content_type(gateway: Live, kind: str) -> None:
    response = await gateway.client.post(ROUTE, content=b"{}", headers={"content-type": kind})
    error_of(response, 415)


async def test_a_compressed_body(gateway: Live) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await gateway.client.post(ROUTE, content=gzip.compress(b"{}"), headers=headers)
    assert "Content-Encoding" in error_of(response, 415)["message"]


async def test_content_type_may_have_parameters(gateway: Live) -> None:
    response = await gateway.client.post(
        ROUTE,
        content=b'{"prompt": "x", "images": ["%b"]}' % GOOD.encode(),
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert response.status_code == 200


async def test_a_long_unknown_name_is_shortened(gateway: Live) -> None:
    response = await gateway.edit(**{"x" * 100_000: 1})
    assert len(error_of(response, 400, "x" * 64 + "…")["message"]) < 500


async def test_a_duplicated_key_is_the_last(gateway: Live) -> None:
    body = b'{"n": "no", "prompt": "x", "images": ["%b"], "n": 2}' % GOOD.encode()
    response = await gateway.client.post(
        ROUTE, content=body, headers={"content-type": "application/json"}
    )
    assert len(response.json()["data"]) == 2
