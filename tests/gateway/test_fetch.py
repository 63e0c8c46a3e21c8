"""Images by address: from public hosts alone, whatever a name says a moment later."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from retouch_gateway import fetch
from retouch_gateway.errors import BadRequest
from retouch_gateway.fetch import OFF, UNREACHED, Fetcher
from retouch_gateway.network import PublicNetwork
from tests.gateway.conftest import Live, StartGateway, b64, error_of, picture
from tests.gateway.web import (
    OTHER,
    PUBLIC,
    PUBLIC_V6,
    Page,
    Web,
    authority,
    edit_of,
    fetcher,
    page,
    refusal,
    silence,
    web,
)

__all__ = ["authority", "fetcher", "web"]


async def test_images_and_a_mask(fetcher: Fetcher, web: Web) -> None:
    web.pages["/dog.jpg?size=1"] = page(picture(kind="JPEG"))
    web.pages["/mask"] = page(picture((4, 4)))
    edit = edit_of(
        image0="https://pictures.example/cat.png",
        image1="https://other.example:443/dog.jpg?size=1#top",
        mask="https://pictures.example/mask",
    )
    await fetcher.fill(edit)
    assert list(edit.request.images) == [picture(), picture(kind="JPEG")]
    assert edit.request.mask == picture((4, 4))
    assert web.dialled == [(PUBLIC, 443)] * 3
    for head in web.heads:
        lines = head.lower().split("\r\n")
        assert "accept-encoding: identity" in lines
        assert not any(line.startswith(("cookie", "authorization", "referer")) for line in lines)
    hosts = {line for head in web.heads for line in head.split("\r\n") if "host:" in line}
    assert hosts == {"host: pictures.example", "host: other.example"}


async def test_only_the_fields_that_are_addresses(fetcher: Fetcher) -> None:
    edit = edit_of(image1="https://pictures.example/cat.png")
    edit.request.images[:] = [b"given", b""]
    await fetcher.fill(edit)
    assert list(edit.request.images) == [b"given", picture()]


async def test_off() -> None:
    fetcher = Fetcher(False, 100_000, 2)
    await fetcher.fill(edit_of())
    with pytest.raises(BadRequest) as refused:
        await fetcher.fill(edit_of(image0="https://pictures.example/cat.png", mask="https://a/"))
    assert refused.value.message == f"images[0]: {OFF}; mask: {OFF}"
    await fetcher.close()


async def test_every_field_that_fails_is_named(fetcher: Fetcher) -> None:
    edit = edit_of(
        image0="https://nowhere.example/",
        image1="https://pictures.example/cat.png",
        mask="https://pictures.example/gone",
    )
    with pytest.raises(BadRequest) as refused:
        await fetcher.fill(edit)
    assert refused.value.message == f"images[0]: {UNREACHED}; mask: its host answered 404"
    assert refused.value.param == "images[0]"


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/cat.png",
        "ftp://pictures.example/",
        "file:///etc/passwd",
        "https:///cat.png",
        "https://user@pictures.example/",
        "https://user:word@pictures.example/",
        "https://pictures.example:8443/",
        "https://pictures.example:0/",
        "https://pictures.example\\@other.example/",
        "//pictures.example/",
        "",
    ],
)
async def test_addresses_that_are_not_asked(fetcher: Fetcher, web: Web, url: str) -> None:
    assert await refusal(fetcher, url) == (
        "must be an https address at port 443, without user or password"
    )
    assert web.dialled == []


async def test_what_is_no_address(fetcher: Fetcher) -> None:
    assert await refusal(fetcher, "https://[::1/") == "is not an address"
    assert await refusal(fetcher, "https://a/\r\nx: y") == "is not an address"
    assert await refusal(fetcher, "https://a/\ud800") == "is not an address"


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        [PUBLIC, "10.0.0.1"],
        ["64:ff9b::a9fe:a9fe"],
        ["fe80::1%1"],
        [],
    ],
)
async def test_a_name_for_the_inside(fetcher: Fetcher, web: Web, answers: list[str]) -> None:
    web.names["pictures.example"] = [answers]
    assert await refusal(fetcher, "https://pictures.example/cat.png") == UNREACHED
    assert web.dialled == []


async def test_a_name_that_changes_its_mind(fetcher: Fetcher, web: Web) -> None:
    """What was checked is what is dialled: the second answer comes too late to matter."""
    web.names["pictures.example"] = [[PUBLIC], ["127.0.0.1"]]
    await fetcher.fill(edit_of(image0="https://pictures.example/cat.png"))
    assert web.dialled == [(PUBLIC, 443)]
    assert await refusal(fetcher, "https://pictures.example/cat.png") == UNREACHED
    assert web.dialled == [(PUBLIC, 443)]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "2130706433", "0x7f.1", "localhost", "127.1"]
)
async def test_literals_by_the_systems_own_resolver(web: Web, host: str) -> None:
    fetcher = Fetcher(True, 100_000, 2, network=PublicNetwork(tcp=web))
    assert await refusal(fetcher, f"https://{host}/") == UNREACHED
    await fetcher.close()
    assert web.dialled == []


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a%00b", "a..b", "x" * 300, "xn--"])
async def test_names_that_none_can_have(web: Web, host: str) -> None:
    fetcher = Fetcher(True, 100_000, 2, network=PublicNetwork(tcp=web))
    assert await refusal(fetcher, f"https://{host}/") == UNREACHED
    await fetcher.close()


async def test_a_name_that_tls_cannot_have(fetcher: Fetcher, web: Web) -> None:
    web.names[".example"] = [[PUBLIC]]
    assert await refusal(fetcher, "https://.example/") == UNREACHED
    assert web.dialled == [(PUBLIC, 443)]


async def test_the_next_address_where_one_is_dead(fetcher: Fetcher, web: Web) -> None:
    web.names["pictures.example"] = [[PUBLIC_V6, PUBLIC]]
    web.dead = {PUBLIC_V6}
    await fetcher.fill(edit_of(image0="https://pictures.example/cat.png"))
    assert web.dialled == [(PUBLIC_V6, 443), (PUBLIC, 443)]
    web.dead = {PUBLIC_V6, PUBLIC}
    assert await refusal(fetcher, "https://pictures.example/cat.png") == UNREACHED


async def test_the_certificate_is_the_names(fetcher: Fetcher) -> None:
    assert await refusal(fetcher, "https://stranger.example/cat.png") == UNREACHED


async def test_redirects(fetcher: Fetcher, web: Web) -> None:
    web.names["other.example"] = [[OTHER]]
    for i, status in enumerate((301, 302, 307)):
        web.pages[f"/{i}"] = page(b"", f"{status} Moved", location=f"/{i + 1}")
    web.pages["/3"] = page(picture())
    web.pages["/away"] = page(b"", "303 See", location="https://other.example/cat.png")
    await fetcher.fill(edit_of(image0="https://pictures.example/0"))
    web.dialled.clear()
    await fetcher.fill(edit_of(image0="https://pictures.example/away"))
    assert web.dialled == [(PUBLIC, 443), (OTHER, 443)]

    web.pages["/3"] = page(b"", "308 Moved", location="/cat.png")
    assert await refusal(fetcher, "https://pictures.example/0") == "is redirected more than 3 times"


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("http://pictures.example/cat.png", "must be an https address at port 443"),
        ("https://pictures.example:22/", "must be an https address at port 443"),
        ("file:///etc/passwd", "must be an https address at port 443"),
        ("https://inside.example/", UNREACHED),
        ("https://[::ffff:a9fe:a9fe]/", UNREACHED),
        ("https://[::1/", "is not an address"),
    ],
)
async def test_redirects_to_what_is_not_asked(
    fetcher: Fetcher, web: Web, location: str, told: str
) -> None:
    web.names |= {"inside.example": [["10.0.0.1"]], "::ffff:a9fe:a9fe": [["::ffff:a9fe:a9fe"]]}
    web.pages["/"] = page(b"", "302 Found", location=location)
    assert (await refusal(fetcher, "https://pictures.example/")).startswith(told)
    assert web.dialled == [(PUBLIC, 443)]


async def test_redirects_to_a_name_that_changes_its_mind(fetcher: Fetcher, web: Web) -> None:
    web.names["pictures.example"] = [[PUBLIC], ["127.0.0.1"]]
    web.pages["/"] = page(b"", "302 Found", location="/cat.png")
    assert await refusal(fetcher, "https://pictures.example/") == UNREACHED
    assert web.dialled == [(PUBLIC, 443)]


async def test_nothing_of_an_address_is_logged(
    fetcher: Fetcher, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    """Signed addresses are secrets, at whatever level the gateway logs."""
    caplog.set_level(logging.DEBUG)
    web.pages["/one?secret"] = page(b"", "302 Found", location="/two?secret")
    web.pages["/two?secret"] = page(picture())
    await fetcher.fill(edit_of(image0="https://pictures.example/one?secret"))
    await refusal(fetcher, "https://nowhere.example/?secret")
    assert "secret" not in caplog.text
    assert "pictures" not in caplog.text


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(2**14))
        await writer.drain()


async def interim(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 500)
        await writer.drain()
        await asyncio.sleep(0)  # drain does not always


async def crumbs(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n" * 1000)
        await writer.drain()


async def extensions(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1;" + b"x" * 60_000 + b"\r\nx\r\n")
        await writer.drain()
        await asyncio.sleep(0)  # drain does not always


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (page(b"<html>"), "is not a PNG, JPEG or WebP image"),
        (page(b""), "is not a PNG, JPEG or WebP image"),
        (page(picture(), "500 Oh"), "its host answered 500"),
        (page(b"", "302 Found"), "its host answered 302"),
        (page(picture(), "206 Part"), "its host answered 206"),
        (page(picture(), content_encoding="gzip"), "came compressed"),
        (page(bytes(100_001)), "has more than the 100000 bytes that are allowed"),
        (endless, "has more than the 100000 bytes that are allowed"),
        (crumbs, "came in crumbs"),
        (page(picture())[:-1], UNREACHED),
        (b"", UNREACHED),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", UNREACHED),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n", UNREACHED),
    ],
)
async def test_answers_that_are_no_image(
    fetcher: Fetcher, web: Web, answer: Page, told: str
) -> None:
    web.pages["/"] = answer
    assert await refusal(fetcher, "https://pictures.example/") == told


@pytest.mark.parametrize("answer", [interim, extensions])
async def test_what_goes_on_without_end_is_soon_over(
    fetcher: Fetcher, web: Web, answer: Page
) -> None:
    fetcher.seconds = 30
    web.pages["/"] = answer
    spent = time.process_time()
    async with asyncio.timeout(5):
        assert await refusal(fetcher, "https://pictures.example/") == UNREACHED
    assert time.process_time() - spent < 1


async def test_interim_answers(fetcher: Fetcher, web: Web) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"
    web.pages["/"] = hints * 3 + page(picture())
    await fetcher.fill(edit_of(image0="https://pictures.example/"))


async def dripping(writer: asyncio.StreamWriter, drop: bytes = b"x") -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if drop else b"")
    for _ in range(600):
        if writer.transport.is_closing():
            return
        writer.write(drop)
        await asyncio.sleep(0.05)


async def mute(writer: asyncio.StreamWriter) -> None:
    await dripping(writer, b"")


@pytest.mark.parametrize("slow", [mute, dripping])
async def test_one_time_for_all(fetcher: Fetcher, web: Web, slow: Page) -> None:
    """Nine images, four at a time: they share the time, and a slow one takes no other's place for ever."""
    fetcher.seconds = 1.5
    web.pages["/slow"] = slow
    links = {f"image{i}": "https://pictures.example/slow" for i in range(9)}
    started = time.monotonic()
    with pytest.raises(BadRequest) as refused:
        await fetcher.fill(edit_of(**links))
    assert 1.5 <= time.monotonic() - started < 4.4  # each its own: three times as long
    assert refused.value.message.count(UNREACHED) == 9
    assert len(web.dialled) == fetch.AT_ONCE_PER_EDIT


