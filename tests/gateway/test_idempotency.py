"""One edit for one Idempotency-Key: replayed, waited for, refused, given up; in one process and in several."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from retouch_gateway import idempotency, stores
from retouch_gateway.errors import BadRequest, Conflict, KeyReused
from retouch_gateway.idempotency import Claim, Idempotency, key_of
from retouch_gateway.stores import Entry, Folder, Store, open_store
from tests.gateway.conftest import Live, StartGateway, Upstream, b64, busy, error_of, picture
from tests.gateway.stores import (
    Forgetful,
    Open,
    bucket,
    forgetful,
    object_store,
    open_again,
    store,
)
from tests.gateway.test_hosting import Broken

__all__ = ["bucket", "forgetful", "object_store", "open_again", "store"]

ONE, OTHER = b"1" * 32, b"2" * 32  # digests
BODY = os.urandom(500_000)


def replica(store: Store, ttl: float = 60) -> Idempotency:
    return Idempotency(store, (b"k" * 32,), ttl, timeout=60)


class Edits:
    """Counts what is done, as opposed to replayed."""

    def __init__(self, *, held: bool = False) -> None:
        self.done = 0
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, claim: Claim) -> None:
        self.begun.set()
        await self.go.wait()
        self.done += 1
        claim.finish(200, {"content-type": "application/json"}, BODY)


async def send(
    at: Idempotency,
    edit: Callable[[Claim], Awaitable[None]],
    digest: bytes = ONE,
    owner: str = "ada",
    key: str = "key",
    seconds: float = 10,
) -> bytes:
    """What a request does."""
    async with at.claim(owner, key, digest, seconds) as claim:
        if not claim.reply:
            await edit(claim)
        assert claim.reply
        return bytes(claim.reply.body)


async def fails(_claim: Claim) -> None:
    raise ZeroDivisionError


async def names(store: Store) -> list[str]:
    return [entry.name for entry in await store.entries()]


async def test_it_is_replayed_by_any_replica(open_again: Open) -> None:
    edit = Edits()
    one, other = replica(open_again()), replica(open_again())
    for at in (one, one, other):
        assert await send(at, edit) == BODY
    assert edit.done == 1
    async with other.claim("ada", "key", ONE, 10) as claim:
        assert claim.reply
        response = claim.reply.response()
        assert response.headers["idempotent-replayed"] == "true"
        assert response.headers["content-type"] == "application/json"
        assert (response.status_code, response.body) == (200, BODY)


async def test_another_edit_has_another_key(open_again: Open) -> None:
    edit = Edits()
    one, other = replica(open_again()), replica(open_again())
    await send(one, edit)
    for at in (one, other):
        with pytest.raises(KeyReused):
            await send(at, edit, OTHER)
        await send(at, edit)
    assert edit.done == 1


async def test_owners_and_keys_are_apart(store: Store) -> None:
    edit, at = Edits(), replica(store)
    for owner, key in (("ada", "key"), ("bob", "key"), ("ada", "yek"), ("", "ada key"), ("a", "b")):
        await send(at, edit, owner=owner, key=key)
    assert edit.done == 5
    assert not [name for name in await names(store) if "key" in name or "ada" in name]


async def test_the_same_under_way_here_is_waited_for(store: Store) -> None:
    edit, at = Edits(held=True), replica(store)
    sending = [asyncio.create_task(send(at, edit)) for _ in range(10)]
    await edit.begun.wait()
    edit.go.set()
    assert await asyncio.gather(*sending) == [BODY] * 10
    assert edit.done == 1


async def test_another_under_way_here_is_refused_at_once(store: Store) -> None:
    edit, at = Edits(held=True), replica(store)
    first = asyncio.create_task(send(at, edit))
    await edit.begun.wait()
    with pytest.raises(KeyReused):
        await send(at, edit, OTHER)
    edit.go.set()
    await first


async def test_who_waits_takes_over_from_who_fails(store: Store) -> None:
    edit, at = Edits(), replica(store)
    begun, go = asyncio.Event(), asyncio.Event()

    async def fails_later(_claim: Claim) -> None:
        begun.set()
        await go.wait()
        raise ZeroDivisionError

    first = asyncio.create_task(send(at, fails_later))
    await begun.wait()
    rest = [asyncio.create_task(send(at, edit)) for _ in range(5)]
    await asyncio.sleep(0.01)
    go.set()
    with pytest.raises(ZeroDivisionError):
        await first
    assert await asyncio.gather(*rest) == [BODY] * 5
    assert edit.done == 1


async def test_waiting_ends_with_ones_own_budget(store: Store) -> None:
    edit, at = Edits(held=True), replica(store)
    first = asyncio.create_task(send(at, edit))
    await edit.begun.wait()
    with pytest.raises(Conflict) as raised:
        await send(at, edit, seconds=0.05)
    assert raised.value.headers == {"retry-after": "1"}
    edit.go.set()
    assert await first == BODY


async def test_the_same_under_way_elsewhere_is_a_conflict(open_again: Open) -> None:
    edit = Edits(held=True)
    one, other = replica(open_again()), replica(open_again())
    first = asyncio.create_task(send(one, edit))
    await edit.begun.wait()
    with pytest.raises(Conflict):
        await send(other, edit)
    with pytest.raises(KeyReused):
        await send(other, edit, OTHER)
    edit.go.set()
    await first
    assert await send(other, edit) == BODY
    assert edit.done == 1


async def test_many_replicas_at_once_make_one_edit(open_again: Open) -> None:
    edit = Edits()
    outcomes = await asyncio.gather(
        *(send(replica(open_again()), edit) for _ in range(8)), return_exceptions=True
    )
    assert edit.done == 1
    assert BODY in outcomes
    assert all(each == BODY or isinstance(each, Conflict) for each in outcomes)


async def test_a_failed_edit_may_be_sent_again(open_again: Open) -> None:
    store, edit = open_again(), Edits()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await send(replica(store), fails)
        assert await names(store) == []
    assert await send(replica(open_again()), edit, OTHER) == BODY


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.01, 0.05])
async def test_a_cancelled_edit_may_be_sent_again(open_again: Open, seconds: float) -> None:
    """Wherever it is when its caller leaves: before the store knows of it, too."""
    store = open_again()
    at, edit = replica(store), Edits(held=True)
    sending = asyncio.create_task(send(at, edit))
    await asyncio.sleep(seconds)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    edit.go.set()
    assert await send(at, edit, OTHER) == BODY
    assert len(await names(store)) == 1


async def test_a_waiting_caller_that_leaves_disturbs_nobody(store: Store) -> None:
    edit, at = Edits(held=True), replica(store)
    first, leaves, waits = (asyncio.create_task(send(at, edit)) for _ in range(3))
    await edit.begun.wait()
    leaves.cancel()
    edit.go.set()
    assert await first == BODY
    assert await waits == BODY
    assert edit.done == 1


async def test_a_replica_that_died_blocks_nobody_for_long(
    open_again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MARGIN_SECONDS", 0)
    store, edit = open_again(), Edits()
    died = replica(store)
    await died._take(died._names("ada", "key"), Claim(ONE), 1)  # and no more is heard of it
    with pytest.raises(Conflict):
        await send(replica(store), edit)
    await asyncio.sleep(1)
    outcomes = await asyncio.gather(
        *(send(replica(open_again()), edit) for _ in range(6)), return_exceptions=True
    )
    assert edit.done == 1  # of all who came to succeed it
    assert BODY in outcomes
    assert await send(replica(open_again()), edit) == BODY
    assert edit.done == 1


async def test_a_reply_is_kept_for_its_time(
    open_again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, now, later = Edits(), time.time, 0
    monkeypatch.setattr(time, "time", lambda: now() + later)
    await send(replica(open_again(), 60), edit)
    later = 40
    await send(replica(open_again(), 60), edit)
    assert edit.done == 1
    later = 80
    await send(replica(open_again(), 60), edit, OTHER)
    assert edit.done == 2


async def test_a_record_that_makes_no_sense_is_as_good_as_none(open_again: Open) -> None:
    edit, store = Edits(), open_again()
    name = replica(store)._names("ada", "key")[0]
    for garbage in (b"", b"x", b"{}\n", b"[]\nx", b'{"digest": 1, "until": 1e99}\n', b"\n\n"):
        await store.put(name, garbage)
        assert await send(replica(store), edit) == BODY
        await store.delete(*await names(store))
    assert edit.done == 6


def test_records_are_swept_after_their_time(tmp_path: Path) -> None:
    at = replica(Folder(tmp_path), ttl=100)
    name, now = at._names("ada", "key")[0], time.time()
    assert not at.expired(Entry(name, now - 100))
    assert at.expired(Entry(name, now - 106))
    # What stands for a succession is of no use once the successor's edit is over.
    heir = f"{name[:64]}-{'a' * 32}.reply"
    assert not at.expired(Entry(heir, now - 60))
    assert at.expired(Entry(heir, now - 66))
    for each in ("notes.reply", f"{'a' * 32}-1000000000.png", ".signing-key", f"x{name}"):
        assert not at.expired(Entry(each, 0))
    # A claim lives as long as the longest edit, however short-lived replies are.
    assert not replica(Folder(tmp_path), ttl=1).expired(Entry(name, now - 60))


class Flaky(Folder):
    """Fails at the puts and deletes whose number is in `bad`."""

    def __init__(self, folder: Path, *bad: int) -> None:
        super().__init__(folder)
        self.bad = bad
        self.said = 0

    def _say(self) -> None:
        self.said += 1
        if self.said in self.bad:
            raise OSError(5, os.strerror(5))

    def _put(self, name: str, data: bytes, media_type: str, create: bool) -> None:
        self._say()
        super()._put(name, data, media_type, create)

    def _delete(self, names: tuple[str, ...]) -> int:
        self._say()
        return super()._delete(names)


async def test_an_end_is_told_again(tmp_path: Path) -> None:
    edit = Edits()
    with pytest.raises(ZeroDivisionError):
        await send(replica(Flaky(tmp_path, 2)), fails)
    assert await send(replica(Flaky(tmp_path, 2)), edit) == BODY
    assert await send(replica(Folder(tmp_path)), edit) == BODY
    assert edit.done == 1


async def test_a_succession_that_the_store_did_not_hear_of_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MARGIN_SECONDS", 0.1)
    died, edit = replica(Folder(tmp_path)), Edits()
    await died._take(died._names("ada", "key"), Claim(ONE), 0)
    await asyncio.sleep(0.1)
    # It is refused, the succession is not; the record then is.
    assert await send(replica(Flaky(tmp_path, 3)), edit) == BODY
    assert await send(replica(Folder(tmp_path)), edit) == BODY
    assert edit.done == 1


async def test_one_whose_time_is_up_leaves_its_successor_alone(
    open_again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MARGIN_SECONDS", 0)
    for late in (Edits(held=True), fails):
        at, edit = replica(open_again()), Edits(held=True)
        key = str(id(late))
        async with contextlib.AsyncExitStack() as slow:
            claim = await slow.enter_async_context(at.claim("ada", key, ONE, 0.2))
            await asyncio.sleep(0.3)
            second = asyncio.create_task(send(replica(open_again()), edit, OTHER, key=key))
            await edit.begun.wait()
            if late is not fails:
                claim.finish(200, {}, b"late")
        with pytest.raises(KeyReused):  # it is the second's still
            await send(replica(open_again()), edit, key=key)
        edit.go.set()
        assert await second == BODY


@pytest.mark.parametrize("status", [500, 503, 0])
async def test_who_is_first_learns_it_though_the_answer_is_lost(
    forgetful: Forgetful, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful.status = status
    monkeypatch.setattr(idempotency, "MARGIN_SECONDS", 0)
    edit, first = Edits(), replica(open_store("s3://bucket/prefix"))
    await first._take(first._names("ada", "dies"), Claim(ONE), 0)
    for key in ("new", "dies"):  # the second as a successor
        assert await send(replica(open_store("s3://bucket/prefix")), edit, key=key) == BODY
        assert await send(replica(open_store("s3://bucket/prefix")), edit, key=key) == BODY
    assert edit.done == 2
    assert forgetful.refused > 2


class Late(Folder):
    """Keeps the first claim that it can, and says so when nobody listens any more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go, self.kept = threading.Event(), False

    def _put(self, name: str, data: bytes, media_type: str, create: bool) -> None:
        super()._put(name, data, media_type, create)
        if create and not self.kept:
            self.kept = True
            self.go.wait(60)


