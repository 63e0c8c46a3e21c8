"""The gRPC surface: validate, submit, stream, and map every error to one status."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status
from torch import Tensor

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditServicer

from . import images, validation
from .engine import edit as engine_edit
from .engine.edit import DeadlinePassed, EditCancelled, EngineStopped, QueueFull
from .engine.engine import Engine
from .errors import Busy, ModelFailed, NotServing, OutOfTime, RequestError, UnknownModel
from .metrics import Metrics
from .models import Inputs, Model
from .validation import Plan

log = logging.getLogger(__name__)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True)
class Served:
    """A model and the engine that runs it."""

    model: Model
    engine: Engine


@dataclass(frozen=True)
class Job:
    """A request that was accepted: its edits are the engine's, and will each be answered."""

    served: Served
    plan: Plan
    inputs: Sequence[Inputs]
    edits: Sequence[engine_edit.Edit]
    ahead: int


class ImageEdit(ImageEditServicer):
    """`retouch.v1.ImageEdit`. `served` is by model id, the default first; empty until the models are loaded."""

    def __init__(self, metrics: Metrics, pool: Executor, limits: images.InputLimits) -> None:
        self.served: Mapping[str, Served] = {}
        self._metrics, self._pool, self._limits = metrics, pool, limits

    async def Edit(self, request: pb.EditRequest, context: Context) -> pb.EditResponse:
        async with self._answering("Edit", context):
            response = await self._finish(await self._accept(request, context), context)
        return response

    async def StreamEdit(
        self, request: pb.EditRequest, context: Context
    ) -> AsyncIterator[pb.EditEvent]:
        async with self._answering("StreamEdit", context):
            events: asyncio.Queue[pb.EditEvent] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def on_step(index: int, done: int, total: int) -> None:
                step = pb.Step(image_index=index, step=done, total=total)
                loop.call_soon_threadsafe(events.put_nowait, pb.EditEvent(step=step))

            job = await self._accept(request, context, on_step)
            yield pb.EditEvent(queued=pb.Queued(position=job.ahead))
            finish = asyncio.create_task(self._finish(job, context))
            try:
                async for event in _until(finish, events):
                    yield event
                yield pb.EditEvent(result=await finish)
            finally:
                finish.cancel()

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        async with self._answering("ListModels", context):
            if not self.served:
                raise NotServing("the models are still loading")
            models = [describe(s.model, self._limits) for s in self.served.values()]
        return pb.ListModelsResponse(models=models)

    async def _accept(
        self,
        request: pb.EditRequest,
        context: Context,
        on_step: Callable[[int, int, int], None] = lambda index, done, total: None,
    ) -> Job:
        """Check a request and hand its edits to the engine, all or none. Raises RequestError."""
        served = self._find(request.model)
        model, engine = served.model, served.engine
        plan = validation.plan(request, model)
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        try:
            # Before decoding: a full server spends nothing on what it will refuse.
            if engine.queued + len(plan.seeds) > engine.queue_size:
                raise QueueFull(engine.retry_after)
            inputs = await self._in_pool(validation.prepare, request, plan, model, self._limits)
            edits = [
                engine_edit.Edit(model.run(each), deadline, partial(on_step, i))
                for i, each in enumerate(inputs)
            ]
            ahead = engine.submit(edits)
        except QueueFull as full:
            self._metrics.edits.labels(model.entry.id, "rejected").inc(len(plan.seeds))
            raise Busy(full.retry_after) from None
        except EngineStopped as stopped:
            raise NotServing(str(stopped)) from None
        for edit in edits:
            edit.future.add_done_callback(self._counter(model.entry.id, edit))
        return Job(served, plan, inputs, edits, ahead)

    def _find(self, name: str) -> Served:
        if not self.served:
            raise NotServing("the models are still loading")
        if not name:
            return next(iter(self.served.values()))
        if name not in self.served:
            raise UnknownModel(f"model {name[:128]!r} is not served here")
        return self.served[name]

    async def _finish(self, job: Job, context: Context) -> pb.EditResponse:
        """Wait for a job's images and encode them. Whatever ends this early cancels what is left of the job."""
        try:
            tensors = await asyncio.gather(*(asyncio.wrap_future(e.future) for e in job.edits))
        except DeadlinePassed:
            raise OutOfTime("the deadline passed before the edit was done") from None
        except (EditCancelled, EngineStopped) as error:
            raise ModelFailed("the engine stopped before the edit was done") from error
        except Exception as error:
            log.exception("model %s failed on an edit", job.served.model.entry.id)
            raise ModelFailed("the model failed on this edit") from error
        finally:
            for edit in job.edits:
                edit.future.cancel()
        pictures = await asyncio.gather(
            *(
                self._in_pool(_picture, job, inputs, tensor)
                for inputs, tensor in zip(job.inputs, tensors, strict=True)
            )
        )
        context.set_trailing_metadata(
            (("endpoint-load-metrics-bin", _orca(job.served.engine.load)),)
        )
        return pb.EditResponse(
            images=pictures,
            usage=pb.Usage(
                input_images=1,
                output_images=len(pictures),
                steps=sum(edit.steps for edit in job.edits),
            ),
            timings=_timings(
                max(job.edits, key=lambda edit: (edit.ended_at or 0) - edit.queued_at)
            ),
            model=job.served.model.entry.id,
        )

    async def _in_pool(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _counter(self, model: str, edit: engine_edit.Edit) -> Callable[[Future[Tensor]], None]:
        def count(future: Future[Tensor]) -> None:
            if future.cancelled():
                # When a deadline passes, gRPC cancels the call at the same moment.
                outcome = "expired" if edit.late else "cancelled"
            elif isinstance(future.exception(), DeadlinePassed):
                outcome = "expired"
            else:
                outcome = "failed" if future.exception() else "done"
            self._metrics.finished(model, edit, outcome)

        return count

    @asynccontextmanager
    async def _answering(self, method: str, context: Context) -> AsyncIterator[None]:
        """Answer a call's errors with their status and details, and count the call, however it ends."""
        started = time.monotonic()
        code = grpc.StatusCode.OK
        try:
            yield
        except RequestError as error:
            code = error.status
            await context.abort_with_status(_status(error))
        except (asyncio.CancelledError, GeneratorExit):
            late = context.time_remaining()
            expired = late is not None and late <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            log.exception("%s failed", method)
            code = grpc.StatusCode.INTERNAL
            await context.abort(code, "internal error")
        finally:
            self._metrics.requests.labels(method, code.name).inc()
            self._metrics.request_seconds.labels(method).observe(time.monotonic() - started)


async def _until(
    task: asyncio.Task[pb.EditResponse], events: asyncio.Queue[pb.EditEvent]
) -> AsyncIterator[pb.EditEvent]:
    """Events as they come, until the task is done and all are out."""
    while not task.done():
        getting = asyncio.create_task(events.get())
        await asyncio.wait({task, getting}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            yield getting.result()
        else:
            getting.cancel()
    while not events.empty():
        yield events.get_nowait()


def _picture(job: Job, inputs: Inputs, tensor: Tensor) -> pb.EditedImage:
    """Tensor (1x3xHxW, 0..1) to encoded bytes, the input kept exactly outside the mask. For the pool."""
    pixels = tensor[0].permute(1, 2, 0).numpy()
    pixels = images.composite(pixels, inputs.image, inputs.mask, job.served.model.blend(inputs))
    return pb.EditedImage(
        data=images.encode(pixels, job.plan.format, job.plan.quality),
        format=validation.PB_FORMATS[job.plan.format],
        width=inputs.image.width,
        height=inputs.image.height,
        seed=inputs.seed,
        revised_prompt=inputs.prompt,
    )


def _timings(edit: engine_edit.Edit) -> pb.Timings:
    return pb.Timings(
        queue_seconds=edit.queue_seconds,
        encode_seconds=edit.encode_seconds,
        denoise_seconds=edit.denoise_seconds,
        decode_seconds=edit.decode_seconds,
    )


def _status(error: RequestError) -> Any:
    """A RequestError as the status that grpc sends, its details packed beside it."""
    status = status_pb2.Status(code=error.status.value[0], message=error.message)
    for detail in error.details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def _orca(load: float) -> bytes:
    """An xds.data.orca.v3.OrcaLoadReport with field 9, application_utilization (double), for weighted balancing."""
    return b"\x49" + struct.pack("<d", load)


def describe(model: Model, limits: images.InputLimits) -> pb.Model:
    """What ListModels says of a model."""
    defaults = model.defaults
    return pb.Model(
        id=model.entry.id,
        pipeline=model.family.edit,
        created=model.created,
        capabilities=pb.Capabilities(
            mask=model.takes_mask,
            strength=model.takes_strength,
            negative_prompt=model.family.negative_prompt,
            max_mode=model.entry.max is not None,
            guidance_scale=model.takes_guidance,
        ),
        defaults=pb.Defaults(
            strength=defaults.strength if model.takes_strength else None,
            guidance_scale=defaults.guidance_scale if model.takes_guidance else None,
            num_inference_steps=defaults.num_inference_steps or 28,
        ),
        limits=pb.Limits(
            max_images=1,
            size_multiple=model.family.multiple,
            min_pixels=model.entry.limits.min_pixels,
            max_pixels=model.entry.limits.max_pixels,
            max_image_bytes=limits.max_bytes,
            max_partial_images=0,
        ),
    )
