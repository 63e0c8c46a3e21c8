"""What a picture says of how it was made, in XMP; the standard library is enough to find that in the three formats."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from retouch_cli.photos import format_of

# Of a packet, after inflating; most have a few kilobytes.
MAX_XMP_BYTES = 2**20
PNG_KEYWORD = b"XML:com.adobe.xmp"
JPEG_NAME = b"http://ns.adobe.com/xap/1.0/\0"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
TOOL = "{http://ns.adobe.com/xap/1.0/}CreatorTool"

BY_AI = {"trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic"}
# IPTC's Digital Source Types, https://cv.iptc.org/newscodes/digitalsourcetype/, in words.
WORDS = {
    "trainedAlgorithmicMedia": "made by AI",
    "compositeWithTrainedAlgorithmicMedia": "edited by AI",
    "compositeSynthetic": "composed, with synthetic parts",
    "algorithmicMedia": "made by an algorithm that was not trained",
    "algorithmicallyEnhanced": "enhanced by an algorithm",
    "composite": "composed of several",
    "compositeCapture": "composed of several photos",
    "computationalCapture": "photographed, with computing",
    "digitalCapture": "photographed",
    "negativeFilm": "scanned from negative film",
    "positiveFilm": "scanned from positive film",
    "print": "scanned from a print",
    "screenCapture": "taken from a screen",
    "virtualRecording": "recorded in a virtual world",
    "humanEdits": "edited by a person",
    "digitalCreation": "made by a person with software",
    "dataDrivenMedia": "made from data",
}


class Damaged(Exception):
    """Its parts do not fit together."""


@dataclass(frozen=True)
class Mark:
    """format: png, jpeg or webp. source_type: an IPTC address, as it stands there. fault: why XMP cannot be read.

    manifest: whether there is a C2PA manifest.
    """

    format: str
    source_type: str | None = None
    tool: str | None = None
    fault: str | None = None
    manifest: bool = False


def code(source_type: str | None) -> str:
    """The last part of a source type's address, which is its name."""
    return (source_type or "").rpartition("/")[2]


def words(source_type: str) -> str:
    name = code(source_type)
    return f"{WORDS[name]} ({name})" if name in WORDS else source_type


def read(data: bytes) -> Mark:
    """The mark of an encoded PNG, JPEG or WebP. Raises Damaged."""
    format_ = format_of(data[:12]) or ""
    packet, manifest = {"png": _png, "jpeg": _jpeg, "webp": _webp}[format_](data)
    if packet is None:
        return Mark(format_, manifest=manifest)
    try:
        source_type, tool = _said(packet)
    except ValueError as error:
        return Mark(format_, fault=str(error), manifest=manifest)
    return Mark(format_, source_type, tool, manifest=manifest)


Found = tuple[bytes | None, bool]
"""The first XMP packet, and whether there is a manifest."""


def _png(data: bytes) -> Found:
    packet, manifest, at, kind = None, False, 8, b""
    while kind != b"IEND":
        if len(data) < at + 12:
            raise Damaged
        length, kind = struct.unpack_from(">I4s", data, at)
        body, at = data[at + 8 : at + 8 + length], at + 12 + length
        if len(data) < at:
            raise Damaged
        if kind == b"iTXt" and packet is None:
            packet = _itxt(body)
        manifest = manifest or kind == b"caBX"
    return packet, manifest


def _itxt(body: bytes) -> bytes | None:
    """The text of an iTXt chunk, where it is XMP."""
    keyword, _, rest = body.partition(b"\0")
    if keyword != PNG_KEYWORD:
        return None
    text = rest[2:].split(b"\0", 2)[-1]
    if rest[:1] != b"\1":
        return text
    try:
        return zlib.decompressobj().decompress(text, MAX_XMP_BYTES + 1)
    except zlib.error:
        return b""


def _jpeg(data: bytes) -> Found:
    packet, manifest = None, False
    for marker, body in _segments(data):
        if marker == 0xE1 and body.startswith(JPEG_NAME) and packet is None:
            packet = body[len(JPEG_NAME) :]
        # JP, the box's number (2 bytes), the part's (4), the box's head (8), its description's (8), and its type.
        elif marker == 0xEB and body.startswith(b"JP"):
            manifest = manifest or body[24:28] == b"c2pa"
    return packet, manifest


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """A JPEG's markers and what they hold, up to its first scan: metadata comes before."""
    at, marker = 2, 0
    while marker != 0xDA:
        while data[at : at + 2] == b"\xff\xff":  # fill
            at += 1
        if len(data) < at + 4 or data[at] != 0xFF:
            raise Damaged
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if length < 2 or len(data) < at + 2 + length:
            raise Damaged
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def _webp(data: bytes) -> Found:
    packet, manifest, at = None, False, 12
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < end:
        raise Damaged
    while at < end:
        kind, length = struct.unpack_from("<4sI", data, at) if at + 8 <= end else (b"", 0)
        if not kind or at + 8 + length > end:
            raise Damaged
        if kind == b"XMP " and packet is None:
            packet = data[at + 8 : at + 8 + length]
        manifest = manifest or kind == b"C2PA"
        at += 8 + length + length % 2
    return packet, manifest


def _said(packet: bytes) -> tuple[str | None, str | None]:
    """Source type and tool. Raises ValueError.

    What only hostile XML has is refused unread: a document type, which is where entities are declared.
    """
    if len(packet) > MAX_XMP_BYTES:
        raise ValueError("too long")
    try:
        text = packet.decode("utf-8-sig").rstrip("\0")
        if "<!DOCTYPE" in text:
            raise ValueError("has a document type")
        root = ElementTree.fromstring(text)  # noqa: S314 bounded, and without entities
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except ElementTree.ParseError:
        raise ValueError("not XML") from None
    found: dict[str, str] = {}
    for element in root.iter():
        said = {**element.attrib, element.tag: element.text or element.get(f"{RDF}resource") or ""}
        for name in (SOURCE_TYPE, TOOL):
            if value := said.get(name, "").strip():
                found.setdefault(name, value)
    return found.get(SOURCE_TYPE), found.get(TOOL)
