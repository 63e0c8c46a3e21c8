"""Bad input: a 4xx in the envelope that names the field, at once; the next edit works.

The same over gRPC: INVALID_ARGUMENT with the field in a google.rpc.BadRequest.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from retouch.v1.image_edit_pb2 import EditRequest, Size
from tests.e2e.conftest import Tiers
from tests.e2e.pictures import animated, b64, bomb, left_half, padded, photo, png

# Far less where nothing else runs; a picture that is decoded whole, or an edit that is begun, takes longer.
SECONDS = 5.0
MIB = 2**20
PHOTO = png(photo())
GOOD: dict[str, Any] = {
    "images": [b64(PHOTO)],
    "prompt": "make it brighter",
    "num_inference_steps": 1,
    "seed": 7,
}

# What is wrong with the picture, and the picture.
PICTURES: dict[str, Callable[[], bytes]] = {
    "truncated": lambda: PHOTO[: len(PHOTO) // 2],
    "a text file": lambda: b"Dear model, please find attached no picture.\n" * 20,
    "empty": lambda: b"",
    "a GIF": lambda: b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    "60000x60000": bomb,
    "animated": animated,
    "4 MiB and a byte": lambda: padded(4 * MIB + 1),
}

# What is wrong, the fields over REST, and the `param` it names.
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "truncated base64": ({"images": [b64(PHOTO)[:-101]]}, "images[0]"),
    "not base64": ({"images": ["picture.png"]}, "images[0]"),
    "the second image is bad": ({"images": [b64(PHOTO), "x"]}, "images[1]"),
    "images: []": ({"images": []}, "images"),
    "no images": ({"images": None}, "images"),
    "17 images": ({"images": [b64(PHOTO)] * 17}, "images"),
    "more images than the model takes": ({"images": [b64(PHOTO)] * 2}, "images[1]"),
    "images is a string": ({"images": b64(PHOTO)}, "images"),
    "n = 0": ({"n": 0}, "n"),
    "n = 11": ({"n": 11}, "n"),
    "n is a word": ({"n": "two"}, "n"),
    "negative guidance": ({"guidance_scale": -1}, "guidance_scale"),
    "guidance 20.1": ({"guidance_scale": 20.1}, "guidance_scale"),
    "strength 1.1": ({"strength": 1.1}, "strength"),
    "negative strength": ({"strength": -0.1}, "strength"),
    "steps 0": ({"num_inference_steps": 0}, "num_inference_steps"),
    "steps 101": ({"num_inference_steps": 101}, "num_inference_steps"),
    "negative seed": ({"seed": -1}, "seed"),
    "seed 2^64": ({"seed": 2**64}, "seed"),
    "empty prompt": ({"prompt": ""}, "prompt"),
    "no prompt": ({"prompt": None}, "prompt"),
    "prompt of 4001 characters": ({"prompt": "a" * 4001}, "prompt"),
    "prompt is a number": ({"prompt": 7}, "prompt"),
    "size in words": ({"size": "large"}, "size"),
    "size 0x0": ({"size": "0x0"}, "size"),
    "size 257x255": ({"size": "257x255"}, "size"),
    "size 8192x8192": ({"size": "8192x8192"}, "size"),
    "mask of another size": ({"mask": b64(png(left_half(128, 128)))}, "mask"),
    "mask is no image": ({"mask": b64(b"mask")}, "mask"),
    "mask selects nothing": ({"mask": b64(png(left_half(256, 256).point(lambda _: 0)))}, "mask"),
    "response_format": ({"response_format": "png"}, "response_format"),
    "kontext_max_mode": ({"kontext_max_mode": "maximum"}, "kontext_max_mode"),
    "an unknown field": ({"guidance": 3.5}, "guidance"),
}


def refused(reply: httpx.Response, status: int, param: str | None, seconds: float) -> None:
    """A 4xx in the envelope, in time."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", status)
    assert error["param"] == param, error
    assert reply.headers["x-request-id"]
    assert seconds < SECONDS


def post(tiers: Tiers, **request: Any) -> tuple[httpx.Response, float]:
    """The reply and the seconds it took, and a good edit after it."""
    started = time.monotonic()
    reply = tiers.rest.post("/v1/images/edits", **request)
    took = time.monotonic() - started
    tiers.edit(GOOD)
    return reply, took


@pytest.mark.parametrize("name", PICTURES)
def test_bad_pictures(tiers: Tiers, name: str) -> None:
    body = {**GOOD, "images": [b64(PICTURES[name]())]}
    reply, took = post(tiers, json=body)
    refused(reply, 400, "images[0]", took)


@pytest.mark.parametrize("name", PICTURES)
def test_bad_masks(tiers: Tiers, name: str) -> None:
    body = {**GOOD, "mask": b64(PICTURES[name]())}
    reply, took = post(tiers, json=body)
    refused(reply, 400, "mask", took)


@pytest.mark.parametrize("name", FIELDS)
def test_bad_fields(tiers: Tiers, name: str) -> None:
    fields, param = FIELDS[name]
    reply, took = post(tiers, json={**GOOD, **fields})
    refused(reply, 400, param, took)


def test_an_unknown_model(tiers: Tiers) -> None:
    reply, took = post(tiers, json={**GOOD, "model": "gpt-image-9"})
    refused(reply, 404, "model", took)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"prompt": "x"', b"[]", b'"x"', b"\xff\xfe", b"null"]
)
def test_not_a_json_object(tiers: Tiers, body: bytes) -> None:
    reply, took = post(tiers, content=body, headers={"content-type": "application/json"})
    refused(reply, 400, None, took)


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", ""])
def test_a_wrong_content_type(tiers: Tiers, kind: str) -> None:
    reply, took = post(tiers, content=json.dumps(GOOD), headers={"content-type": kind})
    refused(reply, 415, None, took)


