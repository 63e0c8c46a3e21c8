"""The events of a stream, where what they tell of goes wrong."""

from __future__ import annotations

import asyncio
import logging

import pytest
import torch
from torch import Tensor

from retouch.v1 import image_edit_pb2 as pb
from retouch_server.streaming import Events


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("words"), ValueError("too little")])
async def test_a_preview_that_cannot_be_drawn_fails_no_edit(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    async def draw(image: int, latents: Tensor) -> pb.EditedImage:
        await asyncio.sleep(0.01)
        raise error

    async def edit() -> pb.EditResponse:
        return pb.EditResponse(model="m")

    events = Events()
    events.on_preview(draw, 0, torch.zeros(1))
    await asyncio.sleep(0.005)  # it is being drawn when the edit is done
    finish = asyncio.ensure_future(edit())
    kinds = [event.WhichOneof("event") async for event in events.until(finish, 0, lambda: None)]
    assert kinds == ["queued"]
    assert (await finish).model == "m"
    assert bool(caplog.records) != isinstance(error, ValueError)
