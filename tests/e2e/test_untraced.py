"""A tier alone: without OpenTelemetry's variables it imports nothing of it; with them, its last spans are sent."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import httpx

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from tests.collector import run_collector
from tests.e2e.conftest import BIN, environment, free_ports
from tests.e2e.pictures import b64, photo, png
from tests.run_up import wait_for

PHOTO = png(photo(128, 128))


@contextlib.contextmanager
def _alone(
    command: Sequence[str | Path], folder: Path, variables: dict[str, str]
) -> Iterator[Path]:
    """One tier; ends it by SIGTERM, in order. Gives the path of its log."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, env=variables)
    try:
        yield folder / "log"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _client(ports: dict[str, str]) -> Iterator[httpx.Client]:
    """Of a gateway, once that answers."""
    url = f"http://127.0.0.1:{ports['RETOUCH_GATEWAY_PORT']}"
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as rest:
        wait_for(lambda: _answers(rest), 60, "answering")
        yield rest


def _answers(rest: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return rest.get("/healthz").status_code == 200
    return False


def untraced(tier: str) -> list[str]:
    """A tier that writes each import as it happens."""
    program = f"import sys; from retouch_{tier}.__main__ import main; sys.argv = [{tier!r}]; main()"
    return [sys.executable, "-X", "importtime", "-c", program]


def test_a_gateway_that_is_not_traced_imports_nothing_for_it(tmp_path: Path) -> None:
    ports = free_ports()
    variables = environment(**ports, RETOUCH_GATEWAY_STORE=str(tmp_path / "store"))
    with _alone(untraced("gateway"), tmp_path, variables) as log, _client(ports) as rest:
        body = {"images": [b64(PHOTO)], "prompt": "x"}
        assert rest.post("/v1/images/edits", json=body).status_code == 503
    imports = log.read_text()
    assert "retouch_gateway.tracing" in imports
    assert "opentelemetry" not in imports


def test_a_server_that_is_not_traced_imports_nothing_for_it(tmp_path: Path) -> None:
    ports = free_ports()
    with _alone(untraced("server"), tmp_path, environment(**ports)) as log:
        wait_for(lambda: "serving pocket" in log.read_text(), 240, "serving")
        with grpc.insecure_channel(f"127.0.0.1:{ports['RETOUCH_SERVER_PORT']}") as channel:
            request = pb.EditRequest(images=[PHOTO], prompt="x", num_inference_steps=1)
            ImageEditStub(channel).Edit(request, timeout=120)
    imports = log.read_text()
    assert "retouch_server.tracing" in imports
    assert "opentelemetry" not in imports


def test_the_last_spans_are_sent_at_the_end(tmp_path: Path) -> None:
    """By a gateway whose exporter would sleep for longer."""
    ports = free_ports()
    with run_collector() as collector:
        variables = environment(
            **ports,
            RETOUCH_GATEWAY_STORE=str(tmp_path / "store"),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="60000",
            OTEL_SERVICE_NAME="the-last",
        )
        with _alone([BIN / "retouch-gateway"], tmp_path, variables), _client(ports) as rest:
            assert rest.get("/openapi.json").status_code == 200
            assert collector.spans == []
        assert [(span.service, span.name) for span in collector.spans] == [
            ("the-last", "GET /openapi.json")
        ]
