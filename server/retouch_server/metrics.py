"""Prometheus metrics of the server, on a port of their own. Labels hold nothing of callers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from .engine.edit import Edit
from .engine.engine import Engine
from .loading import memory_bytes
from .models import Model

PREFIX = "retouch_server"
METHODS = ("Edit", "StreamEdit", "ListModels")
PHASES = ("queue", "encode", "denoise", "decode")
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
FORWARD_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CODES = tuple(code.name for code in grpc.StatusCode)


class Metrics:
    """All series of one server, in a registry of its own."""

    def __init__(self, model_ids: Sequence[str]) -> None:
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        GCCollector(registry=r)
        self.queued = Gauge("queued", "Edits waiting for a slot.", ["model"], PREFIX, registry=r)
        self.running = Gauge("running", "Edits that hold a slot.", ["model"], PREFIX, registry=r)
        self.slots = Gauge("slots", "Edits that can run at once.", ["model"], PREFIX, registry=r)
        self.ready = Gauge(
            "ready",
            "1 when all models are loaded and the server is not draining.",
            (),
            PREFIX,
            registry=r,
        )
        self.requests = Counter(
            "requests",
            "Calls answered, by method and gRPC status.",
            ["method", "code"],
            PREFIX,
            registry=r,
        )
        self.request_seconds = Histogram(
            "request_seconds",
            "Time from a call to its answer.",
            ["method"],
            PREFIX,
            buckets=SECONDS,
            registry=r,
        )
        self.edits = Counter(
            "edits",
            "Images asked of a model, by how they ended.",
            ["model", "outcome"],
            PREFIX,
            registry=r,
        )
        self.phase_seconds = Histogram(
            "edit_phase_seconds", "Time of finished edits, by phase.", ["model", "phase"], PREFIX, buckets=SECONDS,
            registry=r,
        )  # fmt: skip
        self.steps = Counter("steps", "Denoising steps done.", ["model"], PREFIX, registry=r)
        self.reused = Counter(
            "reused",
            "Denoiser calls that an edit's own last answer stood in for.",
            ["model"],
            PREFIX,
            registry=r,
        )
        self.batch_rows = Histogram(
            "batch_rows", "Rows per denoiser forward.", ["model"], PREFIX, buckets=ROWS, registry=r
        )
        self.forward_seconds = Histogram(
            "forward_seconds",
            "Time per denoiser forward.",
            ["model"],
            PREFIX,
            buckets=FORWARD_SECONDS,
            registry=r,
        )
        self.lookups = Counter(
            "encoding_lookups",
            "Encodings that edits needed, by whether they were held.",
            ["model", "kind", "result"],
            PREFIX,
            registry=r,
        )
        self.encoding_bytes = Gauge(
            "encoding_bytes", "Bytes of the encodings held.", ["model"], PREFIX, registry=r
        )
        self.max_tokens = Gauge(
            "max_tokens",
            "Tokens of the largest forward that is shared, 0 = no limit.",
            ["model"],
            PREFIX,
            registry=r,
        )
        self.load_seconds = Gauge(
            "model_load_seconds", "Time a model took to load.", ["model"], PREFIX, registry=r
        )
        self.parameters = Gauge(
            "model_parameters", "Parameters of a model.", ["model"], PREFIX, registry=r
        )
        self.memory = Gauge(
            "model_memory_bytes",
            "Bytes of a model's parameters and buffers.",
            ["model"],
            PREFIX,
            registry=r,
        )
        self._start_at_zero(model_ids)

    def _start_at_zero(self, model_ids: Sequence[str]) -> None:
        for method in METHODS:
            self.request_seconds.labels(method)
            for code in CODES:
                self.requests.labels(method, code)
        for model in model_ids:
            for outcome in ("done", "failed", "cancelled", "expired", "rejected"):
                self.edits.labels(model, outcome)
            for phase in PHASES:
                self.phase_seconds.labels(model, phase)
            for kind, result in product(("prompt", "image"), ("hit", "miss")):
                self.lookups.labels(model, kind, result)
            for series in (self.queued, self.running, self.slots, self.load_seconds, self.parameters,
                           self.memory, self.steps, self.reused, self.max_tokens, self.batch_rows, self.forward_seconds,
                           self.encoding_bytes):  # fmt: skip
                series.labels(model)

    def watch(self, model: Model, engine: Engine) -> None:
        """Read the engine's gauges whenever the page is asked for."""
        name = model.entry.id
        self.queued.labels(name).set_function(lambda: engine.queued)
        self.running.labels(name).set_function(lambda: engine.running)
        self.encoding_bytes.labels(name).set_function(lambda: engine.encodings.bytes)
        self.slots.labels(name).set(engine.slots)
        self.max_tokens.labels(name).set(engine.max_tokens or 0)
        self.load_seconds.labels(name).set(model.load_seconds)
        self.parameters.labels(name).set(model.parameters)
        self.memory.labels(name).set(memory_bytes(model))

    def forward(self, model: str, rows: int, seconds: float) -> None:
        self.batch_rows.labels(model).observe(rows)
        self.forward_seconds.labels(model).observe(seconds)

    def looked_up(self, model: str, kind: str, hit: bool) -> None:
        self.lookups.labels(model, kind, "hit" if hit else "miss").inc()

    def finished(self, model: str, edit: Edit, outcome: str) -> None:
        """Count one accepted edit that has had its terminal answer."""
        self.edits.labels(model, outcome).inc()
        self.steps.labels(model).inc(edit.steps)
        self.reused.labels(model).inc(edit.reused)
        if outcome == "done":
            for phase in PHASES:
                self.phase_seconds.labels(model, phase).observe(getattr(edit, f"{phase}_seconds"))
