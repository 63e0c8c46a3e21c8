"""Both tiers as processes, traced by OpenTelemetry's variables: one tree through both, and no harm by a collector."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

from tests.collector import Collector, Span, run_collector
from tests.e2e.conftest import BIN, environment, free_ports
from tests.e2e.pictures import b64, photo, png
from tests.run_up import wait_for

PARENT = "00f067aa0ba902b7"
EDIT, CALL = "POST /v1/images/edits", "retouch.v1.ImageEdit/Edit"
PHOTO = png(photo(128, 128))
Tree: TypeAlias = tuple[str, str, str, list[Any]]


@dataclass(frozen=True)
class Pair:
    """Both tiers running, their logs in `folder`."""

    processes: dict[str, subprocess.Popen[bytes]]
    rest: httpx.Client
    folder: Path

    def edit(self, trace: str = "", flags: str = "01", **fields: Any) -> httpx.Response:
        """An edit that succeeds; `trace`: its caller's."""
        body = {"images": [b64(PHOTO)], "prompt": "make my secret brighter", "seed": 1} | fields
        headers = {"traceparent": f"00-{trace}-{PARENT}-{flags}"} if trace else {}
        reply = self.rest.post("/v1/images/edits", json=body, headers=headers)
        assert reply.status_code == 200, reply.text
        return reply

    def log(self, tier: str) -> str:
        return (self.folder / f"{tier}.log").read_text()

    def stop(self, tier: str) -> list[tuple[float, str]]:
        """End one in order. Its warnings, and how many seconds after the signal each came."""
        process, signalled = self.processes[tier], time.time()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, self.log(tier)
        lines = [json.loads(line) for line in self.log(tier).splitlines()]
        return [
            (datetime.fromisoformat(line["time"]).timestamp() - signalled, line["message"])
            for line in lines
            if line["level"] in ("WARNING", "ERROR")
        ]


@contextlib.contextmanager
def run(folder: Path, endpoint: str) -> Iterator[Pair]:
    """Both tiers, told to export to `endpoint`, once they are ready."""
    ports = free_ports()
    variables = environment(
        **ports,
        RETOUCH_GATEWAY_UPSTREAM=f"127.0.0.1:{ports['RETOUCH_SERVER_PORT']}",
        RETOUCH_GATEWAY_STORE=str(folder / "store"),
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_BSP_SCHEDULE_DELAY="200",
    )
    processes = {}
    url = f"http://127.0.0.1:{ports['RETOUCH_GATEWAY_PORT']}"
    try:
        for tier in ("gateway", "server"):
            with (folder / f"{tier}.log").open("w") as log:
                processes[tier] = subprocess.Popen(
                    [BIN / f"retouch-{tier}"], stderr=log, env=variables
                )
        with httpx.Client(base_url=url, timeout=240, trust_env=False) as rest:
            pair = Pair(processes, rest, folder)
            wait_for(lambda: _ready(pair), 240, "ready")
            yield pair
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _ready(pair: Pair) -> bool:
    for name, process in pair.processes.items():
        assert process.poll() is None, pair.log(name)
    with contextlib.suppress(httpx.TransportError):
        return pair.rest.get("/readyz").status_code == 200
    return False


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with run_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Pair]:
    with run(tmp_path_factory.mktemp("traced"), collector.endpoint) as pair:
        yield pair


def tree(span: Span, spans: Sequence[Span]) -> Tree:
    """A span's service, name, kind, and those within it in the order of their beginning."""
    within = sorted(
        (each for each in spans if each.parent == span.id),
        key=lambda each: each.raw.start_time_unix_nano,
    )
    return span.service, span.name, span.kind, [tree(each, spans) for each in within]


def expected(images: int) -> Tree:
    gateway, server, plain = "retouch-gateway", "retouch-server", "INTERNAL"
    phases: list[Tree] = [
        (server, name, plain, []) for name in ("queue", "encode", "denoise", "decode")
    ]
    call = [
        (server, "prepare", plain, []),
        *[(server, "edit", plain, phases)] * images,
        (server, "encode reply", plain, []),
    ]
    return (
        gateway,
        EDIT,
        "SERVER",
        [
            (gateway, "read body", plain, []),
            (gateway, CALL, "CLIENT", [(server, CALL, "SERVER", call)]),
            (gateway, "store images", plain, []),
        ],
    )


