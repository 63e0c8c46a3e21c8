"""What every call gets: its errors as gRPC says them, its metrics, and its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from .errors import Busy, RequestError
from .jobs import Job
from .metrics import Metrics
from .tracing import OFF, Span, Tracing

log = logging.getLogger(__name__)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

arrived: ContextVar[float | None] = ContextVar("arrived", default=None)
"""When the call that a task is for came, by `time.monotonic()`: before its message, where that was waited for."""

# Callers are not always our gateway: what goes into the log is looked at here as well.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass
class Call:
    """A call under way. `job`: what it became, once it is accepted. `bytes_in`, `bytes_out`: of its messages.

    `request_id`: "" where none came with it. `model`: the id of the one it is for, once that is known to be served.
    """

    span: Span
    request_id: str = ""
    model: str = ""
    job: Job | None = None
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def what(self) -> dict[str, str | int]:
        """Sizes and counts, nothing that the caller wrote or sent."""
        if not self.job:
            return {"model": self.model} if self.model else {}
        first = self.job.inputs[0]
        width, height = (first.region.base if first.region else first.image).size
        return {
            "model": self.model,
            "inputs": 1 + len(first.references),
            "images": len(self.job.edits),
            "size": f"{width}x{height}",
            "steps": self.job.steps,
        }

    @property
    def times(self) -> dict[str, int]:
        """Milliseconds of each phase."""
        if not self.job:
            return {}
        timings = self.job.timings
        return {
            "queue_ms": round(timings.queue_seconds * 1000),
            "encode_ms": round(timings.encode_seconds * 1000),
            "denoise_ms": round(timings.denoise_seconds * 1000),
            "decode_ms": round(timings.decode_seconds * 1000),
        }


class Access:
    """Sees every call from its start to its end."""

    def __init__(self, metrics: Metrics, tracing: Tracing = OFF) -> None:
        self._metrics, self._tracing = metrics, tracing
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self, seconds: float) -> bool:
        """Wait until no call is under way; False if some still are after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def answering(self, method: str, context: Context) -> AsyncIterator[Call]:
        """Answer a call's errors with their status and details; count, log and trace the call, however it ends."""
        sent, started = _sent(context), arrived.get() or time.monotonic()
        span = self._tracing.call(method, dict(context.invocation_metadata() or ()))
        call = Call(span, sent.get("request_id", ""))
        if trace_id := call.span.trace_id:
            sent["trace_id"] = trace_id
        code, told = grpc.StatusCode.OK, dict[str, str]()
        self._calls += 1
        self._idle.clear()
        try:
            yield call
        except RequestError as error:
            code, told = error.status, {"error": type(error).__name__, **error.logged}
            if isinstance(error, Busy):
                self._metrics.refused_calls.labels(error.bound).inc()
            await context.abort_with_status(error.to_status())
        except (asyncio.CancelledError, GeneratorExit):
            passed = late(context.time_remaining())
            code = grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            log.exception("%s failed", method, extra=sent)
            code, told = grpc.StatusCode.INTERNAL, {"error": type(error).__name__}
            await context.abort(code, "internal error")
        finally:
            seconds = time.monotonic() - started
            self._metrics.requests.labels(method, code.name).inc()
            self._metrics.request_seconds.labels(method).observe(seconds)
            self._calls -= 1
            if not self._calls:
                self._idle.set()
            log.log(
                # A gateway asks what is served all day.
                logging.DEBUG if method == "ListModels" and not code.value[0] else logging.INFO,
                "call",
                extra={"rpc": method, "code": code.name, "ms": round(seconds * 1000)}
                | {"bytes_in": call.bytes_in, "bytes_out": call.bytes_out}
                | call.what
                | call.times
                | told
                | sent,
            )
            self._trace(call, code, sent)

    def _trace(self, call: Call, code: grpc.StatusCode, sent: Mapping[str, str]) -> None:
        known = call.what | {name: sent[name] for name in ("request_id",) if name in sent}
        attributes = {f"retouch.{name}": value for name, value in known.items()}
        call.span.answered(code, call.job.edits if call.job else (), attributes)


def _sent(context: Context) -> dict[str, str]:
    """The ids that came with the call."""
    given = dict(context.invocation_metadata() or ())
    request_id, traceparent = str(given.get("x-request-id", "")), str(given.get("traceparent", ""))
    ids = {}
    if _SANE_ID.fullmatch(request_id):
        ids["request_id"] = request_id
    if trace := _TRACEPARENT.fullmatch(traceparent):
        ids["trace_id"] = trace[1]
    return ids


def late(remaining: float | None) -> bool:
    """Whether a call that was cancelled had run out of time: its caller's clock may be a little ahead of ours."""
    return remaining is not None and remaining < 0.1
