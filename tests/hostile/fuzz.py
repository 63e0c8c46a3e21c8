"""What parses strangers' bytes, one function each, for a fuzzer that is guided by coverage: `make fuzz`.

    python -m tests.hostile.fuzz TARGET [-max_total_time=SECONDS] [libFuzzer's other flags] [FOLDER …]

A target lets nothing out but what it is to raise. Whatever else comes, libFuzzer keeps the bytes that did it in a file.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from python_multipart import multipart as parser

from retouch_cli import marks
from retouch_cli.photos import format_of
from retouch_gateway import dialects, fields, forms, json_body, multipart, values
from retouch_gateway.errors import BadRequest, envelope
from retouch_gateway.multipart import Form
from retouch_server import containers, images, jumbf
from retouch_server.errors import InvalidRequest
from tests import stores
from tests.hostile import bodies, pictures
from tests.signing import Studio, signed

MOST = 2**22
LIMITS = images.InputLimits(max_pixels=2**18)
CAPTURED = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
MANIFEST: dict[str, Any] = {
    "claim_generator_info": [{"name": "Camera"}],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": CAPTURED}]},
        },
        {"label": "org.example.note", "data": {"a": "note"}},
    ],
}


def picture(data: bytes) -> None:
    """A picture: decoded, or refused by its field's name."""
    with contextlib.suppress(InvalidRequest):
        images.decode(data, "images[0]", LIMITS)


def container(data: bytes) -> None:
    """What a decoder is shown: never longer than it was, and itself when it is made slim again."""
    containers.orientation(data)
    try:
        slim = containers.slim(data)
    except ValueError:
        return
    assert len(slim.data) <= len(data)
    assert containers.slim(slim.data).data == slim.data


def manifest(data: bytes) -> None:
    """Of which boxes a picture's C2PA manifests consist, or that this cannot be read."""
    try:
        boxes = jumbf.boxes(data)
    except jumbf.Unreadable:
        return
    assert 0 < len(boxes) <= jumbf.MOST_BOXES
    assert all(0 < len(box.path) <= jumbf.DEPTH and box.size < len(data) for box in boxes)


def mark(data: bytes) -> None:
    """What `retouch verify` reads of a picture: its mark, or that it is damaged."""
    if format_of(data[:12]):
        with contextlib.suppress(marks.Damaged):
            marks.read(data)


def json(data: bytes) -> None:
    """A JSON body: an edit, or refused."""
    _edit(lambda: dialects.from_json(data, MOST))


def form(data: bytes) -> None:
    """A form, in two pieces: an edit, or refused."""

    def read() -> dialects.Edit:
        fed = Form("multipart/form-data; boundary=b")
        fed.feed(data[: len(data) // 2])
        fed.feed(data[len(data) // 2 :])
        return dialects.from_form(fed.parts(), MOST)

    _edit(read)


def _edit(read: Callable[[], dialects.Edit]) -> None:
    try:
        edit = read()
    except BadRequest as refused:
        orjson.dumps(envelope(refused.status, refused.message, refused.param))  # as it is answered
        return
    assert edit.request.images
    edit.request.SerializeToString()
    edit.digest()


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (picture, container, manifest, mark, json, form)
}


def seeds(target: str) -> Iterator[bytes]:
    """Bytes to begin with."""
    if target in ("manifest", "mark"):
        yield from _signed()
    if target in ("picture", "container", "mark"):
        yield from (make() for make in (*pictures.BROKEN.values(), *pictures.POLYGLOTS.values()))
    if target in ("json", "form"):
        make = bodies.forms if target == "form" else bodies.jsons
        yield from (asked.raw.partition(b"\r\n\r\n")[2] for asked in make(300, 1))


def _signed() -> Iterator[bytes]:
    """Pictures with manifests: a camera's, one that was edited and has another in it, and a store in parts."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Studio(Path(folder)).issue()
        plain = stores.picture("png")
        camera = signed(plain, pair, MANIFEST)
        about = {"title": "input", "relationship": "componentOf"}
        edited = stores.store_of(signed(plain, pair, MANIFEST, ingredients=[(about, camera)]))
    yield from (make(edited) for make in (stores.png_of, stores.jpeg_of, stores.webp_of))
    halves = (edited[:1000], edited[:8] + edited[1000:])
    parts = (stores.app11(1, part, half) for part, half in enumerate(halves, 1))
    yield stores.jpeg_with(stores.app11(7, 1, stores.superbox(b"xml ", b"other")), *parts)


_MODULES = (
    containers,
    images,
    jumbf,
    marks,
    dialects,
    fields,
    forms,
    json_body,
    multipart,
    values,
    parser,
)


def _functions() -> Iterator[Callable[..., object]]:
    """Those whose branches guide the fuzzer."""
    for module in _MODULES:
        owners = [module, *(each for each in vars(module).values() if inspect.isclass(each))]
        for owner in owners:
            if getattr(owner, "__module__", module.__name__) == module.__name__:
                yield from filter(inspect.isfunction, vars(owner).values())


def main() -> None:
    import atheris  # type: ignore[import-untyped]  # which `make fuzz` installs

    target, *arguments = sys.argv[1:]
    for function in _functions():
        atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds(target)):
            (Path(folder) / str(number)).write_bytes(data)
        flags = ["-max_len=65536", "-timeout=10", "-rss_limit_mb=4096", *arguments, folder]
        atheris.Setup([sys.argv[0], *flags], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
