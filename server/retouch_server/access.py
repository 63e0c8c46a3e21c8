"""What every call gets: its errors as gRPC says them, its metrics, and its line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from .errors import RequestError
from .jobs import Job
from .metrics import Metrics

log = logging.getLogger(__name__)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Callers are not always our gateway: what goes into the log is looked at here as well.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass
class Call:
    """A call under way. `job`: what it became, once it is accepted."""

    job: Job | None = None


class Access:
    """Sees every call from its start to its end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
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
        """Answer a call's errors with their status and details; count and log the call, however it ends."""
        call, started = Call(), time.monotonic()
        code = grpc.StatusCode.OK
        self._calls += 1
        self._idle.clear()
        try:
            yield call
        except RequestError as error:
            code = error.status
            await context.abort_with_status(error.to_status())
        except (asyncio.CancelledError, GeneratorExit):
            passed = late(context.time_remaining())
            code = grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            log.exception("%s failed", method, extra=_sent(context))
            code = grpc.StatusCode.INTERNAL
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
                | (_of(call.job) if call.job else {})
                | _sent(context),
            )


def _of(job: Job) -> dict[str, object]:
    """What the log says of a job: sizes, counts and times, nothing that the caller wrote or sent."""
    timings, first = job.timings, job.inputs[0]
    width, height = (first.region.base if first.region else first.image).size
    return {
        "model": job.served.model.entry.id,
        "inputs": 1 + len(first.references),
        "images": len(job.edits),
        "size": f"{width}x{height}",
        "steps": job.steps,
        "queue_ms": round(timings.queue_seconds * 1000),
        "encode_ms": round(timings.encode_seconds * 1000),
        "denoise_ms": round(timings.denoise_seconds * 1000),
        "decode_ms": round(timings.decode_seconds * 1000),
    }


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