def test_a_body_without_end(tiers: Tiers) -> None:
    """Chunks of a JSON string that never closes; the answer comes while they are still sent."""
    host, port = tiers.rest.base_url.host, tiers.rest.base_url.port
    done = threading.Event()

    def send(connection: socket.socket) -> None:
        chunk = b"100000\r\n" + b"A" * 0x100000 + b"\r\n"
        try:
            while not done.is_set():
                connection.sendall(chunk)
        except OSError:
            pass  # hung up, as it should

    with socket.create_connection((host, port or 80), timeout=30) as connection:
        head = (
            f"POST /v1/images/edits HTTP/1.1\r\nHost: {host}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode() + b'10\r\n{"prompt": "AAAA\r\n')
        started = time.monotonic()
        sender = threading.Thread(target=send, args=(connection,))
        sender.start()
        try:
            reply = b""
            while b'"code"' not in reply:
                reply += (more := connection.recv(65536))
                assert more, reply
            took = time.monotonic() - started
        finally:
            done.set()
            connection.shutdown(socket.SHUT_RDWR)
            sender.join()
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == 413
    assert took < SECONDS
    tiers.edit(GOOD)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/images/edits", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/images/generations", 404),
        ("GET", "/v1/models/gpt-image-9", 404),
        ("GET", "/images/nothing.png", 404),
        ("GET", "/../../etc/passwd", 404),
    ],
)
def test_wrong_paths_and_methods(tiers: Tiers, method: str, path: str, status: int) -> None:
    started = time.monotonic()
    reply = tiers.rest.request(method, path)
    param = "model" if path.startswith("/v1/models/") else None
    refused(reply, status, param, time.monotonic() - started)


def over_grpc(**fields: Any) -> EditRequest:
    return EditRequest(
        **{"images": [PHOTO], "prompt": "make it brighter", "num_inference_steps": 1, **fields}
    )


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": []}, "images"),
    "17 images": ({"images": [PHOTO] * 17}, "images"),
    "more images than the model takes": ({"images": [PHOTO] * 2}, "images[1]"),
    "n = 0": ({"n": 0}, "n"),
    "n = 11": ({"n": 11}, "n"),
    "negative guidance": ({"guidance_scale": -1}, "guidance_scale"),
    "guidance 20.1": ({"guidance_scale": 20.1}, "guidance_scale"),
    "guidance is no number": ({"guidance_scale": float("nan")}, "guidance_scale"),
    "strength 1.1": ({"strength": 1.1}, "strength"),
    "negative strength": ({"strength": -0.1}, "strength"),
    "strength is no number": ({"strength": float("nan")}, "strength"),
    "steps 0": ({"num_inference_steps": 0}, "num_inference_steps"),
    "steps 101": ({"num_inference_steps": 101}, "num_inference_steps"),
    "empty prompt": ({"prompt": ""}, "prompt"),
    "prompt of 4001 characters": ({"prompt": "a" * 4001}, "prompt"),
    "size 0x0": ({"size": Size()}, "size.width"),
    "size 257x256": ({"size": Size(width=257, height=256)}, "size.width"),
    "size 256x8193": ({"size": Size(width=256, height=8193)}, "size.height"),
    "size 8192x8192": ({"size": Size(width=8192, height=8192)}, "size"),
    "mask of another size": ({"mask": png(left_half(128, 128))}, "mask"),
    "quality 101": ({"output_format": 2, "output_compression": 101}, "output_compression"),
    "an unknown format": ({"output_format": 9}, "output_format"),
}


def named_over_grpc(tiers: Tiers, request: EditRequest) -> list[str]:
    """The fields that the server names; a good edit follows."""
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as raised:
        tiers.grpc.Edit(request, timeout=20)
    assert time.monotonic() - started < SECONDS
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT, raised.value
    status = rpc_status.from_call(raised.value)
    assert status is not None
    (packed,) = status.details
    bad = error_details_pb2.BadRequest()
    assert packed.Unpack(bad)
    assert all(violation.description for violation in bad.field_violations)
    assert tiers.grpc.Edit(over_grpc(), timeout=20).images
    return [violation.field for violation in bad.field_violations]


@pytest.mark.parametrize("name", REQUESTS)
def test_bad_fields_over_grpc(tiers: Tiers, name: str) -> None:
    fields, field = REQUESTS[name]
    assert field in named_over_grpc(tiers, over_grpc(**fields))


@pytest.mark.parametrize("name", PICTURES)
def test_bad_pictures_over_grpc(tiers: Tiers, name: str) -> None:
    assert named_over_grpc(tiers, over_grpc(images=[PICTURES[name]()])) == ["images[0]"]


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "empty"])
def test_bad_masks_over_grpc(tiers: Tiers, name: str) -> None:
    assert named_over_grpc(tiers, over_grpc(mask=PICTURES[name]())) == ["mask"]


def test_all_violations_are_named_at_once(tiers: Tiers) -> None:
    named = named_over_grpc(tiers, over_grpc(n=0, strength=2, prompt="", num_inference_steps=999))
    assert sorted(named) == ["n", "num_inference_steps", "prompt", "strength"]


def test_an_unknown_model_over_grpc(tiers: Tiers) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        tiers.grpc.Edit(over_grpc(model="gpt-image-9"), timeout=20)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
