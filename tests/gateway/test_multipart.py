"""Forms taken apart, however their senders write them and the network cuts them."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator

import pytest

from retouch_gateway.errors import BadRequest
from retouch_gateway.multipart import MAX_PARTS, Form, Part

BOUNDARY = "----form7MA4YWxk"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
DATA = bytes(range(256)) * 4 + b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n\r\n"


def named(name: str, more: str = "") -> str:
    return f'Content-Disposition: form-data; name="{name}"{more}'


def body(*parts: tuple[str, bytes], boundary: str = BOUNDARY) -> bytes:
    """`parts`: headers and data."""
    written = [f"--{boundary}\r\n{head}\r\n\r\n".encode() + data for head, data in parts]
    return b"\r\n".join([*written, f"--{boundary}--\r\n".encode()])


def parsed(
    whole: bytes, content_type: str = TYPE, sizes: Iterator[int] | None = None
) -> list[Part]:
    form = Form(content_type)
    while whole:
        size = next(sizes) if sizes else len(whole)
        form.feed(whole[:size])
        whole = whole[size:]
    return form.parts()


def contents(parts: list[Part]) -> list[tuple[str, bool, bytes]]:
    return [(part.name, part.filename is not None, bytes(part.data)) for part in parts]


THREE = body(
    (named("image[]", '; filename="a.png"') + "\r\nContent-Type: image/png", DATA),
    (named("prompt"), "wärmer".encode()),
    (named("n"), b""),
)
CONTENTS = [("image[]", True, DATA), ("prompt", False, "wärmer".encode()), ("n", False, b"")]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 64, 1000, 10**6])
def test_in_pieces_of_one_size(size: int) -> None:
    def sizes() -> Iterator[int]:
        while True:
            yield size

    assert contents(parsed(b"a preamble\r\n" + THREE + b"an epilogue", sizes=sizes())) == CONTENTS


@pytest.mark.parametrize("seed", range(50))
def test_in_any_pieces(seed: int) -> None:
    chance = random.Random(seed)

    def sizes() -> Iterator[int]:
        while True:
            yield chance.choice([1, 2, 3, 7, 40, 300])

    assert contents(parsed(THREE, sizes=sizes())) == CONTENTS


@pytest.mark.parametrize(
    "head",
    [
        'Content-Disposition: form-data; name="x"; filename="a.png"\r\nContent-Type: text/html',
        "content-disposition: form-data;name=x;filename=a.png",
        'CONTENT-DISPOSITION: form-data; filename="a;b.png"; name="x"',
        'Content-Disposition: form-data; name="x"; filename="=?UTF-8?B?w6k=?="',
        'Content-Disposition: form-data; name="x"; filename="é.png"',
        'Content-Disposition: form-data; name="x"; filename="a\\"b.png"',
        'Content-Disposition: form-data; name="x"; filename=""',
        'X-Other: 1\r\nContent-Disposition: form-data; name="x"; filename=a\r\nContent-Length: 9',
    ],
)
def test_headers_of_a_file(head: str) -> None:
    assert contents(parsed(body((head, DATA)))) == [("x", True, DATA)]


@pytest.mark.parametrize("encoding", ["binary", "8bit", "7bit", "BINARY"])
def test_bytes_as_they_are(encoding: str) -> None:
    head = f"{named('x')}\r\nContent-Transfer-Encoding: {encoding}"
    assert contents(parsed(body((head, DATA)))) == [("x", False, DATA)]


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "x-own"])
def test_other_encodings_are_refused(encoding: str) -> None:
    head = f"{named('x')}\r\nContent-Transfer-Encoding: {encoding}"
    with pytest.raises(BadRequest, match=r"^x: has a Content-Transfer-Encoding"):
        parsed(body((head, b"AAAA")))


def test_a_latin_1_name() -> None:
    head = f"--{BOUNDARY}\r\n".encode() + 'Content-Disposition: form-data; name="é"'.encode(
        "latin-1"
    )
    assert parsed(head + f"\r\n\r\n\r\n--{BOUNDARY}--".encode())[0].name == "é"


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="a b:c"',
        'Multipart/Form-Data; charset=utf-8; Boundary="a b:c"; x=y',
    ],
)
def test_boundaries_may_be_quoted(content_type: str) -> None:
    assert contents(parsed(body((named("x"), b"1"), boundary="a b:c"), content_type)) == [
        ("x", False, b"1")
    ]


@pytest.mark.parametrize("boundary", ["", "=", '=""', "=" + "b" * 71, "=" + "b" * 100_000])
def test_boundaries_that_are_none(boundary: str) -> None:
    with pytest.raises(BadRequest, match="no boundary"):
        Form(f"multipart/form-data; boundary{boundary}")


def test_an_empty_form() -> None:
    assert parsed(body()) == []


@pytest.mark.parametrize(
    ("whole", "text"),
    [
        (b"", "ends before its last boundary"),
        (b"\r\n\r\n", "ends before its last boundary"),
        (THREE[:-4], "ends before its last boundary"),
        (THREE[:40], "ends before its last boundary"),
        (THREE.replace(b"\r\n", b"\n"), "boundary"),
        (THREE.replace(BOUNDARY.encode(), b"another"), "ends before its last boundary"),
        (b"{}" * 50_000, "its boundary does not come"),
        (body(("Content-Type: text/plain", b"1")), "part 1 has no name"),
        (body((named("x"), b"1"), ("Content-Disposition: form-data", b"1")), "part 2 has no name"),
        (body((named("x") + "\r\nno header", b"")), "invalid character"),
        (body((named("x") + "\r\nX: " + "x" * 5000, b"")), "header size"),
        (body((named("x") + "\r\nX: x" * 20, b"")), "header count"),
        (THREE.replace(BOUNDARY.encode(), BOUNDARY.encode() + b" "), "Did not find CR|whitespace"),
    ],
)
def test_malformed(whole: bytes, text: str) -> None:
    with pytest.raises(BadRequest, match=f"malformed: .*({text})"):
        parsed(whole)


def test_too_many_parts() -> None:
    parts = [(named("x"), b"")] * MAX_PARTS
    assert len(parsed(body(*parts))) == MAX_PARTS
    with pytest.raises(BadRequest, match="more than 64 parts"):
        parsed(body(*parts, parts[0]))


def test_too_many_parts_whose_boundaries_come_in_pieces() -> None:
    form = Form("multipart/form-data; boundary=b")
    form.feed(b"--b\r\n")
    more = f"{named('x')}\r\n\r\n".encode()
    for _ in range(MAX_PARTS):
        form.feed(more + b"\r\n-")
        form.feed(b"-b\r\n")
    with pytest.raises(BadRequest, match="more than 64 parts"):
        form.feed(more)
    assert len(form._collected.parts) == MAX_PARTS


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (b"\r\n--bX" * 40_000, "64 parts"),
        (b"\r\n--b" + b" " * 30_000 + f"\r\n{named('x')}\r\n\r\n".encode(), "whitespace"),
    ],
)
def test_what_the_parser_is_slow_at_is_refused(chunk: bytes, text: str) -> None:
    """What nearly is a boundary, and blanks after one: each byte of them takes it microseconds."""
    form = Form("multipart/form-data; boundary=b")
    form.feed(f"--b\r\n{named('x')}\r\n\r\n".encode())
    with pytest.raises(BadRequest, match=text):
        form.feed(chunk)


def test_blanks_that_begin_where_a_chunk_ends() -> None:
    form = Form("multipart/form-data; boundary=b")
    form.feed(f"--b\r\n{named('x')}\r\n\r\n\r\n--b".encode())
    with pytest.raises(BadRequest, match="whitespace"):
        form.feed(b" " * 1000)


def test_a_form_that_is_dropped_is_freed_at_once() -> None:
    """Not at the garbage collector's next round: it holds what was sent."""
    form = Form(TYPE)
    form.feed(THREE[:500])
    collected = weakref.ref(form._collected)
    gc.disable()
    try:
        del form
        assert collected() is None
    finally:
        gc.enable()
