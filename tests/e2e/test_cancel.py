"""Whoever leaves, or runs out of time, gives the slot back."""

import json
import socket
import time
from collections.abc import Iterator

import grpc
import pytest

from retouch.v1.image_edit_pb2 import EditRequest, Size
from tests.e2e.conftest import Tiers
from tests.e2e.pictures import b64, photo, png
from tests.run_up import wait_for

# Minutes of work on a small machine, about a second a step.
LONG = {"prompt": "make it night", "size": "768x768", "num_inference_steps": 100, "seed": 7}
PHOTO = png(photo())
REQUEST = EditRequest(
    images=[PHOTO],
    prompt="make it night",
    size=Size(width=768, height=768),
    num_inference_steps=100,
    seed=7,
)
# A step or two when nothing else runs, a second or two; other programs may slow the machine.
FREED_SECONDS = 20.0


def running(tiers: Tiers) -> float:
    return tiers.metric("server", "retouch_server_running")


def forwards(tiers: Tiers) -> float:
    return tiers.metric("server", "retouch_server_batch_rows_count")


@pytest.fixture(autouse=True)
def _frees_the_slot_early(tiers: Tiers) -> Iterator[None]:
    """Around each test: idle before, and soon after, with steps left that were never run."""
    wait_for(lambda: running(tiers) == 0, FREED_SECONDS, "idle")
    before = forwards(tiers)
    yield
    wait_for(lambda: running(tiers) == 0, FREED_SECONDS, "the slot freed")
    assert tiers.metric("server", "retouch_server_queued") == 0
    assert forwards(tiers) - before < REQUEST.num_inference_steps


def test_a_client_that_goes_away(tiers: Tiers) -> None:
    body = json.dumps({**LONG, "images": [b64(PHOTO)]}).encode()
    url = tiers.rest.base_url
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(
            b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_for(lambda: running(tiers) == 1, 10, "the edit running")


def test_a_grpc_caller_that_cancels(tiers: Tiers) -> None:
    call = tiers.grpc.Edit.future(REQUEST)
    wait_for(lambda: running(tiers) == 1, 10, "the edit running")
    call.cancel()


def test_a_deadline(tiers: Tiers) -> None:
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as raised:
        tiers.grpc.Edit(REQUEST, timeout=1.0)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 10


def test_a_stream_that_is_left(tiers: Tiers) -> None:
    stream = tiers.grpc.StreamEdit(REQUEST)
    assert next(stream).WhichOneof("event") == "queued"
    assert next(stream).WhichOneof("event") == "step"
    stream.cancel()
