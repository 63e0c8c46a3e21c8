"""The floor: base64 and JSON only. No check, no store; with an upstream, a bare gRPC call in between."""

from __future__ import annotations

import sys
import time
from typing import Any

import grpc
import orjson
import pybase64
import uvicorn

from bench.gateway.bodies import Answer
from bench.gateway.upstream import SIZES
from retouch.v1.image_edit_pb2 import EditRequest
from retouch.v1.image_edit_pb2_grpc import ImageEditStub

PNG = b"\x89PNG"


def decoded(body: bytes) -> bytes:
    """The first picture of a body of either kind."""
    if body.startswith(b"{"):
        return pybase64.b64decode(orjson.loads(body)["images"][0], validate=True)
    boundary = body[: body.index(b"\r\n")]
    start = body.index(PNG)
    return body[start : body.index(b"\r\n" + boundary, start)]


def encoded(picture: bytes, answer: Answer) -> bytes:
    """The answer that has it."""
    item = (
        {"url": "http://127.0.0.1/images/nowhere.png"}
        if answer == "url"
        else {"b64_json": pybase64.b64encode_as_string(picture)}
    )
    return orjson.dumps({"created": int(time.time()), "data": [item]})


class Floor:
    """The smallest ASGI application that does it, for one kind of answer."""

    def __init__(self, answer: Answer, upstream: str) -> None:
        self.answer = answer
        self.upstream = upstream
        self.stub: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        chunks, more = [], True
        while more:
            message = await receive()
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
        picture = decoded(b"".join(chunks))
        if self.upstream:
            picture = await self.called(picture)
        body = encoded(picture, self.answer)
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def called(self, picture: bytes) -> bytes:
        if not self.stub:  # a channel belongs to the loop that it is made on
            self.stub = ImageEditStub(grpc.aio.insecure_channel(self.upstream, SIZES))
        response = await self.stub.Edit(EditRequest(images=[picture], prompt="make it night"))
        return bytes(response.images[0].data)


if __name__ == "__main__":
    port, kind, upstream = sys.argv[1:]
    uvicorn.run(
        Floor("url" if kind == "url" else "b64_json", upstream),
        port=int(port),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
