"""The parts of a server put together: gRPC with health and reflection, metrics, engines; start, load, stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from prometheus_client import disable_created_metrics

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import add_ImageEditServicer_to_server

from . import catalog, loading, page, safety, warmup
from .admission import Door
from .catalog import ModelEntry
from .certificates import Certificates
from .engine.engine import Engine
from .images import InputLimits
from .jobs import Served
from .metrics import Metrics
from .models import Model
from .moderation import Moderator
from .parsing import Parsing
from .previews import Previewer
from .provenance import Provenance
from .safety import Checks
from .service import ImageEdit
from .settings import Settings
from .stall import Watchdog
from .tracing import OFF, Tracing
from .warmup import Sharing

log = logging.getLogger(__name__)
SERVICE = pb.DESCRIPTOR.services_by_name["ImageEdit"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class BindError(Exception):
    """A port cannot be bound; the message is one line for the operator."""


class Server:
    """One server process, on `port` once started.

    `on_death` is called, from an engine's thread, when that engine has died; `dead` is then true.
    `ready`: all models are loaded and the server is not draining.
    """

    def __init__(
        self, settings: Settings, on_death: Callable[[], object], tracing: Tracing = OFF
    ) -> None:
        self.dead = False
        self.ready = False
        self._stopping = False
        self._loading = False
        self.port = 0
        self._settings, self._on_death = settings, on_death
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._entries = catalog.read(settings.models)
        self._metrics = Metrics([entry.id for entry in self._entries])
        self._metrics.ready.set_function(lambda: self.ready)
        self._certificates = Certificates(settings, self._metrics)
        self._provenance = Provenance(settings, self._metrics)
        self._renewing: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="pixels")
        limits = InputLimits(settings.max_image_bytes, settings.max_image_pixels)
        self._service = ImageEdit(self._metrics, self._pool, limits, self._provenance, tracing)
        self._page: WSGIServer | None = None
        self._health = health.HealthServicer()
        door = self._door()
        self._grpc = grpc.aio.server(interceptors=[Parsing(), door], options=_options(settings))
        add_ImageEditServicer_to_server(self._service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)

    def _door(self) -> Door:
        largest = self._settings.max_message_bytes
        most = max(self._settings.max_in_flight_bytes, largest)
        door = Door(self._service, self._metrics.refused, most, most // largest)
        self._metrics.calls.set_function(lambda: door.calls)
        self._metrics.message_bytes.set_function(lambda: door.bytes)
        return door

    async def start(self) -> None:
        """Bind, and answer health checks: alive, not serving yet. Raises BindError."""
        await self._health.set("", SERVING)
        await self._health.set(SERVICE, NOT_SERVING)
        host, port = self._settings.host.strip("[]"), self._settings.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials := self._certificates.credentials:
                self.port = self._grpc.add_secure_port(address, credentials)
            else:
                self.port = self._grpc.add_insecure_port(address)
        except RuntimeError:
            raise BindError(
                f"RETOUCH_SERVER_PORT: cannot listen on {address}: is it taken?"
            ) from None
        self._start_metrics(host, self._settings.metrics_port)
        await self._grpc.start()
        self._renewing = [
            asyncio.create_task(each.renew_forever())
            for each in (self._certificates, self._provenance)
        ]
        log.info("listening on %s:%d", host, self.port)

    def _start_metrics(self, host: str, port: int) -> None:
        if not port:
            return
        try:
            loop = asyncio.get_running_loop()
            self._metrics.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
            self._page = page.serve(host, port, self._metrics.registry, loop, lambda: self.ready)
        except OSError as error:
            where = f"{host}:{port}"
            raise BindError(
                f"RETOUCH_SERVER_METRICS_PORT: cannot listen on {where}: {error.strerror}"
            ) from None

    async def load(self) -> None:
        """Load every model and say SERVING. Raises loading.LoadError."""
        device = loading.pick_device(self._settings.device)
        served, self._loading = {}, True
        try:
            # Before any weights: a name that leads nowhere is told at once.
            checks = {entry.id: await asyncio.to_thread(_checks, entry) for entry in self._entries}
            for entry in self._entries:
                log.info("loading model %s on %s", entry.id, device)
                previewer = Previewer()
                model = await asyncio.to_thread(loading.load, entry, device)
                sharing = await asyncio.to_thread(warmup.warm_up, model, previewer)
                if self._stopping:
                    return
                model = replace(model, checks=checks[entry.id])
                engine, moderator = self._engine(model, sharing, device), self._moderator(model)
                served[entry.id] = Served(model, engine, previewer, moderator)
                log.info("loaded model %s in %.1f s", entry.id, model.load_seconds)
        finally:
            self._loading = False
        self._service.served = served
        self.ready = True
        await self._health.set(SERVICE, SERVING)
        log.info("serving %s", ", ".join(served))

    def _engine(self, model: Model, sharing: Sharing, device: str) -> Engine:
        entry = model.entry
        engine = warmup.engine(
            model,
            sharing,
            queue_size=self._settings.queue_size,
            device=device,
            on_forward=partial(self._metrics.forward, entry.id),
            on_lookup=partial(self._metrics.looked_up, entry.id),
            on_error=partial(self._metrics.failed, entry.id),
            on_death=self._died,
            name=f"engine {entry.id}",
        )
        most = sharing.max_tokens or "any number of"
        log.info("model %s: forwards are shared up to %s tokens", entry.id, most)
        self._metrics.watch(model, engine)
        watchdog = Watchdog(entry.id, engine, self._settings.stall_timeout)
        self._metrics.stalled.labels(entry.id).set_function(lambda: watchdog.seconds)
        engine.start()
        self._watching.append(asyncio.create_task(watchdog.watch()))
        return engine

    def _moderator(self, model: Model) -> Moderator:
        count = partial(self._metrics.moderated, model.entry.id)
        return Moderator(model, count, self._settings.safety_timeout, self._settings.threads)

    def _died(self) -> None:
        self.dead, self.ready = True, False
        self._on_death()

    async def stop(self) -> bool:
        """Stop in the order that loses no call: say NOT_SERVING, wait for clients to hear, drain, end the engines.

        grpc.aio's own `stop` cancels calls that arrive meanwhile (grpc/grpc#41785), and waits for health's watchers.
        False if a thread of ours is still busy in torch, where nothing can end it but the end of the process.
        """
        self._stopping = True
        self.ready = False
        await self._health.set(SERVICE, NOT_SERVING)
        if self._service.served:
            await asyncio.sleep(self._settings.drain_wait)
            self._service.draining = True
            await self._service.access.idle(self._settings.drain_timeout)
        await self._grpc.stop(0.5)
        for task in (*self._renewing, *self._watching):
            task.cancel()
        engines = [served.engine for served in self._service.served.values()]
        ended = [await asyncio.to_thread(engine.stop, 2) for engine in engines]
        self._pool.shutdown(wait=False, cancel_futures=True)
        for served in self._service.served.values():
            served.moderator.close()
        if self._page:
            self._page.shutdown()
            self._page.server_close()
        return all(ended) and not self._loading


def _checks(entry: ModelEntry) -> Checks:
    """An entry's safety checks. Raises LoadError."""
    try:
        return safety.load(entry.safety)
    except safety.CheckError as error:
        raise loading.LoadError(f"model {entry.id}: safety: {error}") from error


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # Results: ten images of lossless pixels may be larger than what came in.
        ("grpc.max_send_message_length", -1),
        # Without this a second server would share the port in silence.
        ("grpc.so_reuseport", 0),
        ("grpc.max_connection_age_ms", int(settings.max_connection_age * 1000)),
        # Longer than any edit: an old connection ends when its last call does.
        ("grpc.max_connection_age_grace_ms", 3_600_000),
        # Clients may ask every 20 s whether the line is alive.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ]
