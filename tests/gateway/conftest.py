"""A real gateway on a real socket, in front of a real gRPC server whose model is an echo."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import io
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import hypothesis
import pytest
import pytest_asyncio
import uvicorn
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from PIL import Image, UnidentifiedImageError

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1 import image_edit_pb2_grpc
from retouch_gateway.app import create_app
from retouch_gateway.metrics import Metrics
from retouch_gateway.protocol import EnvelopeProtocol
from retouch_gateway.settings import Settings
from retouch_gateway.stores import open_store
from retouch_gateway.tracing import OFF, Tracing

SERVICE = "retouch.v1.ImageEdit"
HERE = Path(__file__).parent

# How long an example takes says more of the machine than of what is tested.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder's coroutines share one loop, so that one gateway serves them all."""
    for item in items:
        function = getattr(item, "function", None)
        function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
        if HERE in item.path.parents and inspect.iscoroutinefunction(function):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


def picture(size: tuple[int, int] = (16, 12), kind: str = "PNG", **save: Any) -> bytes:
    """An encoded picture."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, **save)
    return file.getvalue()


def b64(data: bytes) -> str:
    """As a JSON body carries it."""
    return base64.b64encode(data).decode()


class Refusal(Exception):
    """What the echo answers instead of a picture."""

    def __init__(self, code: grpc.StatusCode, message: str = "no", *details: Message) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details

    async def abort(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        trailer = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(self.code, self.message, trailer if self.details else ())


def busy(seconds: float) -> Refusal:
    """A full queue."""
    delay = Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
    retry = error_details_pb2.RetryInfo(retry_delay=delay)
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry)


def invalid(*violations: tuple[str, str]) -> Refusal:
    """Fields at fault, in the server's words."""
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=name, description=text)
            for name, text in violations
        ]
    )
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid", bad)


MODEL = pb.Model(
    id="acme/echo",
    pipeline="Echo",
    created=1_700_000_000,
    capabilities=pb.Capabilities(mask=True, strength=True, guidance_scale=True),
    defaults=pb.Defaults(strength=0.8, num_inference_steps=20),
    limits=pb.Limits(max_images=16, size_multiple=8, max_pixels=2**20, max_image_bytes=2**22),
    examples=["make it night", "mach’s wärmer"],
)


