"""The gRPC surface: validate, submit, stream, and map every error to one status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditServicer

from . import images, replies, validation
from .access import Access, Call, Context, late
from .admission import Decoding
from .engine import edit as engine_edit
from .engine.edit import DeadlinePassed, EngineStopped, QueueFull
from .engine.forward import NotANumber
from .errors import (
    Blocked,
    Busy,
    ModelFailed,
    NotServing,
    OutOfTime,
    UnknownModel,
)
from .jobs import Job, Served
from .metrics import Metrics
from .models import Flagged, Inputs
from .previews import Previewer
from .provenance import Provenance
from .streaming import Events
from .tracing import OFF, Tracing
from .validation import Plan

log = logging.getLogger(__name__)
ACCEPTED = "retouch-accepted"


class ImageEdit(ImageEditServicer):
    """`retouch.v1.ImageEdit`.

    served:   by model id, the default first; empty until the models are loaded.
    draining: whether edits are refused, as before work has started.
    """

    def __init__(
        self,
        metrics: Metrics,
        pool: Executor,
        limits: images.InputLimits,
        provenance: Provenance,
        tracing: Tracing = OFF,
    ) -> None:
        self.served: Mapping[str, Served] = {}
        self.draining = False
        self.access = Access(metrics, tracing)
        self._metrics, self._pool, self._limits = metrics, pool, limits
        self._decoding = Decoding(pool, limits.max_pixels)
        self._provenance = provenance

    async def Edit(self, request: pb.EditRequest, context: Context) -> pb.EditResponse:
        async with self.access.answering("Edit", context) as call:
            call.bytes_in = request.ByteSize()
            with await self._accept(request, context, call) as job:
                call.job = job
                # From here a retry would do the work twice: the first metadata ends gRPC's own, and tells the caller.
                await context.send_initial_metadata(((ACCEPTED, "1"),))
                response = await self._finish(job, context)
                call.bytes_out = response.ByteSize()
        return response

    async def StreamEdit(
        self, request: pb.EditRequest, context: Context
    ) -> AsyncIterator[pb.EditEvent]:
        async with self.access.answering("StreamEdit", context) as call:
            call.bytes_in = request.ByteSize()
            events = Events()
            with await self._accept(request, context, call, events) as job:
                call.job = job
                finish = asyncio.create_task(self._finish(job, context))
                try:
                    place = partial(job.served.engine.place, job.edits[0])
                    async for event in events.until(finish, job.ahead, place):
                        yield event
                    response = await finish
                    call.bytes_out = response.ByteSize()
                finally:
                    finish.cancel()
            yield pb.EditEvent(result=response)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        async with self.access.answering("ListModels", context):
            if not self.served:
                raise NotServing("the models are still loading")
            models = [replies.describe(s.model, self._limits) for s in self.served.values()]
        return pb.ListModelsResponse(models=models)

    async def _accept(
        self,
        request: pb.EditRequest,
        context: Context,
        call: Call,
        events: Events | None = None,
    ) -> Job:
        """Check a request and hand its edits to the engine, all or none. Raises RequestError.

        `events` are told how the edits come along.
        """
        served = self._find(request.model)
        call.model = served.model.entry.id
        plan = validation.plan(request, served.model, streamed=events is not None)
        try:
            with served.place(len(plan.seeds)):
                with call.span.part("prepare"):
                    pixels = await self._in_pool(validation.pixels, request, self._limits)
                    given = (request, plan, served.model, self._limits)
                    inputs = await self._decoding.run(pixels, validation.prepare, *given)
                parent = None
                if self._provenance.signs:
                    parent = await self._in_pool(self._provenance.parent, request)
                job = await self._submit(plan, inputs, served, context, call, events)
                return replace(job, parent=parent)
        except QueueFull as full:  # of `place`, which leaves `submit` the room that it holds
            self._metrics.edits.labels(call.model, "rejected").inc(len(plan.seeds))
            raise Busy(full.retry_after) from None

    async def _submit(
        self,
        plan: Plan,
        inputs: Sequence[Inputs],
        served: Served,
        context: Context,
        call: Call,
        events: Events | None,
    ) -> Job:
        """Hand over edits that are accepted: from here on each of them has an outcome."""
        model = served.model
        self._metrics.accepted.labels(model.entry.id).inc(len(inputs))
        try:
            await served.moderator.before(inputs[0], call.span)
            remaining = context.time_remaining()
            deadline = None if remaining is None else time.monotonic() + remaining
            edits = [
                engine_edit.Edit(
                    model.run(each), deadline, total=each.steps, request_id=call.request_id
                )
                for each in inputs
            ]
            if events:
                self._follow(events, served, plan, inputs, edits)
            call.span.watch(edits, model.entry.id)
            ahead = served.engine.submit(edits)
        except BaseException as error:
            outcome = _outcome(error, context.time_remaining())
            self._metrics.edits.labels(model.entry.id, outcome).inc(len(inputs))
            if isinstance(error, EngineStopped):
                raise NotServing(str(error)) from None
            raise
        return Job(served, plan, inputs, edits, ahead, call.span, self._ended)

    def _follow(
        self,
        events: Events,
        served: Served,
        plan: Plan,
        inputs: Sequence[Inputs],
        edits: Sequence[engine_edit.Edit],
    ) -> None:
        """Tell `events` of each edit's steps, and of what it has come to as often as the request wants."""

        async def draw(image: int, latents: Tensor) -> pb.EditedImage:
            who = served.model, served.previewer, self._provenance
            drawn = await self._in_pool(replies.preview, *who, plan, inputs[image], latents)
            return cast(pb.EditedImage, drawn)

        for i, edit in enumerate(edits):
            edit.on_step = partial(events.on_step, i)
            edit.previews = plan.previews
            edit.on_preview = partial(events.on_preview, draw, i)

    def _find(self, name: str) -> Served:
        if self.draining:
            raise NotServing("the server is stopping")
        if not self.served:
            raise NotServing("the models are still loading")
        if not name:
            return next(iter(self.served.values()))
        if name not in self.served:
            raise UnknownModel(f"model {name[:128]!r} is not served here")
        return self.served[name]

    async def _finish(self, job: Job, context: Context) -> pb.EditResponse:
        """Wait for a job's images and encode them."""
        try:
            tensors = await asyncio.gather(*(asyncio.wrap_future(e.future) for e in job.edits))
        except DeadlinePassed:
            raise OutOfTime("the deadline passed before the edit was done") from None
        except Flagged:
            raise job.served.moderator.flagged() from None
        except EngineStopped:
            raise ModelFailed("the engine stopped before the edit was done") from None
        except NotANumber as error:
            raise ModelFailed(str(error)) from None
        except Exception:  # which the engine has logged
            raise ModelFailed("the model failed on this edit") from None
        lay = partial(self._in_pool, replies.finished, job.served.model)
        finished = await asyncio.gather(*map(lay, job.inputs, tensors))
        await job.served.moderator.after(job.inputs[0], finished, job.span)
        with job.span.part("encode reply"):
            how = job.served.model, self._provenance, job.plan, job.parent
            encode = partial(self._in_pool, replies.picture, *how)
            pictures = await asyncio.gather(*map(encode, job.inputs, finished))
        self._pool.submit(_learn, job.served.previewer, job.edits[0].latents, tensors[0])
        context.set_trailing_metadata(
            (("endpoint-load-metrics-bin", replies.load_report(job.served.engine)),)
        )
        return pb.EditResponse(
            images=pictures,
            usage=pb.Usage(
                input_images=1 + len(job.inputs[0].references),
                output_images=len(pictures),
                steps=job.steps,
            ),
            timings=job.timings,
            model=job.served.model.entry.id,
        )

    async def _in_pool(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _ended(self, job: Job, error: BaseException | None) -> None:
        for edit in job.edits:
            outcome = _outcome(error, edit.remaining)
            self._metrics.finished(job.served.model.entry.id, edit, outcome)


def _outcome(error: BaseException | None, remaining: float | None) -> str:
    """How all images of an accepted request ended that `error` ended."""
    match error:
        case None:
            return "done"
        case Blocked():
            return "blocked"
        case OutOfTime():
            return "expired"
        case asyncio.CancelledError() | GeneratorExit():
            # When a deadline passes, gRPC cancels the call at the same moment.
            return "expired" if late(remaining) else "cancelled"
    return "failed"


def _learn(previewer: Previewer, latents: Tensor | None, result: Tensor) -> None:
    """Let a finished edit teach how to draw previews. For the pool: nobody waits for it."""
    if latents is not None:
        try:
            previewer.learn(latents, replies.to_pixels(result))
        except ValueError as error:
            log.debug("nothing learned for previews: %s", error)
