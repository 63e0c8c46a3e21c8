"""Callers with secrets: all that one may send, well or ill, with a marker wherever words can be."""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import socket
from typing import Any

import grpc
import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from tests.e2e.pictures import b64, left_half, photo, png

EDITS = "/v1/images/edits"


class Markers(dict[str, str]):
    """A secret by what it is, made when it is first asked for."""

    def __missing__(self, what: str) -> str:
        self[what] = f"zq{what.replace(' ', '')}{secrets.token_hex(8)}"
        return self[what]


def pictures(hidden: Markers) -> list[bytes]:
    """With words where pictures have them: EXIF, a PNG's texts, behind the end; and one that is none."""
    exif, out, texts = Image.Exif(), io.BytesIO(), PngInfo()
    exif[0x010E], exif[0x013B] = hidden["exif words"], hidden["exif name"]
    photo(64, 64).save(out, "JPEG", exif=exif)
    texts.add_text("Comment", hidden["png text"])
    texts.add_itxt("XML:com.adobe.xmp", f"<x>{hidden['xmp']}</x>")
    second = io.BytesIO()
    photo(64, 64).save(second, "PNG", pnginfo=texts)
    return [out.getvalue(), second.getvalue() + hidden["behind the end"].encode()]


def callers(client: httpx.Client, hidden: Markers) -> None:
    """All that callers of the REST API may send, well or ill."""
    jpeg, other = pictures(hidden)
    body: dict[str, Any] = {
        "model": "tiny",
        "images": [b64(jpeg)],
        "prompt": hidden["prompt"],
        "negative_prompt": hidden["negative prompt"],
        "num_inference_steps": 1,
        "user": hidden["user"],
    }

    def send(status: int, headers: dict[str, str] | None = None, **over: Any) -> httpx.Response:
        answer = client.post(EDITS, json=body | over, headers=headers)
        assert answer.status_code == status, answer.text
        return answer

    once = {"idempotency-key": hidden["idempotency key"]}
    hosted_images(client, hidden, send(200, once).json()["data"][0]["url"])
    assert send(200, once).headers["idempotent-replayed"] == "true"
    send(422, once, prompt=hidden["other prompt"])
    send(
        200,
        images=[b64(other)],
        mask=b64(png(left_half(64, 64))),
        model="pocket",
        negative_prompt=None,
    )
    for partial in (0, 1):
        send(200, stream=True, partial_images=partial)
    send(200, prompt=f"{hidden['long prompt']} " * 100)  # of which the pipeline warns, and cites it
    send(500, prompt=f"FAIL {hidden['prompt of a failing edit']}")
    checked = f"CHECK {hidden['prompt of a failing check']}"
    send(500, prompt=checked, model="pocket", negative_prompt=None)
    send(200, stream=True, prompt=f"FAIL {hidden['prompt of a failing stream']}")
    for name in ("x-api-key", "authorization"):
        for what in ("bad key", "old key"):
            bearer = "Bearer " if name == "authorization" else ""
            send(401, {"x-api-key": "", name: f"{bearer}{hidden[what]}"})
    wrong_fields(client, hidden, body, send)


def wrong_fields(client: httpx.Client, hidden: Markers, body: dict[str, Any], send: Any) -> None:
    send(400, n=99)
    send(400, **{hidden["unknown field"]: hidden["unknown value"]})
    send(400, size=hidden["size"], quality=hidden["quality"])
    send(400, images=[hidden["no base64"]])
    send(400, images=[b64(b"\x89PNG\r\n\x1a\n" + hidden["no picture"].encode() * 9)])
    send(404, model=hidden["model"])
    for host in ("127.0.0.1", "nowhere.invalid"):
        link = f"https://user:{hidden['link password']}@{host}/{hidden['link path']}?sig={hidden['link query']}"
        send(400, images=[link])
    authorized = {"authorization": f"Bearer {hidden['good key']}"}
    for content in (
        json.dumps(body).encode()[:-1],
        b'{"prompt": ' + hidden["half a body"].encode(),
        b'{"prompt": "\xff' + hidden["no unicode"].encode() + b'"}',
    ):
        kind = {"content-type": "application/json"}
        assert client.post(EDITS, content=content, headers=kind | authorized).status_code == 400
    for files, fields in (
        ({"image": (hidden["file name"], b"\x89PNG" + hidden["file"].encode())}, {"prompt": "x"}),
        ({hidden["file field"]: ("x", b"x")}, {"prompt": hidden["form prompt"]}),
        ({"image": ("x", png(photo(64, 64)))}, {hidden["form field"]: "x", "n": hidden["form n"]}),
    ):
        assert client.post(EDITS, files=files, data=fields).status_code == 400
    broken = {"content-type": f"multipart/form-data; boundary={hidden['boundary']}"}
    assert client.post(EDITS, content=hidden["no form"] * 9, headers=broken).status_code == 400
    kind = {"content-type": f"text/{hidden['content type']}"}
    assert client.post(EDITS, content=b"x", headers=kind).status_code == 415
    query = {"api_key": hidden["query key"]}
    assert client.get(f"/{hidden['path']}%0aERROR", params=query).status_code == 404
    assert client.get(f"/v1/models/{hidden['model path']}", params=query).status_code == 404
    assert client.patch(f"/v1/models?{hidden['query']}").status_code == 405


