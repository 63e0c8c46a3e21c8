"""What the benchmarks of a cluster stand on: its names, its balancer, its callers, its slowed processes."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from bench.cluster import callers
from bench.cluster.balancer import balancer
from bench.cluster.callers import DONE, Callers, Outcome, calling
from bench.cluster.names import NAME, NameServer, name_server
from bench.cluster.tiers import Failed, Tier, paced, wait_until
from bench.gateway.bodies import noisy
from bench.roll import Rolled
from bench.scale_out import Split

A, AAAA = 1, 28


def ask(server: NameServer, name: str, kind: int = A) -> tuple[int, list[str]]:
    """The response code, and the addresses."""
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    query = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(query, server.server_address)
        reply = client.recv(512)
    number, flags, questions, answers = struct.unpack_from("!4H", reply)
    assert (number, questions) == (7, 1)
    assert reply[12 : len(query)] == query[12:]
    records = [reply[len(query) + 16 * i :][:16] for i in range(answers)]
    return flags & 0xF, [socket.inet_ntoa(record[12:]) for record in records]


def test_a_name_has_the_addresses_of_now() -> None:
    with name_server() as server:
        assert ask(server, NAME) == (0, [])
        for now in (["127.0.0.2"], ["127.0.0.3", "127.0.0.2"], []):
            server.addresses = now
            assert ask(server, NAME.upper()) == (0, now)
            assert ask(server, NAME, AAAA) == (0, [])
            assert ask(server, f"{NAME}.example") == (3, [])
        assert len(server.asked) == 2


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def test_a_balancer_chooses_for_new_connections_alone() -> None:
    with balancer() as front, listening() as one, listening() as other:

        def connected(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
            client = socket.create_connection(("127.0.0.1", front.port), timeout=10)
            backend, _ = listener.accept()
            return client, backend

        first, second = (listener.getsockname()[1] for listener in (one, other))
        front.backends = [first]
        client, backend = connected(one)
        front.backends = [second]
        newer = connected(other)
        for sender, receiver in ((client, backend), (backend, client), newer):
            sender.sendall(b"said")
            assert receiver.recv(10) == b"said"
        backend.close()
        assert client.recv(10) == b""  # which is passed on
        for each in (client, *newer):
            each.close()


def test_callers_keep_what_came_of_each_call() -> None:
    said = iter([DONE, "503", DONE, "ReadError"])

    def caller(state: Callers) -> None:
        state.call("REST", lambda: next(said, DONE))

    with calling([caller]) as state:
        wait_until(lambda: state.done() > 2, 10, "three")
    assert state.failed() == {"REST 503": 1, "REST ReadError": 1}
    assert state.done("REST") == state.done() == len(state.outcomes) - 2
    assert state.done("gRPC") == 0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (noisy(callers.SIDE), DONE),
        (noisy(8), "a picture of another size"),
        (noisy(callers.SIDE)[:-2000], "no picture"),
        (b"", "no picture"),
    ],
)
def test_only_a_whole_picture_is_an_edit_done(data: bytes, status: str) -> None:
    assert callers._read(data) == status


def test_a_stream_that_ends_in_an_error_is_none() -> None:
    assert callers._streamed('event: error\ndata: {"error": {"code": 503}}\n\n') == (
        "503 in the stream"
    )
    assert callers._streamed(": 1 ahead\n\n") == "None in the stream"


def test_a_paced_process_has_its_share_of_the_time() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with paced(cast(Tier, SimpleNamespace(process=busy)), 0.25):
            time.sleep(2)
            used = sum(psutil.Process(busy.pid).cpu_times()[:2])
        assert 0 < used < 1
    finally:
        busy.kill()
        busy.wait()


def test_what_does_not_come_is_told() -> None:
    with pytest.raises(Failed, match=r"not within 0\.1 s: the moon"):
        wait_until(lambda: False, 0.1, "the moon")


def test_a_tier_that_ends_says_why(tmp_path: Path) -> None:
    tier = Tier(["-c", "print('no luck')"], {}, tmp_path / "log")
    tier.start()
    tier.process.wait()
    with pytest.raises(Failed, match="no luck"):
        tier.wait_ready()


def test_what_is_printed() -> None:
    state = Callers([Outcome("REST", DONE, 1.0, 0.5), Outcome("gRPC", "UNAVAILABLE", 2.0, 1.5)])
    assert str(Rolled(state, [0, 0])) == (
        "1 failed (1 x gRPC UNAVAILABLE), 1 done, 0 of them streams, 0 by gRPC; longest 1.5 s; "
        "2 stopped, exit statuses [0]"
    )
    split = Split(edits=[6, 2], seconds=4.0, latencies=[1.0] * 7 + [3.0], failed=1)
    assert split.shares == [0.75, 0.25]
    assert str(split).split() == ["0.75", "0.25", "2.00", "1.00", "2.30", "1"]
