"""One configured address: its channel, whether a healthy server is behind it, what is served there, the calls to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retouch.v1.image_edit_pb2 import (
    EditEvent,
    EditRequest,
    EditResponse,
    ListModelsRequest,
    Model,
)
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_gateway.channels import SERVICE
from retouch_gateway.errors import ONCE, BadUpstream, GatewayError, from_rpc
from retouch_gateway.metrics import Metrics
from retouch_gateway.tracing import current

log = logging.getLogger(__name__)

T = TypeVar("T")
Metadata: TypeAlias = Sequence[tuple[str, str]]

ACCEPTED = "retouch-accepted"  # in the initial metadata once work may have started
LIST_SECONDS, LIST_EVERY, LIST_AGAIN = 2.0, 30.0, 1.0
READY_SECONDS = 0.6
END_SECONDS = 1.0  # for a call to end after its answer

_READY, _FAILED = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


@dataclass(slots=True)
class _Call:
    """A gRPC call under way.

    `metadata`: what goes along. `accepted`: its server has taken it, and may have begun the work.
    """

    metadata: tuple[tuple[str, str], ...]
    accepted: bool = False


class Target:
    """Made, used and closed on one event loop.

    `ready`: whether a server behind it is connected and says SERVING, as the channel's own health check knows.
    `models`: what is served there as last told, also while it is not ready; None until it was.
    `settled`: set once it is known to be ready or not, and was asked for its models.
    `calls`: under way. `turn`: when it was last chosen, as the caller counts.
    `in_force`: whether the log and the metrics say of its address what is true of this one.
    `changed` is called when `ready` or `models` may have.
    """

    def __init__(
        self,
        address: str,
        channel: grpc.aio.Channel,
        metrics: Metrics,
        changed: Callable[[], None],
    ) -> None:
        self.address, self.channel = address, channel
        self.ready = self.in_force = self._told = False
        self.models: Sequence[Model] | None = None
        self.calls = self.turn = 0
        self.settled = asyncio.Event()
        self._changed, self._metrics = changed, metrics
        self._stub = ImageEditStub(channel)
        # As a stream of one message, which on the wire is the same: of a unary call that is cancelled gRPC's Python
        # library leaks a KiB, of a stream a tenth of that (https://github.com/grpc/grpc/issues/43360).
        self._edit: grpc.aio.UnaryStreamMultiCallable[EditRequest, EditResponse]
        self._edit = channel.unary_stream(
            f"/{SERVICE}/Edit", EditRequest.SerializeToString, EditResponse.FromString
        )
        self._health = health_pb2_grpc.HealthStub(channel)
        self._asking: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[bool] | None = None
        self._asked_at = float("-inf")
        self._following: asyncio.Task[None] | None = None

    def serves(self, model: str) -> bool:
        """Whether it said so when it was last asked."""
        return any(model == each.id for each in self.models or ())

    @property
    def failed(self) -> bool:
        """Whether it cannot be reached now, or nobody serves there."""
        return self.channel.get_state() is _FAILED

    def start(self) -> None:
        """Connect, and keep `ready` and `models` true until closed."""
        self._following = asyncio.create_task(self._follow())

    def succeed(self, other: Target) -> None:
        """Be in force instead of `other`, of the same address."""
        self.in_force, other.in_force = True, False
        self._told = other._told
        self._became(self.channel.get_state())

    async def _follow(self) -> None:
        while True:
            state = self.channel.get_state(try_to_connect=True)
            self._became(state)
            changing = asyncio.ensure_future(self.channel.wait_for_state_change(state))
            try:
                while not changing.done():
                    # Where it has failed as well: the channel tells nobody why, a call does.
                    if state in (_READY, _FAILED):
                        await self.list_models()
                        self.settled.set()
                    unknown = state is _READY and self.models is None
                    await asyncio.wait({changing}, timeout=LIST_AGAIN if unknown else LIST_EVERY)
            finally:
                changing.cancel()

    def _became(self, state: grpc.ChannelConnectivity) -> None:
        self.ready = state is _READY
        # Told are READY and failed: in between, a line is renewed now and then, which takes milliseconds.
        if self.in_force and state in (_READY, _FAILED) and self.ready != self._told:
            self._told = self.ready
            log.info(
                "upstream %sready", "" if self.ready else "not ", extra={"target": self.address}
            )
            self._metrics.upstream_ready.labels(self.address).set(self.ready)
        self._changed()

    async def list_models(self, *, unless_within: float = 0) -> None:
        """Ask what is served, unless that was asked within so many seconds. What was known stays where it fails.

        Takes LIST_SECONDS at most: who comes while it is being asked waits for the same answer.
        """
        if self._asking is None and time.monotonic() - self._asked_at >= unless_within:
            self._asking = asyncio.create_task(self._ask())
        if self._asking:
            await asyncio.shield(self._asking)  # whose caller may leave while others wait

    async def _ask(self) -> None:
        try:
            with self._calling("ListModels", ()) as call:
                listing = self._stub.ListModels(
                    ListModelsRequest(), timeout=LIST_SECONDS, metadata=call.metadata
                )
                self.models = _sound(await listing).models
            self._changed()
        except GatewayError:
            pass  # it is logged
        finally:
            self._asking, self._asked_at = None, time.monotonic()

    async def close(self) -> None:
        """Calls under way are cancelled; who waits to hear whether it is healthy hears that before."""
        if tasks := {task for task in (self._following, self._asking) if task}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if self._checking:
            await asyncio.wait({self._checking})
        await self.channel.close()

    async def healthy(self) -> bool:
        """Whether a server answers now that it is loaded and not draining; takes READY_SECONDS at most.

        Who comes while it is being asked waits for the same answer: many who ask make no server late.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        return await asyncio.shield(self._checking)

    async def _check(self) -> bool:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            reply = await self._health.Check(request, timeout=READY_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def edit(self, request: EditRequest, seconds: float, metadata: Metadata) -> EditResponse:
        """Run one edit within `seconds`; cancelling this cancels it on the server.

        Raises what errors.from_rpc makes of a failed call.
        """
        with self._calling("Edit", metadata) as call:
            answers = self._edit(request, timeout=seconds, metadata=call.metadata)
            try:
                async for answer in answers:
                    await _end(answers)
                    return _sound(answer)
            finally:
                answers.cancel()
        raise BadUpstream(headers=ONCE)

    async def stream(
        self, request: EditRequest, seconds: float, metadata: Metadata
    ) -> AsyncGenerator[EditEvent, None]:
        """The same with its events, up to the result; closing this cancels it on the server.

        Raises BadUpstream too, for a stream that ends without a result.
        """
        with self._calling("StreamEdit", metadata) as call:
            events = self._stub.StreamEdit(request, timeout=seconds, metadata=call.metadata)
            try:
                async for event in events:
                    call.accepted = True
                    yield _sound(event)
                    if event.HasField("result"):
                        await _end(events)
                        return
            finally:
                events.cancel()
        raise BadUpstream(headers=ONCE)

    @contextlib.contextmanager
    def _calling(self, rpc: str, metadata: Metadata) -> Iterator[_Call]:
        """Count a call, however it ends, and say what its failure means."""
        span = current.get().call(f"{SERVICE}/{rpc}", self.address)
        call, started = _Call(span.onto(metadata)), time.monotonic()
        code = grpc.StatusCode.CANCELLED  # what it is when the caller has gone
        self.calls += 1
        try:
            yield call
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
            accepted = call.accepted or ACCEPTED in (error.initial_metadata() or ())
            raised = from_rpc(error, accepted=accepted)
            if raised.status >= 500:
                self._warn(rpc, error, metadata)
            raise raised from None
        except BadUpstream:  # the call went well; what it said does not make sense
            code = grpc.StatusCode.OK
            raise
        finally:
            self.calls -= 1
            span.called(code.name)
            self._metrics.upstream_requests.labels(rpc, code.name).inc()
            self._metrics.upstream_seconds.labels(rpc).observe(time.monotonic() - started)

    def _warn(self, rpc: str, error: grpc.aio.AioRpcError, metadata: Metadata) -> None:
        known = {"rpc": rpc, "code": error.code().name, "details": error.details()}
        if request_id := dict(metadata).get("x-request-id"):
            known["request_id"] = request_id
        log.warning("upstream call failed", extra={"target": self.address, **known})


async def _end(call: grpc.aio.Call) -> None:
    """Let a call end whose answer is whole: what breaks from here on breaks nothing."""
    ending = asyncio.ensure_future(call.code())
    await asyncio.wait({ending}, timeout=END_SECONDS)


def _sound(message: T | None) -> T:
    """The message of an answer; gRPC has None for one that cannot be parsed. Raises BadUpstream."""
    if message is None:
        raise BadUpstream(headers=ONCE)  # what was asked for is done
    return message