@pytest.mark.parametrize("succeeds", [False, True])
@pytest.mark.parametrize(("end", "more"), [(Edits(), 0), (fails, 1)], ids=["done", "failed"])
async def test_a_claim_whose_answer_was_lost_is_found_at_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Claim], Awaitable[None]],
    more: int,
    succeeds: bool,
) -> None:
    """The edit is not made again; or, where it failed, at once by whoever comes next."""
    monkeypatch.setattr(idempotency, "MARGIN_SECONDS", 0)
    edit, store = Edits(), Late(tmp_path)
    at = replica(store)
    if succeeds:
        died = replica(Folder(tmp_path))
        await died._take(died._names("ada", "key"), Claim(ONE), 0)

    async def ends(claim: Claim) -> None:
        monkeypatch.setattr(stores, "SECONDS", 60)
        await end(claim)

    monkeypatch.setattr(stores, "SECONDS", 0.3)
    with contextlib.suppress(ZeroDivisionError):
        assert await send(at, ends) == BODY
    store.go.set()
    assert store.kept
    await at.close()
    for other in (at, replica(Folder(tmp_path))):
        assert await send(other, edit) == BODY
    assert edit.done == more


async def test_a_claim_that_is_anothers_is_left_alone(tmp_path: Path) -> None:
    """Also where the store failed when it was asked for."""
    first, edit = Edits(held=True), Edits()
    sending = asyncio.create_task(send(replica(Folder(tmp_path)), first))
    await first.begun.wait()
    at = replica(Flaky(tmp_path, 1))
    with pytest.raises(ZeroDivisionError):
        await send(at, fails)
    await at.close()
    with pytest.raises(Conflict):
        await send(replica(Folder(tmp_path)), edit)
    first.go.set()
    assert await sending == BODY


