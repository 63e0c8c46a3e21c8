"""Pictures as they are given on the command line: found, and looked at before anything is sent."""

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from retouch_cli.errors import Failure, Refused, WrongCommandLine

STDIN = "-"
# What is read into memory at most: of standard input and of pipes, whose length nobody knows beforehand.
MAX_PIPED_BYTES = 256 * 2**20
HEAD_BYTES = 12


@dataclass(frozen=True)
class Photo:
    """One picture: what it was called, and its bytes, to be read from the start as often as it is sent."""

    name: str
    file: BinaryIO
    size: int


@contextmanager
def opened(name: str) -> Iterator[Photo]:
    """The picture in a file, a pipe, or standard input (`-`), for as long as it is sent.

    Raises Failure where it cannot be read, Refused where it is empty, too long, or no PNG, JPEG or WebP by its content.
    """
    try:
        photo = _standard_input() if name == STDIN else _file(name)
        start = photo.file.read(HEAD_BYTES)
        photo.file.seek(0)
    except OSError as error:
        raise Failure(f"cannot read {shown(name)}: {error.strerror}") from error
    with photo.file:
        if not photo.size:
            raise Refused(f"{shown(name)} is empty", option=name)
        if not format_of(start):
            raise Refused(f"{shown(name)} is not a PNG, JPEG or WebP image", option=name)
        yield photo


def format_of(start: bytes) -> str | None:
    """png, jpeg or webp, by an image's first bytes."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None


def shown(name: str) -> str:
    return "standard input" if name == STDIN else name


def read_text(name: str) -> str:
    """A file's text, or standard input's (`-`), without what marks it as UTF-8 and the line break at its end.

    Raises Failure.
    """
    try:
        if name == STDIN:
            data = sys.stdin.buffer.read()
        else:
            with open(name, "rb") as file:
                data = file.read()
        return data.decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise Failure(f"cannot read {shown(name)}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise Failure(f"cannot read {shown(name)}: it is not text in UTF-8") from None


def _standard_input() -> Photo:
    if sys.stdin.isatty():
        raise WrongCommandLine("- is standard input, which is the terminal: send a picture into it")
    return _in_memory(STDIN, sys.stdin.buffer)


def _file(name: str) -> Photo:
    file = open(name, "rb")  # noqa: SIM115 by opened()
    about = os.fstat(file.fileno())
    if stat.S_ISREG(about.st_mode):
        return Photo(name, file, about.st_size)
    with file:
        return _in_memory(name, file)


def _in_memory(name: str, source: BinaryIO) -> Photo:
    data = source.read(MAX_PIPED_BYTES + 1)
    if len(data) > MAX_PIPED_BYTES:
        raise Refused(f"{shown(name)} does not end within {MAX_PIPED_BYTES >> 20} MiB")
    return Photo(name, io.BytesIO(data), len(data))
