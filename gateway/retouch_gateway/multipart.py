"""multipart/form-data (RFC 7578), taken apart while it arrives; nothing touches the disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartState, parse_options_header

from retouch_gateway.errors import BadRequest

MAX_PARTS = 64  # an edit with all its fields and images has some forty
MAX_HEADERS, MAX_HEADER_BYTES = 16, 4096  # of one part, and of each of them
MAX_BOUNDARY = 70  # characters, RFC 2046
MAX_PREAMBLE = 64 * 2**10
MAX_CONTENT_TYPE = 1024  # characters that are looked at for the boundary
AS_IS = frozenset({b"", b"7bit", b"8bit", b"binary"})  # Content-Transfer-Encoding

# It warns of each malformed body, which is its sender's affair.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(slots=True)
class Part:
    """One part of a form."""

    name: str
    # None unless it is a file.
    filename: bytes | None
    data: bytearray = field(default_factory=bytearray)

    def take(self) -> bytes:
        """Its data, which it has no more afterwards: an image is not kept twice."""
        taken = bytes(self.data)
        self.data = bytearray()
        return taken


class Form:
    """A body that is fed chunk by chunk. Whatever is wrong with it is a BadRequest."""

    def __init__(self, content_type: str) -> None:
        """`content_type`: the request's header."""
        boundary = parse_options_header(content_type[:MAX_CONTENT_TYPE])[1].get(b"boundary", b"")
        if not 1 <= len(boundary) <= MAX_BOUNDARY:
            raise _malformed(f"Content-Type has no boundary of 1 to {MAX_BOUNDARY} characters")
        self._delimiter = b"\r\n--" + boundary
        self._delimiters = 0
        self._preamble: bytearray | None = bytearray(b"\r\n")  # what comes before a first line, too
        self._collected = _Collected()
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": self._collected.header_name,
                "on_header_value": self._collected.header_value,
                "on_header_end": self._collected.header_end,
                "on_headers_finished": self._collected.headers_end,
                "on_part_data": self._collected.data,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body, however it is cut."""
        if self._preamble is not None:
            chunk = self._begun(self._preamble, chunk)
        self._bound(chunk)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(str(error)) from None
        if self._parser.state == MultipartState.BOUNDARY_PADDING:
            raise _malformed("there is whitespace after a boundary")

    def parts(self) -> list[Part]:
        """All of them, once the whole body was fed."""
        if self._parser.state != MultipartState.END:
            raise _malformed("it ends before its last boundary")
        return self._collected.parts

    def _begun(self, preamble: bytearray, chunk: bytes) -> bytes:
        """What is to be parsed: nothing before the first boundary, which may come in pieces."""
        preamble += chunk
        start = preamble.find(self._delimiter)
        if start < 0 and len(preamble) > MAX_PREAMBLE:
            raise _malformed("its boundary does not come")
        if start < 0:
            return b""
        self._preamble = None
        return bytes(preamble[start + 2 :])

    def _bound(self, chunk: bytes) -> None:
        """Refuse what would take the parser seconds: it goes through delimiters and what follows them by the byte."""
        found = chunk.count(self._delimiter)
        self._delimiters += found
        if self._delimiters > MAX_PARTS:
            raise _too_many()
        if found and any(self._delimiter + blank in chunk for blank in (b" ", b"\t")):
            raise _malformed("there is whitespace after a boundary")


class _Collected:
    """The parts so far. Knows nothing of the parser: a circle would keep images until the next collection."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._headers: dict[bytes, bytes] = {}  # of the part under way
        self._name, self._value = b"", b""  # of the header under way

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def headers_end(self) -> None:
        headers, self._headers = self._headers, {}
        if len(self.parts) == MAX_PARTS:  # whose delimiters came in pieces
            raise _too_many()
        disposition = headers.get(b"content-disposition", b"").decode("latin-1")
        given = parse_options_header(disposition)[1]
        if b"name" not in given:
            raise _malformed(f"part {len(self.parts) + 1} has no name")
        name = _text(given[b"name"])
        if headers.get(b"content-transfer-encoding", b"").strip().lower() not in AS_IS:
            encoded = "has a Content-Transfer-Encoding; its bytes must come as they are"
            raise BadRequest.of([(name[:64], encoded)])
        self.parts.append(Part(name, given.get(b"filename")))

    def data(self, data: bytes, start: int, end: int) -> None:
        # Grown, not gathered: as many pieces of 64 KiB and more would stay in the process's heap once they are free.
        self.parts[-1].data += memoryview(data)[start:end]


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _too_many() -> BadRequest:
    return BadRequest(f"The form has more than {MAX_PARTS} parts.")


def _malformed(why: str) -> BadRequest:
    return BadRequest(f"The form is malformed: {why}.")