def test_an_edit_is_one_tree_through_both_tiers_and_shares_its_batches(
    pair: Pair, collector: Collector
) -> None:
    """Two callers with traces of their own, at the same time; one wants two images."""
    traces = {f"{number:032x}": number for number in (1, 2)}
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda trace: pair.edit(trace, n=traces[trace], num_inference_steps=12), traces
            )
        )
    wait_for(lambda: _whole(collector, traces), 30, "all spans")
    for trace, images in traces.items():
        spans = collector.of(trace)
        (root,) = (span for span in spans if span.parent == PARENT)
        assert tree(root, spans) == expected(images)
        ids = {span.id: span for span in spans}
        for span in spans:
            if span.parent in ids:  # the clock is one, but read at different moments
                outer = ids[span.parent].raw
                assert span.raw.start_time_unix_nano >= outer.start_time_unix_nano - 20e6
                assert span.raw.end_time_unix_nano <= outer.end_time_unix_nano + 20e6

    edits = {span.id: span.trace for span in collector.spans if span.name == "edit"}
    batches = [span for span in collector.spans if span.name == "batch"]
    assert {span.service for span in batches} == {"retouch-server"}
    assert any({edits[each] for each in span.links} == traces.keys() for span in batches)
    for denoise in (span for span in collector.spans if span.name == "denoise"):
        assert denoise.links == {span.id for span in batches if denoise.parent in span.links}


def _whole(collector: Collector, traces: dict[str, int]) -> bool:
    """Whether the last span of each trace has come, from either tier."""
    ended = [span for span in collector.spans if span.trace in traces]
    return len([span for span in ended if span.name == EDIT]) == len(traces) and len(
        [span for span in ended if span.name == "edit"]
    ) == sum(traces.values())


def test_a_stream_and_a_trace_that_begins_here(pair: Pair, collector: Collector) -> None:
    """Its id is in both tiers' logs."""
    body = {"images": [b64(PHOTO)], "prompt": "make it brighter", "num_inference_steps": 2}
    reply = pair.rest.post("/v1/images/edits", json=body | {"stream": True})
    assert "image_edit.completed" in reply.text
    name = "retouch.v1.ImageEdit/StreamEdit"

    def calls() -> list[Span]:
        return [span for span in collector.spans if span.name == name]

    wait_for(lambda: len(calls()) == 2, 30, "both tiers' spans")
    wait_for(lambda: any(each.name == EDIT for each in collector.of(calls()[0].trace)), 30, "root")
    client, server = sorted(calls(), key=lambda span: span.kind)
    (root,) = (span for span in collector.of(client.trace) if not span.parent)
    assert (client.parent, server.parent) == (root.id, client.id)
    for tier, logger in (
        ("gateway", "retouch_gateway.access"),
        ("server", "retouch_server.access"),
    ):
        lines = [json.loads(line) for line in pair.log(tier).splitlines()]
        mine = [line for line in lines if line.get("trace_id") == root.trace]
        assert [line["logger"] for line in mine] == [logger]


def test_what_its_caller_does_not_sample_is_not_sent(pair: Pair, collector: Collector) -> None:
    silent, told = f"{3:032x}", f"{4:032x}"
    before = len([span for span in collector.spans if span.name == "batch"])
    pair.edit(silent, "00", num_inference_steps=3)
    pair.edit(told, num_inference_steps=5)
    wait_for(lambda: _whole(collector, {told: 1}), 30, "the other's spans")
    assert collector.of(silent) == []
    assert len([span for span in collector.spans if span.name == "batch"]) - before == 5


def test_nothing_of_a_caller_and_no_probe_is_in_them(pair: Pair, collector: Collector) -> None:
    """After all of the above; each prompt had the word."""
    trace = f"{5:032x}"
    url = pair.edit(trace, num_inference_steps=1).json()["data"][0]["url"]
    assert pair.rest.get(httpx.URL(url).path).status_code == 200
    pair.rest.get("/healthz")
    wait_for(lambda: _whole(collector, {trace: 1}), 30, "the edit's spans")
    wait_for(lambda: "GET /images/{name}" in {s.name for s in collector.spans}, 30, "the image's")
    raw = b"".join(each.SerializeToString() for each in collector.sent)
    for secret in (b"secret", PHOTO[:24], b64(PHOTO)[:24].encode(), url[-40:].encode()):
        assert secret not in raw
    names = {span.name for span in collector.spans}
    assert not [name for name in names if re.search("z$|Health|ListModels", name)]


def test_a_collector_that_never_answers_costs_no_start_no_edit_and_no_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        endpoint = f"http://127.0.0.1:{hole.getsockname()[1]}"
        with run(tmp_path, endpoint) as pair:
            for _ in range(3):
                pair.edit(num_inference_steps=2)
            for tier in ("gateway", "server"):
                *_, (seconds, last) = pair.stop(tier)
                assert last == "the collector took too long: the last spans are lost"
                assert seconds < 8  # an export alone may take ten
