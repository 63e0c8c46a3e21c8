"""A real server whose forwards fail, end its engine, or never return: what callers get, and how the process ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.local import free_port, total
from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from tests.e2e.conftest import environment
from tests.e2e.pictures import photo, png
from tests.run_up import wait_for

# The server as it is, but for its denoiser: it does what is written in a file first.
LAUNCH = """
import pathlib, sys, time
import torch
from retouch_server import __main__
from retouch_server.engine.forward import Forwards

fault = pathlib.Path(sys.argv.pop())
together = Forwards._together

def faulty(self, batch, fill):
    match fault.read_text():
        case "short" if len(batch) > 1:
            raise torch.OutOfMemoryError("no room for more than one")
        case "wrong":
            return [(torch.full_like(call.lead[:, :4], torch.nan),) for call in batch]
        case "exit":
            raise SystemExit("its thread is ended")
        case "hang":
            time.sleep(1000)
    return together(self, batch, fill)

fault.write_text("")
Forwards._together = faulty
__main__.main([])
"""
SERVICE = "retouch.v1.ImageEdit"
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True)
class Faulty:
    process: subprocess.Popen[bytes]
    channel: grpc.Channel
    metrics_port: int
    fault: Path

    @property
    def stub(self) -> ImageEditStub:
        return ImageEditStub(self.channel)

    def metric(self, sample: str, **labels: str) -> float:
        page = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30).text
        return total(page, f"retouch_server_{sample}", **labels)

    def edits(self, count: int) -> list[Any]:
        """So many, all of them accepted and none done."""
        request = pb.EditRequest(
            images=[png(photo(64, 64))], prompt="make it night", num_inference_steps=100
        )
        calls = [self.stub.Edit.future(request, timeout=120) for _ in range(count)]
        wait_for(lambda: self.metric("running") + self.metric("queued") == count, 60, "under way")
        return calls


@contextmanager
def faulty(path: Path, **variables: str) -> Iterator[Faulty]:
    port, metrics_port, fault = free_port(), free_port(), path / "fault"
    environ = environment(
        RETOUCH_SERVER_PORT=str(port), RETOUCH_SERVER_METRICS_PORT=str(metrics_port), **variables
    )
    with (path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(fault)], stdout=log, stderr=log, env=environ
        )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Faulty(process, channel, metrics_port, fault)
    finally:
        process.kill()
        process.wait()


def ready(server: Faulty) -> None:
    def answers() -> bool:
        assert server.process.poll() is None
        try:
            return probe(server) == 200
        except httpx.TransportError:
            return False

    wait_for(answers, 120, "it is ready")


def probe(server: Faulty) -> int:
    return httpx.get(f"http://127.0.0.1:{server.metrics_port}/readyz", timeout=30).status_code


def health(server: Faulty) -> int:
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    reply: health_pb2.HealthCheckResponse = health_pb2_grpc.HealthStub(server.channel).Check(
        request, timeout=30
    )
    return int(reply.status)


def codes(calls: list[Any]) -> list[str]:
    """What each came to; every one within its deadline."""
    return [call.code().name for call in calls]


def test_forwards_fail_and_then_the_engines_thread_ends(tmp_path: Path) -> None:
    with faulty(tmp_path, RETOUCH_SERVER_DRAIN_WAIT="3") as server:
        ready(server)
        calls = server.edits(4)
        server.fault.write_text("short")
        assert codes(calls) == ["OK"] * 4
        calls = server.edits(3)
        server.fault.write_text("wrong")
        assert codes(calls) == ["INTERNAL"] * 3
        assert {call.details() for call in calls} == {"the model's result is not a number"}
        server.fault.write_text("")
        assert server.metric("device_errors_total", kind="out_of_memory") >= 1
        assert server.metric("device_errors_total", kind="not_a_number") == 3
        assert server.metric("edits_accepted_total") == 7
        assert server.metric("edits_total", outcome="done") == 4
        assert server.metric("edits_total", outcome="failed") == 3
        calls = server.edits(10)  # eight slots: two of them wait
        server.fault.write_text("exit")
        assert codes(calls) == ["INTERNAL"] * 10
        assert {call.details() for call in calls} == {"the engine stopped before the edit was done"}
        assert (probe(server), health(server)) == (503, NOT_SERVING)
        assert server.process.wait(60) == 1
        assert "the engine died" in (tmp_path / "log").read_text()


def test_a_forward_that_never_returns_ends_the_process(tmp_path: Path) -> None:
    with faulty(tmp_path, RETOUCH_SERVER_STALL_TIMEOUT="3") as server:
        ready(server)
        calls = server.edits(2)
        server.fault.write_text("hang")
        wait_for(lambda: server.metric("stalled_seconds") >= 1, 30, "it is seen to stall")
        assert probe(server) == 200
        assert codes(calls) == ["INTERNAL"] * 2
        assert server.process.wait(60) == 1
        log = (tmp_path / "log").read_text()
        assert "nothing has moved for 3 s, here:" in log
        assert "time.sleep" in log or "in faulty" in log
