"""The way to the servers: one channel for the process's life, balanced, checked, retried."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retouch.v1.image_edit_pb2 import (
    EditRequest,
    EditResponse,
    ListModelsRequest,
    ListModelsResponse,
)
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_gateway.errors import from_rpc
from retouch_gateway.metrics import Metrics

log = logging.getLogger(__name__)

SERVICE = "retouch.v1.ImageEdit"
ACCEPTED = "retouch-accepted"  # in the initial metadata once work may have started
# Ten 50-megapixel answers never come at once; ten of a few megapixels do.
RECEIVE_BYTES = 512 * 2**20
LIST_SECONDS = 5.0
READY_SECONDS = 0.6

# Retried is UNAVAILABLE alone, which the contract gives only before work has started. A server that
# answers NOT_SERVING is left out until it serves again.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE},
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

T = TypeVar("T")


def _options(send_bytes: int) -> list[tuple[str, int | str]]:
    return [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.max_send_message_length", send_bytes),
        ("grpc.max_receive_message_length", RECEIVE_BYTES),
        # A call is kept for retries only while it fits this buffer: 256 KiB unless told.
        ("grpc.per_rpc_retry_buffer_size", send_bytes),
        ("grpc.keepalive_time_ms", 45_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A server that comes back is found within two seconds, one that hangs is given up in five.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # The upstream is a neighbour, whatever http_proxy says.
        ("grpc.enable_http_proxy", 0),
    ]


class Upstream:
    """Calls to the servers behind `target`. Made, used and closed on one event loop.

    `target`: what gRPC resolves, `host:port` or `dns:///name:port`.
    `send_bytes`: the largest request.
    """

    def __init__(self, target: str, send_bytes: int, metrics: Metrics) -> None:
        self.metrics = metrics
        self.channel = grpc.aio.insecure_channel(target, _options(send_bytes))
        self.stub = ImageEditStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()

    async def edit(self, request: EditRequest, seconds: float, request_id: str) -> EditResponse:
        """Run one edit within `seconds`; cancelling this cancels it on the server.

        Raises what errors.from_rpc makes of a failed call.
        """
        metadata = (("x-request-id", request_id),)
        call = self.stub.Edit(request, timeout=seconds, metadata=metadata)
        return await self._counted("Edit", call, request_id)

    async def models(self, request_id: str) -> ListModelsResponse:
        """What is served now. Asked each time: cheap, and never stale."""
        metadata = (("x-request-id", request_id),)
        call = self.stub.ListModels(ListModelsRequest(), timeout=LIST_SECONDS, metadata=metadata)
        return await self._counted("ListModels", call, request_id)

    async def ready(self) -> bool:
        """Whether a server is loaded and not draining; answers within a second."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            reply = await self.health.Check(request, timeout=READY_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def _counted(self, rpc: str, call: Awaitable[T], request_id: str) -> T:
        started = time.monotonic()
        code = grpc.StatusCode.CANCELLED  # what it is when the caller has gone
        try:
            reply = await call
            code = grpc.StatusCode.OK
            return reply
        except grpc.aio.AioRpcError as error:
            code = error.code()
            raised = from_rpc(error, accepted=ACCEPTED in (error.initial_metadata() or ()))
            if raised.status >= 500:
                log.warning("upstream %s: %s %s id=%s", rpc, code.name, error.details(), request_id)
            raise raised from None
        finally:
            self.metrics.upstream_requests.labels(rpc, code.name).inc()
            self.metrics.upstream_seconds.labels(rpc).observe(time.monotonic() - started)