async def test_nobody_waits_for_a_store_that_hangs_to_say_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, edit = Hangs(tmp_path), Edits()
    at = replica(store)

    async def ends(claim: Claim) -> None:
        monkeypatch.setattr(stores, "SECONDS", 60)
        await edit(claim)

    monkeypatch.setattr(stores, "SECONDS", 0.2)
    sending = asyncio.create_task(send(at, ends))
    await asyncio.wait({sending}, timeout=10)
    assert sending.done()
    assert await sending == BODY
    store.go.set()
    await at.close()


async def test_who_leaves_a_store_that_hangs_waits_no_longer(tmp_path: Path) -> None:
    """It holds its place and its bytes until it is let go; the claim is given up all the same."""
    store, edit = Hangs(tmp_path), Edits()
    at = replica(store)
    sending = asyncio.create_task(send(at, edit))
    await asyncio.to_thread(store.asked.wait)
    sending.cancel()
    await asyncio.wait({sending}, timeout=10)
    assert sending.cancelled()
    again = asyncio.create_task(send(at, edit, OTHER))
    store.go.set()
    assert await again == BODY
    assert len(await names(store)) == 1


class Hangs(Folder):
    """Answers nothing until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked, self.go = threading.Event(), threading.Event()

    def _put(self, name: str, data: bytes, media_type: str, create: bool) -> None:
        self.asked.set()
        self.go.wait(60)
        super()._put(name, data, media_type, create)

    def _get(self, name: str) -> bytes:
        self.go.wait(60)
        return super()._get(name)


async def test_who_leaves_before_it_is_refused_leaves_no_trace(store: Store) -> None:
    loop, said = asyncio.get_running_loop(), list[object]()
    edit = Edits(held=True)
    first = asyncio.create_task(send(replica(store), edit))
    await edit.begun.wait()
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        for digest in (ONE, OTHER):
            at = replica(store)
            leaves = asyncio.create_task(send(at, edit, digest))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            leaves.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaves
            await at.close()
            gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert said == []
    edit.go.set()
    await first


async def test_a_reply_is_kept_while_it_is_sent(open_again: Open) -> None:
    edit = Edits()
    one, other = replica(open_again()), replica(open_again())
    async with one.claim("ada", "key", ONE, 10) as claim:
        await edit(claim)
        assert await send(one, edit) == BODY  # at once
        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(Conflict):
                    assert await send(other, edit) == BODY
                    break
    assert edit.done == 1


async def test_closing_waits_for_what_is_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Stuck(tmp_path)
    at = replica(store)
    await at.close()
    sending = asyncio.create_task(send(at, Edits()))
    await asyncio.to_thread(store.ending.wait)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    monkeypatch.setattr(stores, "SECONDS", 0.1)
    await at.close()  # no longer than that
    monkeypatch.undo()
    closing = asyncio.create_task(at.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    store.go.set()
    await closing
    edit = Edits()
    assert await send(replica(Folder(tmp_path)), edit) == BODY
    assert edit.done == 0


class Stuck(Folder):
    """Takes a claim, then hangs until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ending, self.go = threading.Event(), threading.Event()

    def _put(self, name: str, data: bytes, media_type: str, create: bool) -> None:
        if not create:
            self.ending.set()
            self.go.wait()
        super()._put(name, data, media_type, create)


