"""What a decoder is shown of a stranger's PNG or JPEG: all that makes pixels, and a colour profile once.

Pillow goes through a file's pieces in Python, and through all of them: it inflates each text and each profile, joins
EXIF to EXIF, steps over filling byte by byte. 4 MiB of them took it 14 s. None of that is of use here: of metadata only
the orientation is read, by `orientation`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

# Chunks or segments, most; a photo has some hundreds at the worst.
MAX_PIECES = 2**16
# Bytes of EXIF that are looked at: as many as a JPEG's segment may have.
MAX_EXIF = 2**16

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# PNG: pixels, and what tells that there are several pictures. All others come once, or are left out.
_MANY = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"fdAT"})
_KIND = re.compile(rb"\w{4}")
# JPEG, T.81 annex B: a marker, behind its last fill byte. Of one length, so that no fill bytes are gone through twice.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # TEM, RSTn, SOI: without a length
_EOI, _SOS, _APP0, _APP1, _APP2, _APP14, _COM = 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_EXIF, _PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"
_ORIENTATION = 0x0112
_SHORT = 3


@dataclass(frozen=True)
class Slim:
    """A picture without what is of no use; `exif`: the first one, cut to MAX_EXIF bytes, or nothing."""

    data: bytes
    exif: bytes = b""


def slim(data: bytes) -> Slim:
    """A PNG or JPEG made slim; whatever else it is, as it is.

    What is damaged is left for the decoder to find, unless it could not be told where the next piece begins. Raises
    ValueError then, and for more than MAX_PIECES.
    """
    if data.startswith(_PNG):
        return _png(data)
    return _jpeg(data) if data.startswith(_JPEG) else Slim(data)


def orientation(exif: bytes) -> int:
    """1..8, from EXIF's first directory; 1 where there is none that makes sense."""
    tiff = exif.removeprefix(_EXIF)[:MAX_EXIF]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if not order:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, place)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _png(data: bytes) -> Slim:
    kept, exif, once = [_PNG], b"", {b"iCCP", b"eXIf"}
    at = len(_PNG)
    for _ in range(MAX_PIECES):
        head = data[at : at + 8]
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = at + 12 + length
        if kind == b"IEND" or end > len(data) or not _KIND.fullmatch(kind):
            # The last one; or there is none behind it that can be found, and no decoder goes on either.
            kept.append(data[at:end])
            return Slim(b"".join(kept), exif)
        if kind in _MANY:
            kept.append(data[at:end])
        elif kind in once:
            once.remove(kind)
            if kind == b"iCCP":
                kept.append(data[at:end])
            else:
                exif = data[at + 8 : end - 4][:MAX_EXIF]
        at = end
    raise _too_many()


def _jpeg(data: bytes) -> Slim:
    kept, exif = [_JPEG], b""
    at = len(_JPEG)
    for _ in range(MAX_PIECES):
        found = _MARKER.search(data, at)
        if not found or (marker := found[0][1]) in (_SOS, _EOI):
            kept.append(data[found.end() - 2 :] if found else b"")
            return Slim(b"".join(kept), exif)
        at = found.end()
        if marker in _ALONE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2:
            raise ValueError("a segment has no length")
        body, at = data[at + 2 : at + length], at + length
        if marker == _APP1 and body.startswith(_EXIF):
            exif = exif or body
        elif _tells_colours(marker, body):
            kept.append(data[found.end() - 2 : at])
    raise _too_many()


def _tells_colours(marker: int, body: bytes) -> bool:
    """Of an application's segments and comments: JFIF, Adobe's and a colour profile's; and all others."""
    if marker == _APP2:
        return body.startswith(_PROFILE)
    return marker in (_APP0, _APP14) or not (marker == _COM or marker & 0xF0 == _APP0)


def _too_many() -> ValueError:
    return ValueError(f"it is in more than {MAX_PIECES} pieces")
