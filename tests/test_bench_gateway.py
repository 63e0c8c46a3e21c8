"""The gateway's benchmark: it measures what it says, and its small mode prints what it promises."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pybase64
import pytest

from bench.gateway.__main__ import ratio
from bench.gateway.bodies import ASKS, Ask, noisy, photo, request
from bench.gateway.floor import decoded, encoded
from bench.gateway.load import CHUNK, Refused, exchange
from bench.gateway.served import Failed, Served, serving, wire

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"[0-9.]+")


def numbers(line: str) -> list[float]:
    return [float(found) for found in NUMBER.findall(line)]


def test_a_small_run() -> None:
    small = ("--rounds", "2", "--seconds", "0.1", "--sides", "64", "--clients", "2")
    run = subprocess.run(
        [sys.executable, "-m", "bench.gateway", "--beside", "gateway", "--crowd", "4", *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    printed = run.stdout.splitlines()
    for ask in ASKS:
        assert any(line.startswith(f"{ask.body} in, {ask.answer} out, 64x64") for line in printed)
    rows = {
        name: [numbers(line) for line in printed if line.startswith(f"{name} ")]
        for name in ("floor", "hop", "gateway", "wire")
    }
    for name, found in rows.items():
        *measured, memory = [*found, []] if name == "wire" else found
        assert len(measured) == len(ASKS)
        for p50, p99, rate, per_core, callers, *ratios in measured:
            assert 0 < p50 <= p99
            assert min(rate, per_core, callers) > 0
            assert len(ratios) == 6
            assert all(low <= middle <= high for middle, low, high in (ratios[:3], ratios[3:]))
            assert name != "floor" or ratios[:3] == [1, 1, 1]
            assert name != "hop" or ratios[3:] == [1, 1, 1]
        if memory:
            idle, peak, _after, edits, *_ = memory
            assert 10 < idle <= peak
            assert edits >= 4


@pytest.mark.parametrize("ask", ASKS)
def test_the_floor_finds_the_picture_and_answers_with_it(ask: Ask) -> None:
    picture = photo(32)
    head, _, body = request(picture, ask).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert decoded(body) == picture
    (item,) = orjson.loads(encoded(picture, ask.answer))["data"]
    assert list(item) == [ask.answer]
    assert ask.answer == "url" or pybase64.b64decode(item["b64_json"]) == picture


def test_pictures_have_the_sizes_that_are_told() -> None:
    assert 1.4e6 < len(photo(1024)) < 2e6
    assert 4e6 < 4 / 3 * len(noisy(1024)) < 4.3e6


def test_ratios_are_of_the_same_round() -> None:
    assert ratio([2, 30], [1, 10]) == "2.50 (2.25, 2.75)"


@pytest.fixture
def two_ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(10)
        other.settimeout(10)
        yield one, other


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", None),
        (b"HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\nabc", Refused),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", Refused),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", ConnectionResetError),
        (b"HTTP/1.1 200 OK\r\n", ConnectionResetError),
    ],
)
def test_only_a_whole_answer_counts(
    two_ends: tuple[socket.socket, socket.socket], answer: bytes, error: type[Exception] | None
) -> None:
    caller, server = two_ends
    for part in (answer[:20], answer[20:]):
        server.sendall(part)
    server.shutdown(socket.SHUT_WR)
    if error:
        with pytest.raises(error):
            exchange(caller, b"GET", bytearray(CHUNK))
    else:
        exchange(caller, b"GET", bytearray(CHUNK))
        assert server.recv(10) == b"GET"


def test_callers_take_turns_with_a_server_of_their_own(tmp_path: Path) -> None:
    picture = noisy(700)  # more than a socket takes at once
    file = tmp_path / "request"
    file.write_bytes(request(picture, ASKS[0]))
    with wire(tmp_path, encoded(picture, "b64_json")) as served:
        served.check(picture, ASKS[0])
        load = served.load(file, clients=3, seconds=0.5)
        with pytest.raises(Failed, match="another picture"):
            served.check(photo(16), ASKS[0])
        now, peak = served.resident()
    assert len(load.latencies) >= 3
    assert 0 < min(load.latencies) <= max(load.latencies) < load.seconds
    assert load.cpu > 0
    assert 0 < now <= peak


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no luck')"]
    with pytest.raises(Failed, match="no luck"), serving("one", 1, command, tmp_path):
        pass


def test_what_callers_are_refused_is_told(tmp_path: Path) -> None:
    file = tmp_path / "request"
    file.write_bytes(b"GET / HTTP/1.1\r\n\r\n")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 429 Slow down\r\nContent-Length: 0\r\n\r\n")

        pool.submit(refuse)
        with (
            subprocess.Popen([sys.executable, "-c", ""]) as process,
            pytest.raises(Failed, match="429 Slow down"),
        ):
            Served("busy", listener.getsockname()[1], process).load(file, 1, 0.1)
