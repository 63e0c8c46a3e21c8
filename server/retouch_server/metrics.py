"""Prometheus metrics of the server, on a port of their own. Labels hold nothing of callers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import get_args

import grpc
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from .engine.edit import Edit
from .engine.engine import Engine
from .engine.forward import NotANumber
from .errors import Bound
from .memory import is_exhaustion
from .models import Model
from .moderation import OUTCOMES, STAGES, Outcome, Stage

PREFIX = "retouch_server"
METHODS = ("Edit", "StreamEdit", "ListModels")
EDIT_OUTCOMES = ("done", "failed", "cancelled", "expired", "blocked", "rejected")
PHASES = ("queue", "encode", "denoise", "decode")
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
FORWARD_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CODES = tuple(code.name for code in grpc.StatusCode)


class Metrics:
    """All series of one server, in a registry of its own."""

    def __init__(self, model_ids: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.ready = self._gauge(
            "ready", "1 when all models are loaded and the server is not draining.", ()
        )
        self.tasks = self._gauge("tasks", "Tasks of the event loop.", ())
        self.calls = self._gauge("calls", "Calls for edits under way.", ())
        self.refused_calls = self._counter(
            "refused_calls",
            "Calls refused for a bound of the server: its queues, its calls under way, or the bytes of their requests.",
            ("bound",),
        )
        self.message_bytes = self._gauge("message_bytes", "Bytes of their requests.", ())
        self.requests = self._counter(
            "requests", "Calls answered, by method and gRPC status.", ("method", "code")
        )
        self.request_seconds = self._histogram(
            "request_seconds", "Time from a call to its answer.", SECONDS, ("method",)
        )
        self.certificate_expiry = self._gauge(
            "certificate_expiry_timestamp_seconds",
            "Unix time at which the certificates of a file in use expire.",
            ("file",),
        )
        self.file_reloads = self._counter(
            "file_reloads",
            "Changes of a file of certificates: taken up, or failed.",
            ("file", "result"),
        )
        self.file_outdated = self._gauge(
            "file_outdated", "1 while what a file holds is not what is in force.", ("file",)
        )
        self.signatures = self._counter(
            "signatures", "Results signed (C2PA), or that could not be.", ("result",)
        )
        self._of_edits()
        self._of_forwards()
        self._of_models()
        self._start_at_zero(model_ids)

    def _of_edits(self) -> None:
        self.queued = self._gauge("queued", "Edits waiting for a slot.")
        self.running = self._gauge("running", "Edits that hold a slot.")
        self.slots = self._gauge("slots", "Edits that can run at once.")
        self.edits = self._counter(
            "edits", "Images asked of a model, by how they ended.", ("model", "outcome")
        )
        self.accepted = self._counter(
            "edits_accepted",
            "Images asked of a model that were taken on: each ends in one outcome.",
        )
        self.phase_seconds = self._histogram(
            "edit_phase_seconds", "Time of finished edits, by phase.", SECONDS, ("model", "phase")
        )
        self.moderation = self._counter(
            "moderation",
            "Requests that safety checks looked at, by when and with what outcome.",
            ("model", "stage", "outcome"),
        )
        self.steps = self._counter("steps", "Denoising steps done.")
        self.reused = self._counter(
            "reused", "Denoiser calls that an edit's own last answer stood in for."
        )
        self.lookups = self._counter(
            "encoding_lookups",
            "Encodings that edits needed, by whether they were held.",
            ("model", "kind", "result"),
        )
        self.encoding_bytes = self._gauge("encoding_bytes", "Bytes of the encodings held.")

    def _of_forwards(self) -> None:
        self.batch_rows = self._histogram("batch_rows", "Rows per denoiser forward.", ROWS)
        self.forward_seconds = self._histogram(
            "forward_seconds", "Time per denoiser forward.", FORWARD_SECONDS
        )
        self.max_tokens = self._gauge(
            "max_tokens", "Tokens of the largest forward that is shared, 0 = no limit."
        )
        self.device_errors = self._counter(
            "device_errors",
            "Times that memory ran out in an edit, what it made was no number, or the accelerator failed.",
            ("model", "kind"),
        )
        self.stalled = self._gauge(
            "stalled_seconds", "Time for which an engine has done nothing while it has work."
        )

    def _of_models(self) -> None:
        self.load_seconds = self._gauge("model_load_seconds", "Time a model took to load.")
        self.parameters = self._gauge("model_parameters", "Parameters of a model.")
        self.memory = self._gauge(
            "model_memory_bytes", "Bytes of a model's parameters and buffers."
        )

    def _gauge(self, name: str, words: str, labels: Sequence[str] = ("model",)) -> Gauge:
        return Gauge(name, words, labels, PREFIX, registry=self.registry)

    def _counter(self, name: str, words: str, labels: Sequence[str] = ("model",)) -> Counter:
        return Counter(name, words, labels, PREFIX, registry=self.registry)

    def _histogram(
        self, name: str, words: str, buckets: Sequence[float], labels: Sequence[str] = ("model",)
    ) -> Histogram:
        return Histogram(name, words, labels, PREFIX, buckets=buckets, registry=self.registry)

    def _start_at_zero(self, model_ids: Sequence[str]) -> None:
        for method in METHODS:
            self.request_seconds.labels(method)
            for code in CODES:
                self.requests.labels(method, code)
        for bound in get_args(Bound):
            self.refused_calls.labels(bound)
        for file in ("tls", "c2pa"):
            self.file_outdated.labels(file)
        for result in ("ok", "failed"):
            self.signatures.labels(result)
            for file in ("tls", "c2pa"):
                self.file_reloads.labels(file, result)
        for model in model_ids:
            self.accepted.labels(model)
            for outcome in EDIT_OUTCOMES:
                self.edits.labels(model, outcome)
            for stage, verdict in product(STAGES, OUTCOMES):
                self.moderation.labels(model, stage, verdict)
            for phase in PHASES:
                self.phase_seconds.labels(model, phase)
            for kind, result in product(("prompt", "image"), ("hit", "miss")):
                self.lookups.labels(model, kind, result)
            for kind in ("out_of_memory", "not_a_number", "accelerator"):
                self.device_errors.labels(model, kind)
            for series in (self.queued, self.running, self.slots, self.load_seconds, self.parameters,
                           self.memory, self.steps, self.reused, self.max_tokens, self.batch_rows, self.forward_seconds,
                           self.encoding_bytes, self.stalled):  # fmt: skip
                series.labels(model)

    def watch(self, model: Model, engine: Engine) -> None:
        """Read the engine's gauges whenever the page is asked for."""
        name = model.entry.id
        self.queued.labels(name).set_function(lambda: engine.queued)
        self.running.labels(name).set_function(lambda: engine.running)
        self.encoding_bytes.labels(name).set_function(lambda: engine.encodings.bytes)
        self.slots.labels(name).set(engine.slots)
        self.max_tokens.labels(name).set_function(lambda: engine.max_tokens or 0)
        self.load_seconds.labels(name).set(model.load_seconds)
        self.parameters.labels(name).set(model.parameters)
        self.memory.labels(name).set(model.memory_bytes)

    def forward(self, model: str, rows: int, seconds: float) -> None:
        self.batch_rows.labels(model).observe(rows)
        self.forward_seconds.labels(model).observe(seconds)

    def failed(self, model: str, error: BaseException) -> None:
        """Count an error of the engine that the device is to blame for; others are in `edits`."""
        if is_exhaustion(error):
            self.device_errors.labels(model, "out_of_memory").inc()
        elif isinstance(error, NotANumber):
            self.device_errors.labels(model, "not_a_number").inc()
        elif isinstance(error, torch.AcceleratorError):
            self.device_errors.labels(model, "accelerator").inc()

    def refused(self, model: str) -> None:
        """Count a call that was refused before it was read: one image, at least."""
        self.edits.labels(model, "rejected").inc()

    def looked_up(self, model: str, kind: str, hit: bool) -> None:
        self.lookups.labels(model, kind, "hit" if hit else "miss").inc()

    def moderated(self, model: str, stage: Stage, outcome: Outcome) -> None:
        self.moderation.labels(model, stage, outcome).inc()

    def finished(self, model: str, edit: Edit, outcome: str) -> None:
        """Count one accepted edit that has had its terminal answer."""
        self.edits.labels(model, outcome).inc()
        self.steps.labels(model).inc(edit.steps)
        self.reused.labels(model).inc(edit.reused)
        if outcome == "done":
            for phase in PHASES:
                self.phase_seconds.labels(model, phase).observe(getattr(edit, f"{phase}_seconds"))