def hosted_images(client: httpx.Client, hidden: Markers, where: str) -> None:
    """Their addresses are all that it takes to see them: all outcomes."""
    path = httpx.URL(where).path
    token = path.rpartition("/")[2]
    hidden.setdefault(f"token {token[:8]}", token[:72])
    query = {"sig": hidden["image query"]}
    assert client.get(path).status_code == 200
    assert client.get(path, params=query, headers={"range": "bytes=0-9"}).status_code == 206
    assert client.get(path.replace(".png", ".jpg")).status_code == 404
    assert client.get(f"/images/{hidden['image name']}").status_code == 404
    forged = {"x-api-key": hidden["other key"]}
    assert client.delete(path, headers=forged).status_code == 403
    assert client.delete(path, headers={"x-api-key": hidden["bad key"]}).status_code == 401
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404


def odd_heads(port: int, hidden: Markers) -> None:
    """What no client library would send: heads that are refused below the routes."""
    for head in (
        f"GET /{hidden['raw path']} HTTP/9.9",
        f"GET /{hidden['raw space']} x HTTP/1.1",
        f"GET / HTTP/1.1\r\n{hidden['raw header']}",
        f"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-request-id: {hidden['request id']} ERROR\tforged",
        f"GET /v1/models HTTP/1.1\r\nhost: {hidden['host']}\r\nx-forwarded-host: {hidden['proxy']}",
        f"GET /v1/models HTTP/1.1\r\nhost: x\r\ntraceparent: {hidden['traceparent']}",
        f"GET / HTTP/1.1\r\ncookie: {hidden['cookie'] * 5000}",
    ):
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        ):
            raw.sendall(f"{head}\r\nconnection: close\r\n\r\n".encode())
            while raw.recv(65536):
                pass


def by_grpc(target: str, hidden: Markers) -> None:
    """Callers of the gRPC API: a good edit, and what is refused."""
    jpeg, _ = pictures(hidden)
    sent = (
        ("authorization", f"Bearer {hidden['grpc token']}"),
        ("x-request-id", f"{hidden['grpc request id']} forged"),
    )
    good: dict[str, Any] = {"images": [jpeg], "prompt": hidden["grpc prompt"]}
    with grpc.insecure_channel(target) as channel:
        stub = ImageEditStub(channel)
        stub.Edit(pb.EditRequest(**good), metadata=sent, timeout=60)
        for over in (
            {"model": hidden["grpc model"]},
            {"images": [hidden["grpc picture"].encode()]},
            {"n": 99},
            {"prompt": f"FAIL {hidden['failing grpc prompt']}"},
        ):
            with pytest.raises(grpc.RpcError):
                stub.Edit(pb.EditRequest(**good | over), metadata=sent, timeout=60)
        odd: Any = channel.unary_unary(f"/retouch.v1.ImageEdit/{hidden['method']}")
        with pytest.raises(grpc.RpcError):
            odd(hidden["no message"].encode(), timeout=10)
        edit: Any = channel.unary_unary("/retouch.v1.ImageEdit/Edit")
        with pytest.raises(grpc.RpcError):
            edit(b"\xff" + hidden["no message"].encode(), timeout=10)
