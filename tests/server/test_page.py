"""The metrics port: the page, and the probes of whoever cannot ask by gRPC."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from prometheus_client import CollectorRegistry, generate_latest

from retouch_server import certificates, page
from retouch_server.metrics import Metrics
from retouch_server.server import Server
from retouch_server.settings import Settings
from tests.certificates import Authority
from tests.server.conftest import Folder


@pytest_asyncio.fixture
async def server(tiny_folder: Folder) -> AsyncIterator[Server]:
    models = f"instruct={tiny_folder('instruct')}"
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    server = Server(
        Settings(port=0, metrics_port=port, models=models, device="cpu", drain_wait=2),
        on_death=lambda: None,
    )
    await server.start()
    yield server
    await server.stop()


async def ask(server: Server, path: str, method: str = "GET") -> tuple[int, str]:
    url = f"http://127.0.0.1:{server._settings.metrics_port}{path}"
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        reply = await client.request(method, url)
    return reply.status_code, reply.text


async def test_alive_at_once_ready_once_loaded_and_until_it_drains(server: Server) -> None:
    assert await ask(server, "/healthz") == (200, "ok\n")
    assert await ask(server, "/readyz") == (503, "no\n")
    await server.load()
    assert await ask(server, "/readyz") == (200, "ok\n")
    assert "\nretouch_server_ready 1.0\n" in (await ask(server, "/metrics"))[1]
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0.05)
    assert await ask(server, "/readyz") == (503, "no\n")
    assert await ask(server, "/healthz") == (200, "ok\n")
    assert "\nretouch_server_ready 0.0\n" in (await ask(server, "/metrics"))[1]
    await stopping


async def test_any_other_path_is_the_page_and_a_probe_is_only_asked(server: Server) -> None:
    for path in ("/", "/metrics", "/metrics?name[]=retouch_server_ready", "/healthz/"):
        status, text = await ask(server, path)
        assert status == 200
        assert "retouch_server_ready 0.0" in text
    assert (await ask(server, "/readyz", "POST"))[0] == 405


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, asyncio.AbstractEventLoop]]:
    """A page's port, and the loop that it tells of, which does not run."""
    monkeypatch.setattr(page, "STILL_SECONDS", 0.3)
    loop = asyncio.new_event_loop()
    serving = page.serve("127.0.0.1", 0, CollectorRegistry(), loop, lambda: True)
    yield serving.server_port, loop
    serving.shutdown()
    serving.server_close()
    loop.close()


def test_a_loop_that_stands_still_is_not_alive_and_holds_up_nothing(
    still: tuple[int, asyncio.AbstractEventLoop],
) -> None:
    port, loop = still
    url = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{url}/healthz").status_code == 503
    assert httpx.get(f"{url}/metrics").status_code == 200
    loop.close()
    assert httpx.get(f"{url}/healthz").status_code == 503


def test_a_caller_that_says_nothing_holds_up_no_other(
    still: tuple[int, asyncio.AbstractEventLoop],
) -> None:
    port, _ = still
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"GET /readyz HT")
        began = time.monotonic()
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        assert time.monotonic() - began < 5


def test_it_listens_on_ipv6_too() -> None:
    loop = asyncio.new_event_loop()
    serving = page.serve("::1", 0, CollectorRegistry(), loop, lambda: True)
    assert httpx.get(f"http://[::1]:{serving.server_port}/readyz").status_code == 200
    serving.shutdown()
    serving.server_close()
    loop.close()


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"retouch_server_{name}", labels)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (torch.AcceleratorError("illegal memory access"), "accelerator"),
        (ValueError("a bad value"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_errors_of_the_device_are_counted_by_kind(error: BaseException, kind: str | None) -> None:
    metrics = Metrics(["m"])
    metrics.failed("m", error)
    for each in ("out_of_memory", "accelerator"):
        assert sample(metrics, "device_errors_total", model="m", kind=each) == (each == kind)


def test_the_page_is_clean() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool (Debian's prometheus package) is missing")
    text = generate_latest(Metrics(["m"]).registry)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_certificates_say_when_they_expire(tmp_path: Path, caplog: Any) -> None:
    ca = Authority(tmp_path)
    near, far = ca.issue("near", days=3), ca.issue("far", days=30)
    both = tmp_path / "both.pem"
    both.write_bytes(far.cert.read_bytes() + near.cert.read_bytes())
    settings = Settings(tls_cert=both, tls_key=far.key, tls_client_ca=both)
    metrics = Metrics(["m"])
    certificates.tell(settings, metrics)
    for file, days in (("tls_cert", 3), ("tls_client_ca", 30)):
        when = sample(metrics, "certificate_expiry_timestamp_seconds", file=file)
        assert when is not None
        assert abs((when - time.time()) / 86400 - days) < 0.1
    certificates.tell(Settings(), plain := Metrics(["m"]))
    assert b"expiry_timestamp_seconds{" not in generate_latest(plain.registry)
    assert caplog.messages == []
