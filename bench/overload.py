"""Ten times what both tiers can do: what is refused and how fast, what becomes of the rest, and what memory it takes.

`full` is as many callers as may wait, each with one edit after the other. `tenfold` sends ten times as many edits a
second as were done then, whatever becomes of those before.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import yaml
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from PIL import Image

from bench.cluster.tiers import Gateway, Server, Tier
from bench.common import machine
from bench.gateway.bodies import noisy
from bench.local import free_port
from retouch.v1.image_edit_pb2 import EditRequest, Size
from retouch.v1.image_edit_pb2_grpc import ImageEditStub

SLOTS, QUEUE = 2, 10  # the least that a queue may be
TIMES = 10
PATIENCE = 120.0  # seconds for an answer
DONE, REFUSED = "done", "refused"


@dataclass(frozen=True)
class Answer:
    """DONE with a whole picture, REFUSED with a time to come again, or whatever else it was; seconds."""

    status: str
    seconds: float


Ask = Callable[[], Awaitable[str]]


@dataclass
class Load:
    """What came of some edits. `healthz`: seconds of the gateway's probes meanwhile. `memory`: MiB at most, by tier."""

    answers: list[Answer] = field(default_factory=list)
    healthz: list[float] = field(default_factory=list)
    seconds: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> Counter[str]:
        return Counter(answer.status for answer in self.answers)

    @property
    def rate(self) -> float:
        return self.counts[DONE] / self.seconds

    def times(self, status: str) -> list[float]:
        return [answer.seconds for answer in self.answers if answer.status == status]

    def __str__(self) -> str:
        memory = ", ".join(f"{name} {most:.0f}" for name, most in self.memory.items())
        return (
            f"{dict(self.counts)}, {self.rate:.2f} edits/s; admitted {_ms(self.times(DONE))}; refused "
            f"{_ms(self.times(REFUSED))}; /healthz {_ms(self.healthz)}; MiB at most: {memory}"
        )