async def test_a_failing_store_stops_no_edit(caplog: pytest.LogCaptureFixture) -> None:
    edit, at = Edits(held=True), replica(Broken())
    sending = [asyncio.create_task(send(at, edit)) for _ in range(3)]
    await edit.begun.wait()
    edit.go.set()
    assert await asyncio.gather(*sending) == [BODY] * 3
    assert edit.done == 1  # here they know of each other
    assert "idempotency: Input/output error" in caplog.text
    await at.close()
    await send(at, edit)
    assert edit.done == 2  # and of none before


async def test_a_store_that_fails_in_the_middle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Folder(tmp_path / "store")
    at, edit = replica(store), Edits(held=True)
    sending = asyncio.create_task(send(at, edit))
    await edit.begun.wait()
    (tmp_path / "store").rename(tmp_path / "moved")
    (tmp_path / "store").write_text("no folder")
    edit.go.set()
    assert await sending == BODY
    assert "idempotency: " in caplog.text
    assert str(tmp_path) not in caplog.text


@pytest.mark.parametrize("given", [[], ["a"], [" ~" * 100], ["a" * 255]])
def test_the_header(given: list[str]) -> None:
    headers = Headers(raw=[(b"idempotency-key", value.encode()) for value in given])
    assert key_of(headers) == (given[0] if given else None)


