"""Callers of the server itself, by gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1 import image_edit_pb2_grpc as rpc
from tests.soak.caller import MASK, OPTIONS, PICTURES, SQUARE, Caller
from tests.soak.checks import BEFORE

OK, INVALID, UNKNOWN, BLOCKED = "OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"
FULL, LEFT, LATE = "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED"
FORMATS = (
    pb.OutputFormat.OUTPUT_FORMAT_PNG,
    pb.OutputFormat.OUTPUT_FORMAT_JPEG,
    pb.OutputFormat.OUTPUT_FORMAT_WEBP,
)


def _request(caller: Caller, steps: int | None = None, **fields: Any) -> pb.EditRequest:
    draw = caller.random
    side = draw.choice((64, 64, 64, 96, 128))
    request = pb.EditRequest(
        images=[draw.choice(PICTURES)],
        prompt=f"make it night, {draw.randrange(10**6)}",
        size=pb.Size(width=side, height=side),
        num_inference_steps=steps or draw.randint(1, 3),
        n=draw.choice((1, 1, 2)),
        seed=draw.randrange(2**63),
        output_format=draw.choice(FORMATS),
    )
    if draw.random() < 0.2:
        request.ClearField("images")
        request.images.append(SQUARE)
        request.mask = MASK
    request.MergeFrom(pb.EditRequest(**fields))
    return request


def _ended(caller: Caller, name: str, code: grpc.StatusCode, n: int, images: int, *ok: str) -> None:
    """Keep a call's end. Where it was left, nobody knows what was made."""
    caller.ledger.calls[name, code.name] += 1
    caller.expect(code.name in ok, f"{name}: {code.name}")
    if code is grpc.StatusCode.OK:
        caller.ledger.images += images
    elif code.name in (LEFT, LATE):
        caller.ledger.unknown += n


async def _edit(
    caller: Caller,
    request: pb.EditRequest,
    *ok: str,
    seconds: float | None = None,
    leave: float | None = None,
) -> None:
    call = caller.stub.Edit(request, timeout=seconds)
    if leave is not None:
        await asyncio.wait({asyncio.ensure_future(call.code())}, timeout=leave)
        call.cancel()
    try:
        images = len((await call).images)
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        images = 0
    _ended(caller, "Edit", await call.code(), request.n or 1, images, *ok)


async def _stream(
    caller: Caller,
    request: pb.EditRequest,
    *ok: str,
    seconds: float | None = None,
    events: int = 10**6,
    stub: rpc.ImageEditAsyncStub | None = None,
) -> None:
    """Read so many events, or all, and leave."""
    call = (stub or caller.stub).StreamEdit(request, timeout=seconds)
    images, seen = 0, 0
    try:
        async for event in call:
            seen += 1
            images += len(event.result.images)
            if seen >= events:
                call.cancel()
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass
    code = await call.code()
    caller.expect(code.name != OK or images == (request.n or 1), "a stream that is OK lacks images")
    _ended(caller, "StreamEdit", code, request.n or 1, images, *ok)


async def edited(caller: Caller) -> None:
    await _edit(caller, _request(caller), OK, FULL)


async def streamed(caller: Caller) -> None:
    previews = caller.random.randint(0, 3)
    await _stream(caller, _request(caller, partial_images=previews), OK, FULL)


async def cancelled(caller: Caller) -> None:
    """At any moment: while it is decoded, queued, encoded, denoised, decoded; or too late."""
    request = _request(caller, steps=caller.random.randint(1, 20))
    await _edit(caller, request, LEFT, OK, FULL, leave=caller.random.random())


async def left(caller: Caller) -> None:
    request = _request(caller, steps=12, partial_images=2)
    await _stream(caller, request, LEFT, OK, FULL, events=caller.random.randint(1, 12))


async def late(caller: Caller) -> None:
    """With a deadline that passes at any phase, or not."""
    request = _request(caller, steps=caller.random.randint(1, 20))
    seconds = caller.random.choice((0.001, 0.02, 0.2, 0.5, 1.0))
    if caller.random.random() < 0.5:
        await _edit(caller, request, LATE, OK, FULL, seconds=seconds)
    else:
        await _stream(caller, request, LATE, OK, FULL, seconds=seconds)


async def gone(caller: Caller) -> None:
    """The whole channel is dropped under its calls."""
    target = f"127.0.0.1:{caller.round.stack.server.port}"
    async with grpc.aio.insecure_channel(target, OPTIONS) as channel:
        stub = rpc.ImageEditStub(channel)
        calls = [
            asyncio.create_task(
                _stream(caller, _request(caller, steps=12), LEFT, OK, FULL, stub=stub)
            )
            for _ in range(2)
        ]
        await asyncio.sleep(caller.random.random())
    await asyncio.gather(*calls)


async def mistaken(caller: Caller) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": "nobody"}, UNKNOWN),
        ({"prompt": BEFORE}, BLOCKED),
        ({"strength": 3.0}, INVALID),
        ({"mask": PICTURES[4][:-3000]}, INVALID),
        ({"mask": SQUARE[:-40]}, INVALID),
        ({"guidance_scale": float("nan")}, INVALID),
        ({"size": pb.Size(width=1, height=1)}, INVALID),
    )
    fields, code = caller.in_turn("wrong", wrong)
    await _edit(caller, _request(caller, **fields), code, FULL)


async def looked_around(caller: Caller) -> None:
    listing = await caller.stub.ListModels(pb.ListModelsRequest())
    caller.ledger.calls["ListModels", OK] += 1
    caller.expect(len(listing.models) == 2, "not two models")
