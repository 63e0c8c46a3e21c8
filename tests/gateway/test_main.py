"""The process: light, quick, tells its mistakes in a line, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio

from bench.local import free_port
from tests.gateway.conftest import Upstream, b64, picture

GATEWAY = [sys.executable, "-m", "retouch_gateway"]
BODY = {"images": [b64(picture())], "prompt": "x"}


Process = asyncio.subprocess.Process
Starting = Callable[..., Awaitable[Process]]


@pytest_asyncio.fixture(loop_scope="session")
async def start_process(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Starting]:
    """Start `retouch-gateway` with flags, wait until it listens."""
    started: list[Process] = []

    async def starting(*flags: str) -> Process:
        environment = os.environ | {
            "RETOUCH_GATEWAY_UPSTREAM": upstream.target,
            "RETOUCH_GATEWAY_STORE": str(tmp_path / "store"),
            "RETOUCH_GATEWAY_METRICS_PORT": "0",
        }
        process = await asyncio.create_subprocess_exec(
            *GATEWAY, *flags, env=environment, stderr=asyncio.subprocess.PIPE
        )
        started.append(process)
        assert process.stderr
        while b"listening" not in (line := await process.stderr.readline()):
            assert line, "it ended"
        return process

    yield starting
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def test_it_imports_quickly_and_holds_no_model() -> None:
    code = (
        "import sys, time; spent = [time.process_time()];"
        "import grpc, pydantic, starlette.applications; spent += [time.process_time()];"
        "import retouch_gateway.process; spent += [time.process_time()];"
        "print(*spent, *sys.modules, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (began, needed, ended), modules = map(float, done.stdout.split()[:3]), done.stdout.split()[3:]
    # All else together; 2.6 times as much when this was written.
    assert ended - needed < 5 * (needed - began)
    roots = {module.partition(".")[0] for module in modules}
    assert "retouch_gateway" in roots
    assert not roots & {"torch", "retouch_server", "retouch_cli", "diffusers", "numpy", "PIL"}


def test_wrong_settings_are_lines_and_exit_2() -> None:
    environment = os.environ | {"RETOUCH_GATEWAY_PORT": "x", "RETOUCH_GATEWAY_TTL": "0"}
    done = subprocess.run(GATEWAY, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "RETOUCH_GATEWAY_PORT",
        "RETOUCH_GATEWAY_TTL",
    ]


@pytest.mark.parametrize("variable", ["PORT", "METRICS_PORT"])
def test_a_taken_port_is_a_line_and_exit_1(variable: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        environment = os.environ | {
            "RETOUCH_GATEWAY_PORT": "0",
            "RETOUCH_GATEWAY_METRICS_PORT": "0",
            "RETOUCH_GATEWAY_STORE": str(tmp_path),
            f"RETOUCH_GATEWAY_{variable}": str(port),
        }
        done = subprocess.run(GATEWAY, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"RETOUCH_GATEWAY_{variable}: cannot listen on 127.0.0.1 port {port}: "
        "Address already in use\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_finishes_what_is_in_flight(
    start_process: Starting, upstream: Upstream, number: signal.Signals
) -> None:
    port = free_port()
    process = await start_process("--port", str(port))
    upstream.echo.delay = 0.5
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        edit = asyncio.create_task(client.post("/v1/images/edits", json=BODY))
        await asyncio.wait_for(upstream.echo.started.wait(), 10)
        process.send_signal(number)
        assert (await edit).status_code == 200
    _, errors = await asyncio.wait_for(process.communicate(), 5)
    assert process.returncode == 0
    assert b"Traceback" not in errors


async def test_while_it_drains_callers_are_answered_and_asked_to_leave(
    start_process: Starting, upstream: Upstream
) -> None:
    port = free_port()
    process = await start_process("--port", str(port), "--drain-wait", "60")
    upstream.echo.delay = 0.5
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        kept = await client.get("/readyz")  # on a connection that is then left open
        assert (kept.status_code, "connection" in kept.headers) == (200, False)
        edit = asyncio.create_task(client.post("/v1/images/edits", json=BODY))
        await asyncio.wait_for(upstream.echo.started.wait(), 30)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await client.get("/healthz")).status_code == 200
        for answer in (await edit, await client.post("/v1/images/edits", json=BODY)):
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert process.returncode is None
    process.send_signal(signal.SIGINT)  # by whom the wait is too long
    await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0


async def test_whoever_reads_a_stream_to_its_end_can_ask_once_more(
    start_process: Starting, upstream: Upstream
) -> None:
    """Its head was sent before it could say that the connection closes."""
    port = free_port()
    process = await start_process("--port", str(port), "--drain-wait", "0")
    upstream.echo.delay = 2
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        body = {**BODY, "stream": True}
        async with client.stream("POST", "/v1/images/edits", json=body) as stream:
            assert (stream.status_code, "connection" in stream.headers) == (200, False)
            process.send_signal(signal.SIGTERM)
            assert b"image_edit.completed" in await stream.aread()
        again = await client.get("/healthz")  # on that connection: nobody listens any more
        assert (again.status_code, again.headers["connection"]) == (200, "close")
    await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0


async def test_it_stays_small_and_urls_survive_it(start_process: Starting) -> None:
    port, metrics = free_port(), free_port()
    flags = ("--port", str(port), "--metrics-port", str(metrics))
    process = await start_process(*flags)
    async with httpx.AsyncClient() as client:
        address = f"http://127.0.0.1:{port}/v1/images/edits"
        replies = [await client.post(address, json=BODY) for _ in range(5)]
        # And after four of the largest images at once, when they are gone again.
        large = {**BODY, "images": [b64(picture() + bytes(4 * 2**20 - len(picture())))]}
        for reply in await asyncio.gather(*(client.post(address, json=large) for _ in range(4))):
            assert reply.status_code == 200
        url = replies[0].json()["data"][0]["url"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):  # given back once a second
                while resident(process) >= 120 * 2**20:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        assert resident(process) < 120 * 2**20
        page = (await client.get(f"http://127.0.0.1:{metrics}/metrics")).text
        assert "retouch_gateway_stored_images_total 9.0" in page
        assert (await client.get(f"http://127.0.0.1:{port}/metrics")).status_code == 404
        process.terminate()
        await process.communicate()
        await start_process(*flags)
        assert (await client.get(url)).status_code == 200


def resident(process: asyncio.subprocess.Process) -> int:
    """Bytes of its memory in use."""
    return int(psutil.Process(process.pid).memory_info().rss)


def test_help_is_help() -> None:
    done = subprocess.run([*GATEWAY, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "RETOUCH_GATEWAY_PUBLIC_URL" in done.stdout