class Echo(image_edit_pb2_grpc.ImageEditServicer):
    """Judges as the server does, then answers with the first image; can be told to do otherwise."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.requests: list[pb.EditRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.seconds_left: list[float] = []
        self.refusals: list[Refusal] = []  # one a call, in this order
        self.response: pb.EditResponse | None = None
        self.delay = 0.0
        self.accepts = False  # whether it says that it took a request, before its answer
        self.ahead = 0  # edits before this one in the queue
        self.late = False  # whether a stream's refusal comes after it was accepted
        self.started, self.cancelled = asyncio.Event(), asyncio.Event()

    async def StreamEdit(
        self, request: pb.EditRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.EditEvent]:
        async with self._judging(request, context):
            if not self.late:
                self._refuse(request)
            yield pb.EditEvent(queued=pb.Queued(position=self.ahead))
            await asyncio.sleep(self.delay)
            if self.late:
                self._refuse(request)
            response = self.response or _echo(request)
            for event in _progress(request, response):
                yield event
            yield pb.EditEvent(result=response)

    async def Edit(
        self, request: pb.EditRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.EditResponse:
        async with self._judging(request, context):
            await asyncio.sleep(self.delay)
            if self.accepts:
                await context.send_initial_metadata((("retouch-accepted", "1"),))
            self._refuse(request)
        return self.response or _echo(request)

    @contextlib.asynccontextmanager
    async def _judging(
        self, request: pb.EditRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[None]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.seconds_left.append(context.time_remaining() or 0)
        self.started.set()
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        except Refusal as refusal:
            await refusal.abort(context)

    def _refuse(self, request: pb.EditRequest) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        judge(request)

    async def ListModels(
        self, _request: pb.ListModelsRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[MODEL])


def _echo(request: pb.EditRequest) -> pb.EditResponse:
    n = request.n if request.HasField("n") else 1
    images = [
        pb.EditedImage(
            data=request.images[0],
            format=request.output_format or pb.OutputFormat.OUTPUT_FORMAT_PNG,
            width=16,
            height=12,
            seed=(request.seed + i) % 2**64,
            revised_prompt=request.prompt,
        )
        for i in range(n)
    ]
    usage = pb.Usage(input_images=len(request.images), output_images=n, steps=20 * n)
    return pb.EditResponse(images=images, usage=usage, model=request.model or MODEL.id)


def _progress(request: pb.EditRequest, response: pb.EditResponse) -> Iterator[pb.EditEvent]:
    """Two steps of each image, and before the second the previews that are wanted."""
    for i, image in enumerate(response.images):
        yield pb.EditEvent(step=pb.Step(image_index=i, step=1, total=2))
        for number in range(request.partial_images):
            preview = pb.Preview(image_index=i, preview_index=number, image=image)
            yield pb.EditEvent(preview=preview)
        yield pb.EditEvent(step=pb.Step(image_index=i, step=2, total=2))


def judge(request: pb.EditRequest) -> None:
    """The ranges of the contract, as the real server holds them."""
    if request.model not in ("", MODEL.id):
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}")
    ranges: dict[Any, tuple[int, int]] = {
        "n": (1, 10),
        "strength": (0, 1),
        "guidance_scale": (0, 20),
        "num_inference_steps": (1, 100),
    }
    wrong = [
        (name, f"must be {low} to {high}, not {getattr(request, name)}")
        for name, (low, high) in ranges.items()
        if request.HasField(name) and not low <= getattr(request, name) <= high
    ]
    if not request.prompt:
        wrong.insert(0, ("prompt", "must not be empty"))
    if request.HasField("size") and request.size.width % 8:
        wrong.append(("size.width", "must be a multiple of 8"))
    wrong += [
        (f"images[{i}]", text) for i, data in enumerate(request.images) for text in _faults(data)
    ]
    if request.mask and not wrong and _size(request.mask) != _size(request.images[0]):
        wrong.append(("mask", "is of another size"))
    if wrong:
        raise invalid(*wrong)


def _faults(data: bytes) -> Iterator[str]:
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > 50_000_000:
            yield "has too many pixels"
        elif getattr(image, "n_frames", 1) > 1:
            yield "is animated"
        else:
            image.load()
    # Unless the server's code is there too, which has a bound of its own.
    except Image.DecompressionBombError:
        yield "has too many pixels"
    except (UnidentifiedImageError, OSError, SyntaxError):
        yield "cannot be decoded"


def _size(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


@dataclass
class Upstream:
    """A running gRPC server."""

    echo: Echo
    health: Any
    port: int
    server: grpc.aio.Server = field(repr=False)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serving(self, yes: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        await self.health.set(SERVICE, statuses.SERVING if yes else statuses.NOT_SERVING)


async def start_upstream(port: int = 0, echo: Echo | None = None) -> Upstream:
    """An Echo behind real gRPC, at `port` or any free one."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2**27)])
    echo, checks = echo or Echo(), health.aio.HealthServicer()
    image_edit_pb2_grpc.add_ImageEditServicer_to_server(echo, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    upstream = Upstream(echo, checks, port, server)
    await upstream.serving(True)
    return upstream


class Quiet(uvicorn.Server):
    """uvicorn that says when it is up, and leaves the test run's signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Live:
    """A running gateway, and a client for it."""

    settings: Settings
    metrics: Metrics
    port: int
    client: httpx.AsyncClient

    async def edit(self, **body: Any) -> httpx.Response:
        """Send the smallest good edit, with `body` over it."""
        good = {"images": [b64(picture())], "prompt": "warmer"}
        return await self.client.post("/v1/images/edits", json=good | body)

    def value(self, name: str, **labels: str) -> float:
        """A sample of the gateway's metrics."""
        found = self.metrics.registry.get_sample_value(f"retouch_gateway_{name}", labels)
        assert found is not None, name
        return found

    async def eventually(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has reached `value`: it may come a moment after the answer."""
        async with asyncio.timeout(10):
            while self.value(name, **labels) < value:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def run_gateway(settings: Settings, tracing: Tracing = OFF) -> AsyncIterator[Live]:
    """A gateway with `settings`, on a free port."""
    metrics, keys = Metrics(), settings.signing_keys or [b"k" * 32]
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    )  # asyncio sees proto 0, and does not
    config = uvicorn.Config(
        create_app(settings, open_store(settings.store), keys, metrics, tracing),
        http=EnvelopeProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = Quiet(config)
    serving = asyncio.create_task(server.serve([listener]))
    port = listener.getsockname()[1]
    await server.up.wait()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        yield Live(settings, metrics, port, client)
    server.should_exit = True
    await serving


def error_of(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The envelope, checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["param"] == param
    assert response.headers["x-request-id"]
    return error


StartGateway = Callable[..., Awaitable[Live]]


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def shared_upstream() -> AsyncIterator[Upstream]:
    upstream = await start_upstream()
    yield upstream
    await upstream.server.stop(0)


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def shared_gateway(
    shared_upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Live]:
    folder = tmp_path_factory.mktemp("store")
    settings = Settings(upstream=shared_upstream.target, store=str(folder), body_timeout=5)
    async with run_gateway(settings) as live:
        yield live


@pytest.fixture
def gateway(shared_gateway: Live, upstream: Upstream) -> Live:
    """The gateway that most tests share, its upstream at ease."""
    return shared_gateway


@pytest_asyncio.fixture(loop_scope="session")
async def upstream(shared_upstream: Upstream) -> Upstream:
    shared_upstream.echo.reset()
    return shared_upstream


@pytest_asyncio.fixture(loop_scope="session")
async def start(tmp_path: Path, shared_upstream: Upstream) -> AsyncIterator[StartGateway]:
    """Start a gateway of one's own: `await start(ttl=1)`."""
    shared_upstream.echo.reset()
    async with contextlib.AsyncExitStack() as stack:

        async def starting(**given: Any) -> Live:
            defaults: dict[str, Any] = {
                "upstream": shared_upstream.target,
                "store": str(tmp_path / "store"),
            }
            return await stack.enter_async_context(run_gateway(Settings(**(defaults | given))))

        yield starting
