"""The way to the servers: which of them gets an edit, and who is next where one does not take it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from typing import TypeVar

import grpc

from retouch.v1.image_edit_pb2 import EditEvent, EditRequest, EditResponse, Model
from retouch_gateway import channels
from retouch_gateway.errors import Busy, GatewayError, NotFound, Unavailable
from retouch_gateway.metrics import Metrics
from retouch_gateway.target import Metadata, Target
from retouch_gateway.tracing import current

WAIT_SECONDS = 0.5  # for a target to become ready
START_SECONDS = 1.0
RETIRE_SECONDS = 0.5  # from look to look
ASK_AGAIN = 1.0  # seconds: unknown models make no more traffic than this

T = TypeVar("T")


class Upstream:
    """Calls to the servers behind `targets`. Made, used and closed on one event loop.

    `targets`: what gRPC resolves, `host:port` or `dns:///name:port`, in the order in which models are listed.
    `credentials`: as channels.credentials makes them; None for plain text.
    `send_bytes`: the largest request.

    An edit goes to the target with the fewest calls under way, of those that are ready and serve its model; behind one
    target gRPC balances by itself. A target that does not take it, because it goes away, has a full queue or serves
    other models than it did, is passed over for one other; never after work was accepted.
    """

    def __init__(
        self,
        targets: Sequence[str],
        credentials: grpc.ChannelCredentials | None,
        send_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._changed = asyncio.Event()
        self._turns = itertools.count(1)
        self._addresses = list(dict.fromkeys(targets))
        self._send_bytes, self._metrics = send_bytes, metrics
        self._retiring: set[asyncio.Task[None]] = set()
        self.targets = self._to_all(credentials)
        for each in self.targets:
            each.in_force = True
            metrics.upstream_ready.labels(each.address).set(0)

    def _to_all(self, credentials: grpc.ChannelCredentials | None) -> list[Target]:
        return [
            Target(
                each,
                channels.channel(each, credentials, self._send_bytes),
                self._metrics,
                self._notify,
            )
            for each in self._addresses
        ]

    async def start(self) -> None:
        """Connect; returns once each target is known to be ready or not, or after a second."""
        for each in self.targets:
            each.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await _settled(self.targets)

    async def renew(self, credentials: grpc.ChannelCredentials | None) -> None:
        """Go over to other credentials, for calls from then on; those under way end as they began.

        Returns once every target that is ready by the old ones is by the new ones too: what the servers do not take
        changes nothing. Cancelling it leaves all as it was.
        """
        fresh = self._to_all(credentials)
        try:
            for each in fresh:
                each.start()
            await _settled(fresh)
            while not all(
                new.ready or old.failed for old, new in zip(self.targets, fresh, strict=True)
            ):
                await self._changed.wait()
        except BaseException:
            await asyncio.gather(*(each.close() for each in fresh))
            raise
        old, self.targets = self.targets, fresh
        for each, before in zip(fresh, old, strict=True):
            each.succeed(before)
        retiring = asyncio.create_task(_retire(old))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(each.close() for each in self.targets))

    async def edit(self, request: EditRequest, seconds: float, metadata: Metadata) -> EditResponse:
        """Run one edit within `seconds`; cancelling this cancels it on its server.

        Fills in `request.model` where it is empty and there are several targets. Raises GatewayErrors: Unavailable and
        NotFound of our own, and what errors.from_rpc makes of a failed call.
        """
        end = time.monotonic() + seconds
        return await self._sent(
            request, lambda target: target.edit(request, end - time.monotonic(), metadata)
        )

    async def stream(
        self, request: EditRequest, seconds: float, metadata: Metadata
    ) -> AsyncGenerator[EditEvent, None]:
        """The same with its events: `queued` first, which says that it is accepted, `result` last.

        Closing it cancels the edit on its server. Raises the same, and BadUpstream if the stream ends without a result.
        """
        end = time.monotonic() + seconds

        async def begun(target: Target) -> tuple[EditEvent, AsyncGenerator[EditEvent, None]]:
            events = target.stream(request, end - time.monotonic(), metadata)
            return await anext(events), events

        first, rest = await self._sent(request, begun)
        async with contextlib.aclosing(rest):
            yield first
            async for event in rest:
                yield event

    async def models(self) -> list[Model]:
        """What is served now, by id, in the order of the targets; of what several serve, the first one's word.

        At most half a minute old. Raises Unavailable where no target is ready.
        """
        known = await self._when(lambda: self._known() or None)
        found: dict[str, Model] = {}
        for target in known:
            for model in target.models or ():
                found.setdefault(model.id, model)
        return list(found.values())

    async def model(self, name: str) -> Model:
        """The one of that id. Raises NotFound, and Unavailable where a target that is not ready may serve it."""
        found = [model for model in await self.models() if model.id == name]
        if not found:
            raise self._not_served(name)
        return found[0]

    async def ready(self) -> bool:
        """Whether some server is loaded and not draining; answers within a second."""
        return any(await asyncio.gather(*(each.healthy() for each in self.targets)))

    async def _sent(self, request: EditRequest, start: Callable[[Target], Awaitable[T]]) -> T:
        """What `start` makes of the request at the best target or, if that does not take it, at the next best."""
        passed: dict[Target, GatewayError] = {}
        while True:
            target = await self._choose(request, passed)
            try:
                return await start(target)
            except (Busy, NotFound, Unavailable) as error:
                passed[target] = error
                if isinstance(error, NotFound) and not self._alone:
                    await self._ask_again()
                if len(passed) > 1 or not self._candidates(request.model, passed):
                    raise self._reason(request.model, list(passed.values())) from None
                current.get().event("another target", {"error.type": type(error).__name__})

    def _reason(self, model: str, errors: Sequence[GatewayError]) -> GatewayError:
        """Of what each target said, what the caller hears: 404 last, for then nobody tries again."""
        if self._alone:
            return errors[0]
        told = [error for error in errors if not isinstance(error, NotFound)]
        return told[0] if told else self._not_served(model)

    def _not_served(self, model: str) -> GatewayError:
        """What there is to say of a model that no ready target serves."""
        if self._may_come(model):
            return Unavailable()
        return NotFound(f"There is no model {model[:200]!r}.", param="model")

    async def _ask_again(self) -> None:
        await asyncio.gather(*(t.list_models(unless_within=ASK_AGAIN) for t in self._known()))

    async def _choose(self, request: EditRequest, passed: Collection[Target]) -> Target:
        """Raises NotFound and, after WAIT_SECONDS, Unavailable."""
        if not request.model and not self._alone:
            request.model = (await self.models())[0].id
        model = request.model
        candidates = await self._when(
            lambda: (
                self._candidates(model, passed)
                or (None if self._alone or self._may_come(model) else [])
            )
        )
        if not candidates:
            await self._ask_again()
            candidates = self._candidates(model, passed)
        if not candidates:
            raise self._not_served(model)
        chosen = min(candidates, key=lambda target: (target.calls, target.turn))
        chosen.turn = next(self._turns)
        return chosen

    @property
    def _alone(self) -> bool:
        """Whether there is one target: then it is for the server to say what it serves."""
        return len(self.targets) == 1

    def _candidates(self, model: str, passed: Collection[Target]) -> list[Target]:
        return [
            target
            for target in self.targets
            if target.ready and target not in passed and (self._alone or target.serves(model))
        ]

    def _may_come(self, model: str) -> bool:
        """Whether a target that is not to be had now serves `model`, as far as is known."""
        return any(
            target.models is None or (target.serves(model) and not target.ready)
            for target in self.targets
        )

    def _known(self) -> list[Target]:
        return [target for target in self.targets if target.ready and target.models]

    async def _when(self, look: Callable[[], T | None]) -> T:
        """What `look` finds, as soon as it is not None. Raises Unavailable after WAIT_SECONDS."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while (found := look()) is None:
                    await self._changed.wait()
        except TimeoutError:
            raise Unavailable() from None
        return found

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _settled(targets: Sequence[Target]) -> None:
    await asyncio.gather(*(each.settled.wait() for each in targets))


async def _retire(targets: Sequence[Target]) -> None:
    """Close them once no call is under way there; all have their deadlines."""
    try:
        while any(each.calls for each in targets):  # noqa: ASYNC110  # it is in no hurry
            await asyncio.sleep(RETIRE_SECONDS)
    finally:
        await asyncio.gather(*(each.close() for each in targets))
