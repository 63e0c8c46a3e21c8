"""The routes, and what each does: the gateway in one screen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retouch.v1.image_edit_pb2 import EditResponse, OutputFormat
from retouch_gateway import background, idempotency, memory, openapi, origin, reference, replies
from retouch_gateway.access import Access, Visit
from retouch_gateway.certificates import Certificates
from retouch_gateway.dialects import Edit
from retouch_gateway.errors import (
    GatewayError,
    KeyExpired,
    ModerationBlocked,
    OutOfTime,
    Unavailable,
    envelope,
    error_response,
)
from retouch_gateway.fetch import Fetcher
from retouch_gateway.hosting import Hosted, Hosting
from retouch_gateway.idempotency import Claim, Idempotency
from retouch_gateway.intake import Intake, Linger, while_connected
from retouch_gateway.keys import Key, Keys
from retouch_gateway.limits import Limits
from retouch_gateway.metrics import Metrics
from retouch_gateway.settings import Settings
from retouch_gateway.signing import SigningKeys
from retouch_gateway.sse import EventStream
from retouch_gateway.static import Playground
from retouch_gateway.stores import Store
from retouch_gateway.tracing import OFF, Tracing, part
from retouch_gateway.upstream import Upstream

JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
EXTENSIONS = {
    OutputFormat.OUTPUT_FORMAT_PNG: "png",
    OutputFormat.OUTPUT_FORMAT_JPEG: "jpg",
    OutputFormat.OUTPUT_FORMAT_WEBP: "webp",
}


def create_app(
    settings: Settings,
    store: Store,
    signing_keys: Sequence[bytes],
    metrics: Metrics,
    tracing: Tracing = OFF,
) -> ASGIApp:
    """The whole gateway as an ASGI application; its lifespan opens the way upstream and sweeps.

    `signing_keys` are used where SIGNING_KEY_FILE has none. Raises KeysError for a file of API keys with a mistake,
    SettingsError for signing keys and certificates.
    """
    gateway = Gateway(settings, store, signing_keys, metrics)
    app = Starlette(
        routes=[
            Route(
                "/v1/images/edits",
                gateway.edit,
                methods=["POST"],
                middleware=[Middleware(Door, gateway=gateway)],
            ),
            Route("/v1/models", gateway.models),
            Route("/v1/models/{id:path}", gateway.model),
            Route("/images/{name}", gateway.image, methods=["GET", "OPTIONS", "DELETE"]),
            Route("/healthz", gateway.healthz),
            Route("/readyz", gateway.readyz),
            Route("/openapi.json", gateway.openapi),
            Route("/docs", gateway.docs),
            *(_playground(gateway.trusted) if settings.playground else ()),
        ],
        exception_handlers=dict.fromkeys((GatewayError, HTTPException, Exception), _answer),
        lifespan=gateway.lifespan,
    )
    app.router.redirect_slashes = False
    return Access(Linger(app, gateway.intake), metrics, tracing)


def _playground(trusted: origin.Networks) -> list[Route]:
    playground = Playground(trusted)
    return [Route("/", playground.page), Route("/playground/{name}", playground.file)]


class Gateway:
    """The endpoints, and what they share."""

    def __init__(
        self, settings: Settings, store: Store, signing_keys: Sequence[bytes], metrics: Metrics
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.keys = Keys(settings.keys, metrics)
        self.certificates = Certificates(settings, metrics)
        self.signing = SigningKeys(settings.signing_key_file, signing_keys, metrics)
        self.hosting = Hosting(store, settings.ttl, self.signing, metrics)
        self.idempotency = Idempotency(store, self.signing, settings.ttl, settings.timeout)
        self.intake = Intake(settings, metrics)
        self.document = openapi.document(settings)
        self.trusted = settings.networks

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        settings, metrics = self.settings, self.metrics
        loop = asyncio.get_running_loop()
        metrics.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        self.limits = Limits(
            settings.limits_store,
            settings.rate_limit,
            settings.concurrency,
            settings.timeout + settings.body_timeout,
            metrics,
        )
        self.fetcher = Fetcher(
            settings.fetch_images, settings.max_image_bytes, settings.fetch_timeout
        )
        self.upstream = Upstream(
            *(settings.upstreams, self.certificates.credentials, settings.send_bytes, metrics)
        )
        works = (
            self.hosting.sweep_forever(self.idempotency.expired),
            self.keys.watch_forever(),
            self.signing.watch_forever(),
            self.certificates.renew_forever(self.upstream),
            memory.give_back_forever(self.intake),
        )
        try:
            async with background.running(*works):
                await self.upstream.start()
                yield
        finally:
            await self.idempotency.close()
            await self.upstream.close()
            await self.fetcher.close()
            await self.limits.close()

    async def edit(self, request: Request) -> Response:
        visit: Visit = request.state.visit
        with part("read body"):
            edit = await self.intake.read(request)
        key = idempotency.key_of(request.headers)
        if key is None:
            return await self._edit(request, edit, None)
        digest = await asyncio.to_thread(edit.digest)
        claiming = self.idempotency.claim(visit.key, key, digest, self._seconds_left(visit))
        # Held until all is said: what a stream's reply is, is known only then.
        held: contextlib.AsyncExitStack = request.state.held
        claim = await while_connected(request, held.enter_async_context(claiming))
        if claim.reply:
            return claim.reply.response()
        try:
            return await self._edit(request, edit, claim)
        except ModerationBlocked as refused:
            reply = error_response(refused)
            claim.finish(reply.status_code, {"content-type": JSON, **refused.headers}, reply.body)
            raise

    async def _edit(self, request: Request, edit: Edit, claim: Claim | None) -> Response:
        visit: Visit = request.state.visit
        if edit.links:
            with part("fetch images"):
                await while_connected(request, self.fetcher.fill(edit))
        call = (edit.request, self._seconds_left(visit), visit.metadata)
        host = partial(self._host, visit)
        base_url = self._base_url(request)
        if edit.stream:
            events = self.upstream.stream(*call)
            first = await while_connected(request, anext(events))
            seconds = self._seconds_left(visit)
            return EventStream(first, events, edit, host, base_url, seconds, _keeper(claim))
        response = await while_connected(request, self.upstream.edit(*call))
        replies.check(response.images)
        visit.model, visit.images = response.model, len(response.images)
        hosted = await host(response) if edit.hosted else []
        reply = await replies.edited(response, edit, hosted, base_url)
        if claim:
            claim.finish(reply.status_code, {"content-type": JSON}, reply.body)
        return reply

    def _seconds_left(self, visit: Visit) -> float:
        """Of the request's budget, less the time to answer. Raises OutOfTime."""
        left = self.settings.timeout * 0.99 - visit.seconds
        if left <= 0:
            raise OutOfTime
        return left

    async def _host(self, visit: Visit, response: EditResponse) -> Sequence[Hosted | None]:
        seconds = max(
            0, self.settings.timeout * 0.98 - visit.seconds
        )  # then it still goes inline in time
        with part("store images"):
            return await asyncio.gather(
                *(
                    self.hosting.put(image.data, EXTENSIONS[image.format], visit.key, seconds)
                    for image in response.images
                )
            )

    def _base_url(self, request: Request) -> str:
        return origin.base_url(request, self.settings.public_url, self.trusted)

    async def models(self, request: Request) -> Response:
        self.admit(request)
        data = [replies.model(model) for model in await self.upstream.models()]
        return replies.json_response({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        self.admit(request)
        model = await self.upstream.model(request.path_params["id"])
        return replies.json_response(replies.model(model))

    def admit(self, request: Request) -> Key:
        """The request's key. Raises Unauthorized."""
        try:
            key = self.keys.find(request.headers)
        except KeyExpired as refused:
            request.state.visit.key = refused.key_id  # the log says whose
            raise
        request.state.visit.key = key.id
        return key

    async def image(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method != "DELETE":
            return await self.hosting.serve(request, name)
        await self.hosting.delete(name, self.admit(request).id, request.headers)
        return Response(status_code=204)

    async def healthz(self, _request: Request) -> Response:
        return replies.json_response({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        draining = getattr(request.state, "draining", False)  # as drain.py says
        if draining or not await self.upstream.ready():
            raise Unavailable
        return replies.json_response({"status": "ready"})

    async def openapi(self, request: Request) -> Response:
        servers = [{"url": self._base_url(request)}]
        return replies.json_response(self.document | {"servers": servers})

    async def docs(self, _request: Request) -> Response:
        return HTMLResponse(reference.page(self.document), headers=reference.HEADERS)


class Door:
    """ASGI middleware of the edits' route: who comes in, how many, and what each holds until all is said."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self.app = app
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        key = self.gateway.admit(request)
        address = origin.client(request, self.gateway.trusted)
        request.state.caller = key.id or address
        lease = await self.gateway.limits.take(key, address)
        request.state.visit.headers |= lease.headers

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                await lease.release()  # before the caller can send the next
            await send(message)

        async with contextlib.AsyncExitStack() as held:
            held.push_async_callback(lease.release)
            request.state.held = held
            await self.app(scope, receive, sending)


def _keeper(claim: Claim | None) -> Callable[[bytes], None] | None:
    """What keeps a stream's end, to be given again."""
    return partial(claim.finish, 200, {"content-type": EVENTS}) if claim else None


async def _answer(request: Request, error: Exception) -> Response:
    """Whatever went wrong, in the envelope; Starlette's own 404 and 405 included."""
    if isinstance(error, HTTPException):
        body = envelope(error.status_code, f"{error.detail}.")
        return JSONResponse(body, error.status_code, error.headers)
    request.state.visit.error = type(error).__name__
    return error_response(error if isinstance(error, GatewayError) else GatewayError())