@pytest.mark.parametrize("given", [[""], ["a" * 256], ["a\tb"], ["é"], ["a", "a"]])
def test_a_header_that_is_none(given: list[str]) -> None:
    headers = Headers(raw=[(b"idempotency-key", value.encode("latin-1")) for value in given])
    with pytest.raises(BadRequest, match="Idempotency-Key: must be one"):
        key_of(headers)


# Through the gateway


async def edit(gateway: Live, key: str = "k", **body: object) -> httpx.Response:
    good = {"images": [b64(picture())], "prompt": "warmer"}
    with_key = {"idempotency-key": key}
    return await gateway.client.post("/v1/images/edits", json=good | body, headers=with_key)


async def test_an_edit_sent_twice_is_made_once(start: StartGateway, upstream: Upstream) -> None:
    gateway, other = await start(), await start()
    first = await edit(gateway, n=2)
    assert first.status_code == 200
    assert "idempotent-replayed" not in first.headers
    for at in (gateway, other):
        again = await edit(at, n=2)
        assert again.status_code == 200
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        url = again.json()["data"][0]["url"]
        assert (await at.client.get(url)).status_code == 200
    assert len(upstream.echo.requests) == 1
    error_of(await edit(gateway, n=2, user="ada"), 422)  # whose answer would say `user` is ignored
    error = error_of(await edit(gateway, n=3), 422)
    assert error["type"] == "invalid_request_error"
    assert error_of(await edit(gateway, key=""), 400)["message"].startswith("Idempotency-Key")


async def test_a_stream_is_replayed_as_its_end(start: StartGateway, upstream: Upstream) -> None:
    gateway = await start()
    first = await edit(gateway, stream=True, partial_images=1)
    again = await edit(gateway, stream=True, partial_images=1)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.content
    assert first.text.endswith(again.text)
    assert again.text.count("event: image_edit.completed") == 1
    assert "partial_image\n" not in again.text
    assert len(upstream.echo.requests) == 1


async def test_a_refused_edit_may_be_sent_again(start: StartGateway, upstream: Upstream) -> None:
    gateway = await start()
    upstream.echo.refusals = [busy(1)]
    assert (await edit(gateway)).status_code == 429
    assert (await edit(gateway, prompt="")).status_code == 400
    assert (await edit(gateway)).status_code == 200
    assert len(upstream.echo.requests) == 3


async def test_two_at_once_are_one(start: StartGateway, upstream: Upstream) -> None:
    gateway, other = await start(), await start()
    upstream.echo.delay = 0.5
    first, second = asyncio.create_task(edit(gateway)), asyncio.create_task(edit(gateway))
    await upstream.echo.started.wait()
    refused = await edit(other)
    error_of(refused, 409)
    assert refused.headers["retry-after"] == "1"
    one, two = await first, await second
    assert one.content == two.content
    assert len(upstream.echo.requests) == 1


async def test_who_leaves_gives_up_the_claim(start: StartGateway, upstream: Upstream) -> None:
    gateway = await start()
    upstream.echo.delay = 60
    leaves = asyncio.create_task(edit(gateway))
    await asyncio.wait_for(upstream.echo.started.wait(), 10)
    leaves.cancel()
    await asyncio.wait({leaves})
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)
    upstream.echo.delay = 0
    assert (await edit(gateway, n=2)).status_code == 200
