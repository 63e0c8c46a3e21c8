"""Several servers: who gets an edit, who is next, what is served when some are down."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import grpc
import pytest

from retouch.v1 import image_edit_pb2 as pb
from retouch_gateway import target as target_module
from retouch_gateway import upstream as upstream_module
from retouch_gateway.errors import Busy, NotFound, Unavailable, UpstreamLost
from retouch_gateway.metrics import Metrics
from retouch_gateway.target import Target
from retouch_gateway.upstream import Upstream
from tests.gateway.conftest import Refusal, busy, start_upstream
from tests.gateway.several import DEAD, DOWN, Serves, answer, asked, request, several, until, value
from tests.gateway.test_limits import between

TRIES = 3  # gRPC's own, at one target


async def test_each_model_has_its_server() -> None:
    async with several("a", "b") as (upstream, a, b):
        assert [model.id for model in await upstream.models()] == ["a", "b"]
        for model in "abb":
            assert (await upstream.edit(request(model), 5, ())).model == model
        assert asked(a, b) == [1, 2]


async def test_without_a_model_it_is_the_first_of_the_first() -> None:
    async with several("a x", "x a") as (upstream, a, b):
        for _ in range(2):
            assert (await upstream.edit(request(), 5, ())).model == "a"
        assert asked(a, b) == [1, 1]  # and whoever serves that takes its share


async def test_edits_go_where_the_fewest_are() -> None:
    async with several("m", "m", "m") as (upstream, a, b, c):
        for _ in range(3):
            await upstream.edit(request("m"), 5, ())
        assert asked(a, b, c) == [1, 1, 1]  # in turn where equal
        a.echo.delay = 5
        held = asyncio.create_task(upstream.edit(request("m"), 5, ()))
        await until(lambda: sum(asked(a, b, c)) == 4)
        assert asked(a) == [2]
        for _ in range(4):
            await upstream.edit(request("m"), 5, ())
        assert asked(a, b, c) == [2, 3, 3]
        held.cancel()
        await asyncio.wait({held})
        await asyncio.wait_for(a.echo.cancelled.wait(), 10)
        assert [target.calls for target in upstream.targets] == [0, 0, 0]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_next_one_takes_what_one_does_not(stream: bool) -> None:
    async with several("m", "m") as (upstream, a, b):
        a.echo.refusals = [DOWN] * TRIES
        assert (await answer(upstream, stream)).model == "m"
        assert asked(a, b) == [TRIES, 1]


async def test_it_is_passed_on_once() -> None:
    async with several("m", "m", "m") as (upstream, a, b, c):
        for each in (a, b):
            each.echo.refusals = [DOWN] * TRIES
        with pytest.raises(Unavailable):
            await upstream.edit(request("m"), 5, ())
        assert asked(a, b, c) == [TRIES, TRIES, 0]


@pytest.mark.parametrize("stream", [False, True])
async def test_work_that_had_started_is_not_passed_on(stream: bool) -> None:
    async with several("m", "m") as (upstream, a, b):
        a.echo.accepts = a.echo.late = True
        a.echo.refusals = [DOWN]
        with pytest.raises(UpstreamLost):
            await answer(upstream, stream)
        assert asked(a, b) == [1, 0]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_passed_on_once(stream: bool) -> None:
    """Nothing was accepted, and the other may be idle."""
    async with several("m", "m", "m", "n") as (upstream, a, b, c, other):
        a.echo.refusals = [busy(1)]
        assert (await answer(upstream, stream)).model == "m"
        assert asked(a, b, c, other) == [1, 1, 0, 0]
        c.echo.refusals, a.echo.refusals = [busy(7)], [busy(9)]
        with pytest.raises(Busy) as raised:
            await answer(upstream, stream)
        assert raised.value.headers == {"retry-after": "7"}
        assert asked(a, b, c, other) == [2, 1, 1, 0]


@pytest.mark.parametrize(
    ("refusals", "expected"), [([busy(1)], Busy), ([DOWN] * TRIES, Unavailable)]
)
async def test_what_one_would_take_later_is_not_unknown(
    refusals: list[Refusal], expected: type[Exception]
) -> None:
    """Whatever the next one says: 404 would tell the caller not to try again."""
    async with several("m", "m") as (upstream, a, b):
        a.echo.refusals, b.echo.ids = list(refusals), ("n",)
        with pytest.raises(expected):
            await upstream.edit(request("m"), 5, ())
        assert asked(a, b) == [len(refusals), 1]


async def test_one_that_is_down_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "WAIT_SECONDS", 5)  # which nobody does
    async with several(DEAD, "m") as (upstream, _, a):
        for _ in range(3):
            began = time.monotonic()
            await upstream.edit(request("m"), 5, ())
            assert time.monotonic() - began < 4
        assert asked(a) == [3]
        assert [model.id for model in await upstream.models()] == ["m"]
        assert await upstream.ready()


async def test_one_that_drains_is_left_and_found_again() -> None:
    async with several("m", "m") as (upstream, a, b):
        first, second = upstream.targets
        await a.serving(False)
        await until(lambda: not first.ready)
        assert value(upstream, "upstream_ready", target=a.target) == 0
        for _ in range(2):
            await upstream.edit(request("m"), 5, ())
        assert asked(a, b) == [0, 2]
        await a.serving(True)
        await until(lambda: first.ready)
        assert value(upstream, "upstream_ready", target=a.target) == 1
        await b.serving(False)
        await until(lambda: not second.ready)
        await upstream.edit(request("m"), 5, ())
        assert asked(a, b) == [1, 2]


async def test_what_one_that_is_down_served_is_to_come_not_unknown() -> None:
    """404 would tell the caller not to try again."""
    async with several("a", "b") as (upstream, _, b):
        await b.serving(False)
        await until(lambda: not upstream.targets[1].ready)
        assert [model.id for model in await upstream.models()] == ["a"]
        began = time.monotonic()
        with pytest.raises(Unavailable) as raised:
            await upstream.edit(request("b"), 5, ())
        assert raised.value.headers == {"retry-after": "1"}
        assert 0.4 < time.monotonic() - began < 3  # not the edit's 5
        with pytest.raises(NotFound, match="There is no model 'c'") as missing:
            await upstream.edit(request("c"), 5, ())
        assert missing.value.param == "model"


async def test_what_one_that_was_never_seen_serves_may_come() -> None:
    async with several("a", DEAD) as (upstream, *_):
        with pytest.raises(Unavailable):
            await upstream.edit(request("b"), 5, ())


async def test_all_down() -> None:
    async with several(DEAD, DEAD) as (upstream, *_):
        for call in (
            upstream.models(),
            upstream.edit(request(), 5, ()),
            upstream.edit(request("m"), 5, ()),
        ):
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await call
            assert time.monotonic() - began < 3
        assert not await upstream.ready()


async def test_it_waits_a_moment_for_one_that_is_about_to_come() -> None:
    async with several("m") as (upstream, a):
        await a.serving(False)
        await until(lambda: not upstream.targets[0].ready)
        coming = asyncio.create_task(upstream.edit(request("m"), 5, ()))
        await asyncio.sleep(0.1)
        await a.serving(True)
        assert (await coming).model == "m"


async def test_a_server_that_serves_others_than_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "ASK_AGAIN", 0)
    async with several("m", "m") as (upstream, a, b):
        a.echo.ids = ("n",)
        assert (await upstream.edit(request("m"), 5, ())).model == "m"
        assert (await upstream.edit(request("n"), 5, ())).model == "n"
        assert [model.id for model in await upstream.models()] == ["n", "m"]
        b.echo.ids = ("o",)  # nobody was told, and no call failed yet
        assert (await upstream.edit(request("o"), 5, ())).model == "o"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_moves_is_followed(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(upstream_module, "ASK_AGAIN", 0)
    async with several("m", "n") as (upstream, a, b):
        a.echo.ids, b.echo.ids = ("n",), ("m",)
        assert (await answer(upstream, stream)).model == "m"
        assert asked(a, b) == [1, 1]
        b.echo.ids = ("n",)
        with pytest.raises(NotFound, match="There is no model 'm'"):
            await answer(upstream, stream)
        assert asked(a, b) == [1, 2]


async def test_a_model_that_left_may_come_where_one_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream_module, "ASK_AGAIN", 0)
    async with several("m", "m") as (upstream, a, b):
        await b.serving(False)
        await until(lambda: not upstream.targets[1].ready)
        a.echo.ids = ("n",)
        with pytest.raises(Unavailable):
            await upstream.edit(request("m"), 5, ())
        assert asked(a, b) == [1, 0]


async def test_one_model_by_its_id() -> None:
    """As an edit of it would end."""
    async with several("a x", "b") as (upstream, _, b):
        assert (await upstream.model("b")).id == "b"
        await b.serving(False)
        await until(lambda: not upstream.targets[1].ready)
        assert (await upstream.model("x")).id == "x"
        with pytest.raises(Unavailable) as raised:
            await upstream.model("b")
        assert raised.value.headers == {"retry-after": "1"}
        with pytest.raises(NotFound, match="There is no model 'c'") as missing:
            await upstream.model("c")
        assert missing.value.param == "model"
    async with several("a") as (upstream, _):
        with pytest.raises(NotFound):
            await upstream.model("b")


class Hangs(Serves):
    """Once told to, does not say what it serves; `times` it was asked since."""

    hanging, times = False, 0

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        if self.hanging:
            self.times += 1
            await asyncio.sleep(30)
        return await super().ListModels(request, context)


async def test_one_that_does_not_say_what_it_serves_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(target_module, "LIST_SECONDS", 0.4)
    monkeypatch.setattr(upstream_module, "ASK_AGAIN", 0)
    echo = Hangs("m")
    async with several(echo, "b") as (upstream, *_):
        echo.hanging = True
        began = time.monotonic()
        asking = [asyncio.create_task(upstream.edit(request("c"), 5, ())) for _ in range(8)]
        await until(lambda: echo.times == 1)
        asking[0].cancel()  # who asked first leaves
        left, *answers = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(left, asyncio.CancelledError)
        assert all(isinstance(each, NotFound) for each in answers)
        assert time.monotonic() - began < 5  # not the 30 that it hangs
        monkeypatch.setattr(upstream_module, "ASK_AGAIN", 60)
        with pytest.raises(NotFound):
            await upstream.edit(request("c"), 5, ())
        assert echo.times == 1  # that it did not say is remembered
        monkeypatch.setattr(upstream_module, "ASK_AGAIN", 0)
        asking = [asyncio.create_task(upstream.edit(request("c"), 5, ()))]
        await until(lambda: echo.times == 2)
    # Closed meanwhile.
    (left,) = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError)


async def test_unknown_models_make_no_traffic() -> None:
    async with several("a", "b") as (upstream, a, b):
        listed = partial(value, upstream, "upstream_requests_total", rpc="ListModels", code="OK")
        before = listed()
        await asyncio.sleep(upstream_module.ASK_AGAIN)
        refused = await asyncio.gather(
            *(upstream.edit(request("c"), 5, ()) for _ in range(20)), return_exceptions=True
        )
        assert all(isinstance(each, NotFound) for each in refused)
        assert listed() == before + 2  # one each
        assert asked(a, b) == [0, 0]


async def test_with_one_target_the_server_says_what_is_unknown() -> None:
    async with several("a") as (upstream, a):
        with pytest.raises(NotFound, match="no model 'c'"):
            await upstream.edit(request("c"), 5, ())
        assert asked(a) == [1]


async def test_the_same_target_twice_is_one() -> None:
    upstream = Upstream(["localhost:1", "localhost:2", "localhost:1"], None, 2**24, Metrics())
    assert [target.address for target in upstream.targets] == ["localhost:1", "localhost:2"]
    await upstream.close()


class Reluctant(Serves):
    """Lists what it serves when it is asked for the third time."""

    times = 0

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        self.times += 1
        if self.times < 3:
            await context.abort(grpc.StatusCode.INTERNAL, "not now")
        return await super().ListModels(request, context)


async def test_one_that_will_not_list_is_soon_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "LIST_AGAIN", 0.1)
    async with several(Reluctant("m")) as (upstream, _):
        assert [model.id for model in await upstream.models()] == ["m"]


# Other credentials


async def test_after_a_renewal_the_metrics_are_of_what_is_in_force() -> None:
    """What is retired may lose its line meanwhile: by its certificate there may be no other."""
    server = await start_upstream(echo=Serves("m"))
    async with between(server) as road:
        address = f"127.0.0.1:{road.port}"
        upstream = Upstream([address], None, 2**24, Metrics())
        told = partial(value, upstream, "upstream_ready", target=address)
        await upstream.start()
        [old], lines = upstream.targets, [*road.writers]
        old.calls += 1  # an edit under way
        upstream._send_bytes += 1  # gRPC shares a line between channels that are equal
        await upstream.renew(None)
        road.refusing = True
        for line in lines:
            line.close()
        await until(lambda: old.failed, 10)
        await asyncio.sleep(0.1)  # it is told
        assert told() == 1
        road.cut()
        await until(lambda: told() == 0, 10)
        road.mend()
        await until(lambda: told() == 1, 10)
        await upstream.close()
    await server.server.stop(0)


async def test_who_asks_whether_it_is_ready_during_a_renewal_hears(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, go, check = asyncio.Event(), asyncio.Event(), Target._check

    async def slow(target: Target) -> bool:
        asked.set()
        await go.wait()
        return await check(target)

    monkeypatch.setattr(Target, "_check", slow)
    async with several("m") as (upstream, _):
        asking = [asyncio.create_task(upstream.ready()) for _ in range(2)]
        await asked.wait()
        await upstream.renew(None)
        [retiring] = upstream._retiring
        await asyncio.sleep(0.1)
        go.set()
        assert await asyncio.gather(*asking) == [True, True]
        await asyncio.wait_for(retiring, 10)
