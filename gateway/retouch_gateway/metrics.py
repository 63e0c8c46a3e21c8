"""What Prometheus reads of this tier. Labels are bounded: route templates, never paths."""

from __future__ import annotations

import math

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

# Seconds. They bracket what an edit takes, from a refusal to the longest edit allowed by default.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER = "other"

EDIT, MODELS, MODEL, IMAGE = "/v1/images/edits", "/v1/models", "/v1/models/{id}", "/images/{name}"
# Series that exist from the start, so that a rate over the first failure is not lost.
STARTING: dict[tuple[str, str], tuple[int, ...]] = {
    (EDIT, "POST"): (
        *(200, 400, 401, 404, 408, 409, 413, 415, 422, 429, 499),
        *(500, 502, 503, 504),
    ),
    (MODELS, "GET"): (200, 401, 500, 502, 503, 504),
    (MODEL, "GET"): (200, 401, 404, 500, 502, 503, 504),
    (IMAGE, "GET"): (200, 206, 304, 404, 410, 416, 500, 503),
    (IMAGE, "DELETE"): (204, 401, 403, 404, 410, 500, 503),
    ("/healthz", "GET"): (200,),
    ("/readyz", "GET"): (200, 503),
    ("/openapi.json", "GET"): (200,),
    ("/docs", "GET"): (200,),
    ("/", "GET"): (200, 304),
    ("/playground/{name}", "GET"): (200, 304, 404),
    (OTHER, "GET"): (404,),
    (OTHER, OTHER): (400, 408, 431, 503),  # refused before they were requests
}
# Why a body is refused, by the status it gets.
REJECTIONS = {
    400: "content",
    408: "time",
    413: "size",
    415: "content_type",
    429: "room",
    499: "disconnect",
}
# What is read again when it changes.
FILES = ("keys", "signing_key", "upstream_tls")
SERVED = ("ok", "expired", "unknown", "failed")


class Metrics:
    """This process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        self.requests = self._counter("requests", "HTTP requests.", "route", "method", "code")
        self.request_seconds = self._histogram(
            "request_seconds", "From a request's first byte to its answer's last.", "route"
        )
        self.in_flight = self._gauge("in_flight", "HTTP requests under way.")
        self.tasks = self._gauge("tasks", "Tasks of the event loop.")
        self.body_rejections = self._counter(
            "body_rejections", "Edit requests refused before the upstream was asked.", "reason"
        )
        self.body_bytes = self._gauge("body_bytes", "Bytes of the bodies of edits under way.")
        self.disconnects = self._counter("disconnects", "Callers that left before their answer.")
        self.upstream_requests = self._counter(
            "upstream_requests", "gRPC calls, by how they ended.", "rpc", "code"
        )
        self.upstream_seconds = self._histogram(
            "upstream_seconds", "From a gRPC call's start to its end, retries included.", "rpc"
        )
        self.upstream_ready = self._gauge(
            "upstream_ready", "1 while a healthy server is behind the target.", "target"
        )
        self.stored_images = self._counter("stored_images", "Images put into the store.")
        self.stored_bytes = self._counter("stored_bytes", "Bytes of the images put there.")
        self.store_failures = self._counter(
            "store_failures", "Images that could not be put there and went inline instead."
        )
        self.served_images = self._counter("served_images", "Image URLs asked for.", "result")
        self.swept_images = self._counter("swept_images", "Expired images deleted.")
        self.deleted_images = self._counter("deleted_images", "Images deleted by who made them.")
        self.file_reloads = self._counter(
            "file_reloads",
            "Changes of a file of keys or certificates: taken up, or failed.",
            *("file", "result"),
        )
        self.file_outdated = self._gauge(
            "file_outdated", "1 while what a file holds is not what is in force.", "file"
        )
        self.key_next_expiry = self._gauge(
            "key_next_expiry_timestamp_seconds",
            "Unix time at which the next API key expires, +Inf = none does.",
        )
        self.key_next_expiry.set(math.inf)
        self.expired_keys = self._counter(
            "expired_keys", "Requests refused since their API key has expired."
        )
        self.certificate_expiry = self._gauge(
            "certificate_expiry_timestamp_seconds",
            "Unix time at which the certificates of a file in use expire.",
            "file",
        )
        self.limited = self._counter("limited", "Edits refused by a caller's own limit.", "limit")
        self.limits_outages = self._counter(
            "limits_outages", "Times that Redis was lost and limits were counted here instead."
        )
        self.limits_degraded = self._gauge(
            "limits_degraded", "1 while Redis is away and limits are counted here instead."
        )
        self._start_at_zero()

    def rejected(self, status: int) -> None:
        """Count a body that was refused with `status`."""
        self.body_rejections.labels(REJECTIONS[status]).inc()

    def _start_at_zero(self) -> None:
        for (route, method), codes in STARTING.items():
            self.request_seconds.labels(route)
            for code in codes:
                self.requests.labels(route, method, code)
        for rpc in ("Edit", "ListModels", "StreamEdit"):
            self.upstream_seconds.labels(rpc)
            for status in grpc.StatusCode:
                self.upstream_requests.labels(rpc, status.name)
        for reason in REJECTIONS.values():
            self.body_rejections.labels(reason)
        for result in SERVED:
            self.served_images.labels(result)
        for file in FILES:
            self.file_outdated.labels(file)
            for result in ("ok", "failed"):
                self.file_reloads.labels(file, result)
        for limit in ("rate", "concurrency"):
            self.limited.labels(limit)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"retouch_gateway_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"retouch_gateway_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"retouch_gateway_{name}", text, labels, registry=self.registry, buckets=BUCKETS
        )
