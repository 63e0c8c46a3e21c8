"""The way out: which addresses are public, names that hang, and too much at once."""

from __future__ import annotations

import asyncio
import ipaddress
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import httpcore
import pytest
import pytest_asyncio

from retouch_gateway.errors import BadRequest, Busy
from retouch_gateway.fetch import AT_ONCE, UNREACHED, Fetcher
from retouch_gateway.network import LOOKUPS, PublicNetwork, is_public
from tests.certificates import Authority
from tests.gateway.web import (
    OTHER,
    PUBLIC,
    PUBLIC_V6,
    Names,
    Web,
    authority,
    edit_of,
    fetcher,
    fetching,
    refusal,
    silence,
    web,
)

__all__ = ["authority", "fetcher", "web"]


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.8.9.1 168.63.129.16 169.254.169.254",
        "172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1",
        "198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255",
        ":: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:808:808 64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1 64:ff9b::808:808 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1",
        "2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:808:808::1 3fff::1 5f00::1 fc00::1",
        "fd00:ec2::254 fe80::1 fe80::1%1 fec0::1 ff02::1 ff0e::1",
    ],
)
def test_what_is_not_public(address: str) -> None:
    for each in address.split():
        assert not is_public(ipaddress.ip_address(each)), each


@pytest.mark.parametrize("address", [PUBLIC, OTHER, PUBLIC_V6, "2a00:1450::1", "223.255.255.1"])
def test_what_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest_asyncio.fixture(loop_scope="session")
async def hanging(web: Web, authority: Authority) -> AsyncIterator[tuple[Fetcher, Names]]:
    names = Names()
    async with fetching(authority, web, names.look_up, 0.3) as fetcher:
        yield fetcher, names
        names.answer.set()
        async with asyncio.timeout(10):  # every thread is given back
            for _ in range(LOOKUPS):
                await fetcher.network.threads.acquire()


async def test_names_that_hang(hanging: tuple[Fetcher, Names]) -> None:
    """An edit has one looked up at a time, so that it holds one thread, and leaves the rest to others."""
    fetcher, names = hanging
    with pytest.raises(BadRequest) as refused:
        await fetcher.fill(edit_of(**{f"image{i}": f"https://{i}.evil/" for i in range(4)}))
    assert refused.value.message.count(UNREACHED) == 4
    assert names.asked == ["0.evil"]
    fetcher.seconds = 5
    await fetcher.fill(edit_of(image0="https://pictures.example/cat.png"))


async def test_no_thread_is_free(hanging: tuple[Fetcher, Names]) -> None:
    """That is no fault of the address, so it is no 400: the caller may come back, and then gets his image."""
    fetcher, names = hanging
    edits = [edit_of(image0=f"https://{i}.evil/") for i in range(LOOKUPS)]
    await asyncio.gather(*map(fetcher.fill, edits), return_exceptions=True)
    good = edit_of(image0="https://pictures.example/cat.png", mask="https://0.evil/")
    with pytest.raises(Busy) as busy:
        await fetcher.fill(good)
    assert busy.value.headers["retry-after"] == "1"
    assert len(names.asked) == LOOKUPS
    # What no wait would mend comes first.
    assert (await refusal(fetcher, "http://pictures.example/")).startswith("must be an https")
    with pytest.raises(BadRequest, match=r"^mask: must be"):
        await fetcher.fill(edit_of(image0="https://pictures.example/cat.png", mask="http://a/"))
    names.answer.set()
    fetcher.seconds = 5
    await fetcher.fill(edit_of(image0="https://pictures.example/cat.png"))


async def test_no_connection_is_free(fetcher: Fetcher, web: Web) -> None:
    web.pages["/slow"] = silence
    fetcher.seconds = 0.7
    slow = [
        asyncio.create_task(fetcher.fill(edit_of(image0="https://pictures.example/slow")))
        for _ in range(AT_ONCE)
    ]
    while len(web.dialled) < AT_ONCE:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    fetcher.seconds = 0.1
    with pytest.raises(Busy):
        await fetcher.fill(edit_of(image0="https://pictures.example/cat.png"))
    assert len(web.dialled) == AT_ONCE
    assert all(
        isinstance(e, BadRequest) for e in await asyncio.gather(*slow, return_exceptions=True)
    )
    fetcher.seconds = 2
    await fetcher.fill(edit_of(image0="https://pictures.example/cat.png"))


async def test_a_caller_that_leaves_while_waiting_for_a_thread(
    hanging: tuple[Fetcher, Names],
) -> None:
    fetcher, names = hanging
    fetcher.seconds = 5
    edits = [edit_of(image0=f"https://{i}.evil/") for i in range(LOOKUPS + 1)]
    filling = [asyncio.create_task(fetcher.fill(edit)) for edit in edits]
    while len(names.asked) < LOOKUPS:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    for task in filling:
        task.cancel()
    ended = await asyncio.gather(*filling, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)


async def test_only_public_addresses_are_dialled(web: Web) -> None:
    with pytest.raises(httpcore.ConnectError):
        await PublicNetwork(tcp=web).connect_tcp("127.0.0.1", 443)
    assert web.dialled == []


def test_a_name_that_hangs_holds_up_no_exit() -> None:
    program = """
import asyncio, time
from retouch_gateway.network import PublicNetwork
async def main():
    network = PublicNetwork(lambda name: time.sleep(60))
    try:
        await asyncio.wait_for(network.addresses("slow.example", asyncio.get_running_loop().time()), 0.1)
    except TimeoutError:
        print("left")
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=20, check=True
    )
    assert (done.stdout, done.stderr) == (b"left\n", b"")


async def test_the_system_has_no_thread(
    hanging: tuple[Fetcher, Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    fetcher, _ = hanging
    fetcher.seconds = 5
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(LOOKUPS + 1):
            with pytest.raises(Busy):
                await fetcher.fill(edit_of(image0="https://pictures.example/cat.png"))
    await fetcher.fill(edit_of(image0="https://pictures.example/cat.png"))
