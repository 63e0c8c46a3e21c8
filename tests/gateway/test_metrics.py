"""What Prometheus reads: clean, bounded, and there from the start."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from prometheus_client import generate_latest

from retouch_gateway.metrics import Metrics
from tests.gateway.conftest import StartGateway


def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool (Debian's prometheus package) is missing")
    page = generate_latest(Metrics().registry)
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_series_starts_at_zero() -> None:
    metrics = Metrics()
    # As a gateway does for each of its own.
    metrics.upstream_ready.labels("localhost:50051")
    metrics.certificate_expiry.labels("upstream_ca")
    page = generate_latest(metrics.registry).decode()
    for family in metrics.registry.collect():
        if family.name.startswith("retouch_gateway_"):
            assert family.samples, family.name
    values = re.findall(r"^retouch_gateway_\S+?(?<!_created)(?:\{.*\})? (\S+)$", page, re.M)
    assert len(values) > 50
    assert {value for value in values if float(value) < 1e9} == {"0.0"}
    for needed in (
        'requests_total{code="503",method="POST",route="/v1/images/edits"}',
        'upstream_requests_total{code="UNAVAILABLE",rpc="Edit"}',
        'body_rejections_total{reason="size"}',
        'served_images_total{result="expired"}',
        'request_seconds_bucket{le="300.0",route="/v1/images/edits"}',
        "in_flight",
        "disconnects_total",
    ):
        assert f"retouch_gateway_{needed} 0.0" in page
    assert "process_resident_memory_bytes" in page


async def test_an_edit_is_counted(start: StartGateway) -> None:
    gateway = await start()
    await gateway.edit(n=2)
    await gateway.edit(n=0)
    await gateway.edit(n="x")
    edits = {"route": "/v1/images/edits", "method": "POST"}
    assert gateway.value("requests_total", **edits, code="200") == 1
    assert gateway.value("requests_total", **edits, code="400") == 2
    assert gateway.value("request_seconds_count", route="/v1/images/edits") == 3
    assert gateway.value("upstream_requests_total", rpc="Edit", code="OK") == 1
    assert gateway.value("upstream_requests_total", rpc="Edit", code="INVALID_ARGUMENT") == 1
    assert gateway.value("upstream_seconds_count", rpc="Edit") == 2
    assert gateway.value("body_rejections_total", reason="content") == 1
    assert gateway.value("stored_images_total") == 2
    assert gateway.value("stored_bytes_total") > 100
    assert gateway.value("in_flight") == 0


async def test_labels_are_bounded(start: StartGateway) -> None:
    gateway = await start()
    before = {
        (s.name, *s.labels.items()) for f in gateway.metrics.registry.collect() for s in f.samples
    }
    for path in ("/a", "/b", "/v1/models/a", "/v1/models/b/c", "/images/a.png", "/images/b"):
        await gateway.client.get(path)
        await gateway.client.request("PROPFIND", path)
    families = gateway.metrics.registry.collect()
    every = [s for f in families for s in f.samples]
    added = [s.labels for s in every if s.labels and (s.name, *s.labels.items()) not in before]
    labels = {each["route"] for each in added}
    assert labels <= {"other", "/v1/models/{id}", "/images/{name}"}
    methods = {each.get("method", "GET") for each in added}
    assert methods <= {"GET", "other"}


async def test_the_log_has_a_line_a_request_without_secrets(
    start: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start()
    caplog.set_level("INFO")
    response = await gateway.edit(prompt="my secret wish")
    url = response.json()["data"][0]["url"]
    await gateway.client.get(url)
    image = {"route": "/images/{name}", "method": "GET", "code": "200"}
    await gateway.eventually("requests_total", 1, **image)
    lines = [vars(r) for r in caplog.records if r.name == "retouch_gateway.access"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/images/edits", 200),
        ("GET", "/images/{name}", 200),
    ]
    assert lines[0]["request_id"] == response.headers["x-request-id"]
    assert (lines[0]["model"], lines[0]["images"]) == ("acme/echo", 1)
    assert lines[0]["bytes_in"] > 100 < lines[0]["bytes_out"]
    ours = str([vars(r) for r in caplog.records if r.name.startswith("retouch")])
    assert "wish" not in ours
    assert url.rsplit("/", 1)[1] not in ours
