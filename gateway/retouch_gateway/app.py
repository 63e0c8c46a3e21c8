"""The routes, and what each does: the gateway in one screen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from retouch.v1.image_edit_pb2 import EditResponse, OutputFormat
from retouch_gateway import dialects, replies
from retouch_gateway.access import Access, Visit
from retouch_gateway.errors import (
    BadUpstream,
    GatewayError,
    NotFound,
    OutOfTime,
    Unavailable,
    envelope,
    error_response,
)
from retouch_gateway.hosting import Hosted, Store
from retouch_gateway.intake import Linger, read_json_body, while_connected
from retouch_gateway.metrics import Metrics
from retouch_gateway.settings import Settings
from retouch_gateway.upstream import Upstream

EXTENSIONS = {
    OutputFormat.OUTPUT_FORMAT_PNG: "png",
    OutputFormat.OUTPUT_FORMAT_JPEG: "jpg",
    OutputFormat.OUTPUT_FORMAT_WEBP: "webp",
}


def create_app(settings: Settings, store: Store, metrics: Metrics) -> ASGIApp:
    """The whole gateway as an ASGI application; its lifespan opens the way upstream and sweeps."""
    gateway = Gateway(settings, store, metrics)
    app = Starlette(
        routes=[
            Route("/v1/images/edits", gateway.edit, methods=["POST"]),
            Route("/v1/models", gateway.models),
            Route("/v1/models/{id:path}", gateway.model),
            Route("/images/{name}", gateway.image),
            Route("/healthz", gateway.healthz),
            Route("/readyz", gateway.readyz),
        ],
        exception_handlers=dict.fromkeys((GatewayError, HTTPException, Exception), _answer),
        lifespan=gateway.lifespan,
    )
    app.router.redirect_slashes = False
    return Access(Linger(app), metrics)


@dataclass
class Gateway:
    """The endpoints, and what they share."""

    settings: Settings
    store: Store
    metrics: Metrics
    upstream: Upstream = field(init=False)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        settings = self.settings
        self.upstream = Upstream(settings.upstream, settings.send_bytes, self.metrics)
        sweeping = asyncio.create_task(self.store.sweep_forever())
        try:
            yield
        finally:
            sweeping.cancel()
            await self.upstream.close()

    async def edit(self, request: Request) -> Response:
        visit: Visit = request.state.visit
        edit = await self._read(request)
        # The call's deadline is what is left of the request's budget, less the time to answer.
        left = self.settings.timeout * 0.99 - visit.seconds
        if left <= 0:
            raise OutOfTime
        call = self.upstream.edit(edit.request, left, visit.id)
        response = await while_connected(request, call)
        if not response.images or any(image.format not in EXTENSIONS for image in response.images):
            raise BadUpstream
        hosted = await self._host(response) if edit.response_format == dialects.URL else []
        return await replies.edited(response, hosted, self._base_url(request))

    async def _read(self, request: Request) -> dialects.Edit:
        settings = self.settings
        try:
            body = await read_json_body(request, settings.body_bytes, settings.body_timeout)
            return await run_in_threadpool(dialects.from_json, body, settings.max_image_bytes)
        except GatewayError as error:
            self.metrics.rejected(error.status)
            raise

    async def _host(self, response: EditResponse) -> list[Hosted | None]:
        return [
            await self.store.put(image.data, EXTENSIONS[image.format]) for image in response.images
        ]

    def _base_url(self, request: Request) -> str:
        return self.settings.public_url or str(request.base_url).rstrip("/")

    async def models(self, request: Request) -> Response:
        listed = await self.upstream.models(request.state.visit.id)
        data = [replies.model(model) for model in listed.models]
        return replies.json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        wanted = request.path_params["id"]
        listed = await self.upstream.models(request.state.visit.id)
        for model in listed.models:
            if model.id == wanted:
                return replies.json_response(replies.model(model))
        raise NotFound(f"There is no model {wanted[:200]!r}.", param="model")

    async def image(self, request: Request) -> Response:
        return await self.store.serve(request.path_params["name"])

    async def healthz(self, _request: Request) -> Response:
        return replies.json_response({"status": "alive"})

    async def readyz(self, _request: Request) -> Response:
        if not await self.upstream.ready():
            raise Unavailable
        return replies.json_response({"status": "ready"})


async def _answer(_request: Request, error: Exception) -> Response:
    """Whatever went wrong, in the envelope; Starlette's own 404 and 405 included."""
    if isinstance(error, HTTPException):
        body = envelope(error.status_code, f"{error.detail}.")
        return JSONResponse(body, error.status_code, error.headers)
    return error_response(error if isinstance(error, GatewayError) else GatewayError())
