"""Whatever comes to the gRPC port: the server goes on, holds no more than before, and says what is wrong."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import TypeAlias

import grpc
import pytest

from retouch.v1 import image_edit_pb2 as pb
from tests.hostile.attacks import FLOODS, WRONG, gzip_bomb
from tests.hostile.conftest import Tiers
from tests.hostile.decoding import mutated
from tests.hostile.pictures import small
from tests.hostile.report import LONG, Report
from tests.hostile.tiers import Held, Tier, within

pytestmark = pytest.mark.timeout(900)
SECONDS = 20.0
Ask: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
EDIT, STREAM = "/retouch.v1.ImageEdit/Edit", "/retouch.v1.ImageEdit/StreamEdit"
LIST = "/retouch.v1.ImageEdit/ListModels"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
GOOD = pb.EditRequest(images=[small()], prompt="x", n=0, num_inference_steps=1).SerializeToString()
# Chance makes edits of some messages, and kernels for their shapes stay.
MORE = Held(mebibytes=128 if LONG else 48, descriptors=4, threads=24, tasks=8, objects=8000)
# Never of the caller's making: what fails inside.
INTERNAL = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}


def answered(tier: Tier, seconds: float = SECONDS) -> bool:
    """Whether a new connection is served."""
    with grpc.insecure_channel(f"127.0.0.1:{tier.port}") as channel:
        ask: Ask = channel.unary_unary(LIST)
        return bool(ask(b"", timeout=seconds, wait_for_ready=True))


def said(tier: Tier, data: bytes, seconds: float) -> int:
    """Say it, listen for so long or until the server hangs up; how many bytes it answered."""
    heard = 0
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection(("127.0.0.1", tier.port), timeout=SECONDS) as connection,
    ):
        connection.sendall(data)
        connection.settimeout(seconds)
        while more := len(connection.recv(2**16)):
            heard += more
    return heard


@pytest.fixture(scope="module")
def before(tiers: Tiers) -> Held:
    """What the server holds once each way of talking to it was tried."""
    for make in (*FLOODS.values(), *WRONG.values()):
        said(tiers.server, make(), 0.05)
    assert answered(tiers.server)
    return tiers.server.settled()


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_passes(tiers: Tiers, before: Held, name: str, report: Report) -> None:
    data = FLOODS[name]()
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: said(tiers.server, data, 0.3), range(8 if LONG else 4)))
    assert answered(tiers.server)
    report.note("gRPC floods", **{name: f"{time.monotonic() - began:.1f} s"})


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_frame_harms_nobody(tiers: Tiers, name: str) -> None:
    said(tiers.server, WRONG[name](), 0.05)
    assert answered(tiers.server)


def test_a_message_that_unpacks_to_a_gigabyte_is_not_unpacked(tiers: Tiers) -> None:
    with tiers.server.peak() as grown:
        said(tiers.server, gzip_bomb(), 2)
        assert answered(tiers.server)
    assert grown() < 200


@contextlib.contextmanager
def calls(tier: Tier) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 2**22)]
    with grpc.insecure_channel(f"127.0.0.1:{tier.port}", options=options) as channel:
        yield channel


def statuses(tier: Tier, method: str, messages: Sequence[bytes]) -> Counter[grpc.StatusCode]:
    """How calls with these messages end, a hundred at a time."""
    found: Counter[grpc.StatusCode] = Counter()
    with calls(tier) as channel:
        ask: Ask = channel.unary_unary(method)
        for start in range(0, len(messages), 100):
            futures = [ask.future(data, timeout=SECONDS) for data in messages[start : start + 100]]
            found.update(each.code() for each in futures)
    return found


def garbage(chance: random.Random) -> bytes:
    match chance.randrange(6):
        case 0:
            return chance.randbytes(chance.randrange(1, 300))
        case 1:
            return mutated(GOOD, chance)
        case 2:
            return GOOD[: chance.randrange(len(GOOD))]
        case 3:  # fields that nobody knows, of every wire type
            return GOOD + b"".join(
                bytes([0x80 | chance.randrange(0, 6), 0x80 | chance.randrange(128), 1])
                for _ in range(9)
            )
        case 4:  # groups in groups
            return b"\x0b" * chance.randrange(1, 5000)
        case _:  # a prompt that is no UTF-8
            return GOOD + b"\x1a\x04\xff\xfe\xfd\xfc"


def test_messages_that_are_no_requests(tiers: Tiers, report: Report) -> None:
    chance = random.Random(5)
    count = 50_000 if LONG else 5000
    found = statuses(tiers.server, EDIT, [garbage(chance) for _ in range(count)])
    report.note("gRPC messages", **{code.name: number for code, number in found.items()})
    assert found.total() == count
    assert not INTERNAL & set(found), found


@pytest.mark.parametrize("method", [LIST, CHECK, WATCH, REFLECT])
def test_messages_that_are_no_requests_of_any_method(tiers: Tiers, method: str) -> None:
    found = statuses(tiers.server, method, [b"\xff" * 9, b"\x0b" * 99, b"\x0a\xff\x01"] * 30)
    assert set(found) == {grpc.StatusCode.INVALID_ARGUMENT}


def test_messages_over_the_limit(tiers: Tiers) -> None:
    large = pb.EditRequest(images=[bytes(4 * 2**20)] * 20, prompt="x").SerializeToString()
    assert set(statuses(tiers.server, EDIT, [large] * 2)) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    many = pb.EditRequest(images=[b""] * 500_000, prompt="x").SerializeToString()
    assert set(statuses(tiers.server, EDIT, [many] * 4)) == {grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize(
    "method", ["/", "/x", "/retouch.v1.ImageEdit/", "/retouch.v1.ImageEdit/Edit/x", "/a" * 200]
)
def test_methods_that_there_are_not(tiers: Tiers, method: str) -> None:
    assert set(statuses(tiers.server, method, [GOOD] * 50)) == {grpc.StatusCode.UNIMPLEMENTED}


@pytest.mark.parametrize("method", [REFLECT, WATCH, STREAM])
def test_streams_of_rubbish(tiers: Tiers, method: str) -> None:
    """Many messages where some are wanted, and no telling when the last comes."""
    chance = random.Random(9)
    rubbish = [garbage(chance) for _ in range(300)] + [b"\x22\xff\xff\x03" + b"a" * 65535] * 4
    with calls(tiers.server) as channel:
        for _ in range(20):
            talk: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
            answers = talk(iter(rubbish), timeout=2)
            with contextlib.suppress(grpc.RpcError):
                for number, _answer in enumerate(answers):
                    if number > 1000:
                        break
            answers.cancel()
    assert answered(tiers.server)


def test_metadata_of_every_kind(tiers: Tiers) -> None:
    with calls(tiers.server) as channel:
        ask: Ask = channel.unary_unary(LIST)
        kinds: list[list[tuple[str, str | bytes]]] = [
            [("x-request-id", "x" * 100_000)],
            [("x-request-id", "a b\tc")],
            [("traceparent", "00-" + "a" * 500)] * 9,
            [(f"x-{i}", "v") for i in range(3000)],
            [("x-bin", b"\0\xff" * 2000)],
            [("grpc-previous-rpc-attempts", "-1")],
        ]
        for metadata in kinds:
            for _ in range(5):
                with contextlib.suppress(grpc.RpcError):
                    ask(b"", metadata=tuple(metadata), timeout=SECONDS)
    assert answered(tiers.server)


def test_idle_connections_come_and_go(tiers: Tiers) -> None:
    for start in (b"", b"PRI * HT"):
        idle = [socket.create_connection(("127.0.0.1", tiers.server.port)) for _ in range(200)]
        for each in idle:
            each.sendall(start)
        assert answered(tiers.server)
        for each in idle:
            # Reset, not closed: no goodbye.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()
    assert answered(tiers.server)


def test_silent_calls_of_one_stop_no_edit_of_another(tiers: Tiers) -> None:
    """Such as a gateway leaves that is lost in the middle of its requests; each would wait for a minute."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(SECONDS * 3)
        yield from ()

    with calls(tiers.server) as channel:
        say: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(EDIT)
        silent = [say.future(nothing(), timeout=SECONDS * 3) for _ in range(20)]
        try:
            time.sleep(1)  # in which they are there
            began = time.monotonic()
            assert tiers.edit(tiers.gateway).endswith(".png")
            assert time.monotonic() - began < SECONDS
            assert not any(each.done() for each in silent)
        finally:
            over.set()
            for each in silent:
                each.cancel()


def test_the_server_is_as_it_was(tiers: Tiers, before: Held, report: Report) -> None:
    after = tiers.server.settled(60, partial(within, MORE, before))
    report.note("gRPC", first=asdict(before), last=asdict(after))
    assert tiers.server.process.poll() is None
    assert within(MORE, before, after), f"{before} to {after}"
    assert tiers.edit(tiers.gateway).endswith(".png")