def _ms(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "none"
    *_, p99 = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"p50 {statistics.median(seconds) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"


@dataclass(frozen=True)
class Tiers:
    server: Server
    gateway: Gateway

    @contextmanager
    def measured(self, load: Load) -> Iterator[None]:
        """Most of the memory that each has resident meanwhile, and how long it takes."""
        tiers: dict[str, Tier] = {"server": self.server, "gateway": self.gateway}
        for tier in tiers.values():
            Path(f"/proc/{tier.process.pid}/clear_refs").write_text("5")  # the peak begins anew
        began = time.monotonic()
        yield
        load.seconds = time.monotonic() - began
        load.memory = {name: _peak(tier) for name, tier in tiers.items()}


def _peak(tier: Tier) -> float:
    status = Path(f"/proc/{tier.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@contextmanager
def tiers() -> Iterator[Tiers]:
    """Both, ready, with few places."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        catalogue = place / "models.yaml"
        entry = {"id": "pocket", "source": "pocket", "slots": SLOTS}
        catalogue.write_text(yaml.safe_dump({"models": [entry]}))
        settings = {
            "MODELS": str(catalogue),
            "QUEUE_SIZE": str(QUEUE),
            "MAX_CONNECTION_AGE": "3600",
        }
        server = Server("127.0.0.1", free_port(), free_port(), place, **settings)
        gateway = Gateway(server.address, place)
        try:
            for tier in (server, gateway):
                tier.start()
            for tier in (server, gateway):
                tier.wait_ready()
            yield Tiers(server, gateway)
        finally:
            for tier in (server, gateway):
                with suppress(AttributeError):  # it was not started
                    tier.kill()


class Callers:
    """Ways to ask, each edit on its own; to be used within `async with`."""

    def __init__(self, tiers: Tiers, side: int, steps: int) -> None:
        self._tiers, picture = tiers, noisy(side)
        self._body = json.dumps(
            {
                "prompt": "make it night",
                "images": [base64.b64encode(picture).decode()],
                "num_inference_steps": steps,
                "size": "64x64",
                "response_format": "b64_json",
            }
        )
        self._request = EditRequest(
            prompt="make it night",
            images=[picture],
            num_inference_steps=steps,
            size=Size(width=64, height=64),
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Callers:
        http = httpx.AsyncClient(
            base_url=self._tiers.gateway.url,
            timeout=PATIENCE,
            headers={"content-type": "application/json"},
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        self._http = await self._stack.enter_async_context(http)
        channel = grpc.aio.insecure_channel(self._tiers.server.address)
        self._stub = ImageEditStub(await self._stack.enter_async_context(channel))
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.aclose()

    async def rest(self) -> str:
        reply = await self._http.post("/v1/images/edits", content=self._body)
        if reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1:
            return REFUSED
        if reply.is_error:
            return str(reply.status_code)
        return _whole(base64.b64decode(reply.json()["data"][0]["b64_json"]))

    async def direct(self) -> str:
        try:
            reply = await self._stub.Edit(self._request, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return REFUSED if _comes_again(error) else error.code().name
        return _whole(reply.images[0].data)

    async def probe(self, load: Load) -> None:
        """Look at the gateway's health ten times a second, until cancelled."""
        while True:
            began = time.perf_counter()
            (await self._http.get("/healthz")).raise_for_status()
            load.healthz.append(time.perf_counter() - began)
            await asyncio.sleep(0.1)

    async def full(self, ask: Ask, callers: int, seconds: float) -> Load:
        """So many callers that never pause."""
        load, end = Load(), time.monotonic() + seconds

        async def call() -> None:
            while time.monotonic() < end:
                await _timed(ask, load)

        await self._watched(load, asyncio.gather(*(call() for _ in range(callers))))
        return load

    async def tenfold(self, ask: Ask, rate: float, seconds: float) -> Load:
        """So many edits a second, evenly, whatever becomes of those before; until all have their answers."""
        load = Load()

        async def flood() -> None:
            loop, asked = asyncio.get_running_loop(), []
            began = loop.time()
            for i in range(int(rate * seconds)):
                await asyncio.sleep(began + i / rate - loop.time())
                asked.append(asyncio.ensure_future(_timed(ask, load)))
            await asyncio.gather(*asked)

        await self._watched(load, flood())
        return load

    async def _watched(self, load: Load, work: Awaitable[object]) -> None:
        probing = asyncio.ensure_future(self.probe(load))
        with self._tiers.measured(load):
            await work
        probing.cancel()

    async def recovered(self, quiet: float) -> float:
        """Seconds until an edit takes no more than twice what it takes on quiet tiers."""
        began = time.monotonic()
        while True:
            load = Load()
            await _timed(self.rest, load)
            if load.times(DONE) and load.times(DONE)[0] <= 2 * quiet:
                return time.monotonic() - began
            await asyncio.sleep(0.1)


async def _timed(ask: Ask, load: Load) -> None:
    began = time.perf_counter()
    status = await ask()
    load.answers.append(Answer(status, time.perf_counter() - began))


def _comes_again(error: grpc.aio.AioRpcError) -> bool:
    """Whether it is a refusal that says when."""
    status = rpc_status.from_call(error)
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or status is None:
        return False
    info = RetryInfo()
    return any(each.Unpack(info) and info.retry_delay.seconds >= 1 for each in status.details)


def _whole(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return DONE if image.size == (64, 64) else "a picture of another size"


def inside(tier: Tier, **labels: str | int) -> list[float]:
    """Seconds that calls took in a tier, by its own log, of those lines that bear the labels."""
    lines = (json.loads(line) for line in tier.log.read_text().splitlines() if line[:1] == "{")
    return [line["ms"] / 1000 for line in lines if labels.items() <= line.items()]


async def compare(side: int, steps: int, seconds: float) -> None:
    with tiers() as both:
        async with Callers(both, side, steps) as callers:
            await callers.full(callers.rest, 1, 2)
            quiet = statistics.median((await callers.full(callers.rest, 1, 3)).times(DONE))
            print(f"a picture of {side}x{side}, {steps} steps: {quiet:.2f} s alone")
            for name, ask in (("REST", callers.rest), ("gRPC", callers.direct)):
                once = await callers.full(ask, QUEUE, seconds)
                print(f"{name}, full: {once}", flush=True)
                load = await callers.tenfold(ask, TIMES * once.rate, seconds)
                print(f"{name}, tenfold: {load}")
                print(f"usual again after {await callers.recovered(quiet):.1f} s", flush=True)
        print(f"inside the gateway, refused: {_ms(inside(both.gateway, status=429))}")
        print(
            f"inside the server: {_ms(inside(both.server, code='RESOURCE_EXHAUSTED'))}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 1024], help="of pictures")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    options = parser.parse_args()
    print(machine(), flush=True)
    for side in options.sides:
        asyncio.run(compare(side, options.steps, options.seconds))


if __name__ == "__main__":
    main()