@pytest.mark.parametrize("stage", ["handshake", "answer"])
async def test_a_caller_that_leaves(
    fetcher: Fetcher, web: Web, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays open, not even where TLS was still being spoken of."""
    closed = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        asked.set()
        await reader.read()
        writer.close()
        closed.set()

    asked = asyncio.Event()
    web.pages["/"] = silence
    listening = await asyncio.start_server(mute, "127.0.0.1", 0)
    if stage == "handshake":
        monkeypatch.setattr(web, "port", listening.sockets[0].getsockname()[1])
    filling = asyncio.create_task(fetcher.fill(edit_of(image0="https://pictures.example/")))
    async with asyncio.timeout(10):
        while not (asked.is_set() or web.heads):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        filling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await filling
        assert fetcher.pool.connections == []
        if stage == "handshake":
            await closed.wait()
    listening.close()


async def test_over_the_wire(gateway: Live, start: StartGateway) -> None:
    """Off unless asked for; and when on, the way out is the one that dials public hosts alone."""
    address = "https://localhost/cat.png"
    off = await gateway.edit(images=[address], mask={"image_url": address})
    assert error_of(off, 400, "images[0]")["message"] == f"images[0]: {OFF}; mask: {OFF}"
    live = await start(fetch_images=True)
    on = await live.edit(images=[b64(picture()), {"image_url": {"url": address}}])
    assert error_of(on, 400, "images[1]")["message"] == f"images[1]: {UNREACHED}"
    form = {"prompt": (None, "warmer"), "image[]": (None, address)}
    on = await live.client.post("/v1/images/edits", files=form)
    assert error_of(on, 400, "images[0]")["message"] == f"images[0]: {UNREACHED}"
