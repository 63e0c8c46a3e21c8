"""Pictures that strangers send: what each is, and how it is made. At most 4 MiB, which is what a server takes.

`BOMBS` want time or memory: large ones of 50 megapixels, as a server takes them, and small ones of endless pieces.
`BROKEN` are damaged, of another kind than they say, or two things at once.
"""

from __future__ import annotations

import itertools
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO

from PIL import Image, ImageCms

from tests.hostile import pieces
from tests.hostile.pieces import EOI, SOI, black, chunk, encoded, exif, header, piece, png, segment

Maker = Callable[[], bytes]
MOST = 4 * 2**20
SIDE = 7071  # 7071² pixels are just within 50 megapixels
MIB = 2**20 - 1  # of zeros: the most that Pillow inflates of a text or a profile
_TURNED = chunk(b"eXIf", exif([(0x0112, 3, 1, 6)]))


def small(format: str = "PNG", mode: str = "RGB", side: int = 16) -> bytes:
    return encoded(Image.linear_gradient("L").resize((side, side)).convert(mode), format)


def _filled(piece: bytes, room: int = MOST - 2**10) -> bytes:
    return piece * (room // len(piece))


def _before(*chunks: bytes) -> bytes:
    return black(8, 8, 8, 2, *chunks)


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _icc(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


def _interlaced() -> bytes:
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
    passes += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    count = sum(
        len(range(y, SIDE, down)) * (1 + 8 * len(range(x, SIDE, right)))
        for x, y, right, down in passes
    )
    return png(header(SIDE, SIDE, 16, 6, 1), chunk(b"IDAT", pieces.zeros(count)))


def _scans(count: int, mode: str) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new(mode, (SIDE, SIDE)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + EOI


def _claims(width: int, height: int) -> bytes:
    """A JPEG of next to nothing whose head says that it is large."""
    data = bytearray(small("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _jpeg(*segments: bytes, at: bytes = b"\xff\xe0") -> bytes:
    """A small one with these before its first `at`."""
    data = small("JPEG")
    place = data.index(at)
    return data[:place] + b"".join(segments) + data[place:]


def _own(marker: bytes) -> bytes:
    """That segment of a small JPEG."""
    data = small("JPEG")
    at = data.index(marker)
    return data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]


def _webp(*chunks: bytes, side: int = 16, flags: int = 0) -> bytes:
    image = encoded(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    return pieces.riff(pieces.canvas(side, side, flags), image, *chunks)


def _frame() -> bytes:
    image = encoded(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    return piece(b"ANMF", bytes(6) + b"\x0f\0\0\x0f\0\0" + bytes(4) + image)


def _apng(frames: int) -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 1, 1, 1)
    return _before(chunk(b"acTL", struct.pack(">II", frames, 0)), chunk(b"fcTL", control))


def _many_texts(keyword: bytes, head: bytes) -> bytes:
    return _before(_filled(chunk(keyword, head + pieces.zeros(MIB))))


def _one_byte_at_a_time() -> bytes:
    data = zlib.compress(os.urandom(16 * (1 + 3 * 1300)), 0)
    return png(header(1300, 16), *(chunk(b"IDAT", data[i : i + 1]) for i in range(len(data))))


_DIRECTORY = [(tag, 1, 3_000_000, 8) for tag in range(65535)]
LARGE: dict[str, Maker] = {
    "1 bit": lambda: black(SIDE, SIDE, 1, 0),
    "grey": lambda: black(SIDE, SIDE, 8, 0),
    "grey of 16 bits": lambda: black(SIDE, SIDE, 16, 0),
    "RGB of 16 bits": lambda: black(SIDE, SIDE, 16, 2),
    "a palette": lambda: black(SIDE, SIDE, 8, 3, chunk(b"PLTE", bytes(768))),
    "a palette with alpha": lambda: black(
        SIDE, SIDE, 8, 3, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(range(256)))
    ),
    "grey with alpha, 16 bits": lambda: black(SIDE, SIDE, 16, 4),
    "RGBA": lambda: black(SIDE, SIDE, 8, 6),
    "RGBA of 16 bits, turned, with a profile": lambda: black(
        SIDE, SIDE, 16, 6, _icc(_profile()), _TURNED
    ),
    "RGBA of 16 bits, interlaced": _interlaced,
    "a progressive JPEG of 64 scans": lambda: _scans(64, "RGB"),
    "a JPEG that ends at once": lambda: _claims(SIDE, SIDE),
    "a wide JPEG": lambda: _claims(65535, 762),
    "a CMYK JPEG": lambda: encoded(Image.new("CMYK", (SIDE, SIDE)), "JPEG"),
    "a lossless WebP with alpha": lambda: encoded(
        Image.new("RGBA", (16383, 3051)), "WEBP", lossless=True, method=0
    ),
}
ENDLESS: dict[str, Maker] = {
    "profiles": lambda: _many_texts(b"iCCP", b"x\0\0"),
    "profiles behind the pixels": lambda: (
        small()[:-12] + _filled(chunk(b"iCCP", b"x\0\0" + pieces.zeros(MIB))) + pieces.END
    ),
    "zTXt": lambda: _many_texts(b"zTXt", b"x\0\0"),
    "zTXt without a keyword": lambda: _many_texts(b"zTXt", b"\0\0"),
    "iTXt": lambda: _many_texts(b"iTXt", b"x\0\1\0\0\0"),
    "iTXt of no language": lambda: _many_texts(b"iTXt", b"x\0\1\0\xff\0\0"),
    "XMP": lambda: _many_texts(b"iTXt", b"XML:com.adobe.xmp\0\1\0\xff\0\0"),
    "tEXt of all names": lambda: _before(*(chunk(b"tEXt", b"%x\0" % i) for i in range(190_000))),
    "EXIF in hexadecimal": lambda: _before(
        chunk(
            b"tEXt",
            b"Raw profile type exif\0\n\n\n" + exif(_DIRECTORY, bytes(2**20)).hex().encode(),
        )
    ),
    "chunks of nothing": lambda: _before(_filled(chunk(b"aaAa"))),
    "chunks of nothing behind the pixels": lambda: small()[:-12] + _filled(chunk(b"aaAa")),
    "pixels in pieces of nothing": lambda: png(
        header(8, 8), _filled(chunk(b"IDAT")), chunk(b"IDAT", pieces.zeros(200))
    ),
    "pixels byte by byte": _one_byte_at_a_time,
    "EXIF's values one over the other": lambda: _before(
        chunk(b"eXIf", exif(_DIRECTORY, bytes(3_000_000)))
    ),
    "EXIF's values one over the other, WebP": lambda: _webp(
        piece(b"EXIF", exif(_DIRECTORY, bytes(3_000_000))), flags=8
    ),
    "EXIF joined to EXIF": lambda: _jpeg(
        segment(0xE1, b"Exif\0\0" + exif([])), _filled(segment(0xE1, b"Exif\0\0" + bytes(80)))
    ),
    "EXIF joined to EXIF, byte by byte": lambda: _jpeg(_filled(segment(0xE1, b"Exif\0\0x"))),
    "comments": lambda: _jpeg(_filled(segment(0xFE))),
    "Photoshop's blocks": lambda: _jpeg(
        _filled(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\1\0\0\0\0\0\0" * 5000))
    ),
    "parts of a profile": lambda: _jpeg(_filled(segment(0xE2, b"ICC_PROFILE\0\1\1"))),
    "fill bytes": lambda: SOI + b"\xff" * (MOST - 2**11) + small("JPEG")[2:],
    "fill bytes before what is no marker": lambda: SOI + b"\xff" * (MOST - 3) + b"\0",
    "fill bytes to the end": lambda: SOI + b"\xff" * (MOST - 2),
    "rubbish between segments": lambda: _jpeg(bytes(MOST - 2**11), at=b"\xff\xdb"),
    "Huffman tables": lambda: _jpeg(_filled(_own(b"\xff\xc4"), MOST - 2**11), at=b"\xff\xc4"),
    "quantisation tables": lambda: _jpeg(_filled(_own(b"\xff\xdb"), MOST - 2**11), at=b"\xff\xdb"),
    "restarts": lambda: small("JPEG")[:-2] + _filled(b"\xff\xd0", MOST - 2**11) + EOI,
    "segments behind the pixels": lambda: small("JPEG")[:-2] + _filled(segment(0xE1), MOST - 2**11),
    "scans": lambda: small("JPEG")[:-2] + _filled(b"\xff\xda\0\0", MOST - 2**11) + EOI,
    "WebP's chunks": lambda: _webp(_filled(piece(b"abcd", b""))),
    "WebP's frames": lambda: pieces.riff(
        pieces.canvas(16, 16, 2), piece(b"ANIM", bytes(6)), _filled(_frame())
    ),
    "a profile of rubbish": lambda: _before(_icc(os.urandom(900_000))),
    "APNG of 2^31 frames": lambda: _apng(2**31 - 1),
    "a column of 50 megapixels": lambda: black(1, 50_000_000, 8, 2),
    "a row of 50 megapixels": lambda: black(50_000_000, 1, 8, 2),
    "60000x60000": lambda: black(60_000, 60_000, 1, 0),
    "a JPEG that says 65535x65535": lambda: _claims(65535, 65535),
    "a WebP that says 16384x10860": lambda: _webp(side=10860),
}
BOMBS = {**LARGE, **ENDLESS}


def _zip() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("run.js", "alert(1)")
    return out.getvalue()


def _with(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _cut(format: str, where: int) -> bytes:
    return small(format)[:where]


PAGE = b"<html><script>alert(1)</script></html>"
# Two things at once: shown as the picture that they are.
POLYGLOTS: dict[str, Maker] = {
    "a PNG that is a ZIP": lambda: small() + _zip(),
    "a PNG with a page in a text": lambda: _before(chunk(b"tEXt", b"Comment\0" + PAGE)),
    "a JPEG with a page in a comment": lambda: _jpeg(segment(0xFE, PAGE)),
    "a JPEG that is a ZIP": lambda: small("JPEG") + _zip(),
    "a WebP with a page behind it": lambda: small("WEBP") + PAGE,
    "a PNG with a PDF in it": lambda: _before(chunk(b"tEXt", b"x\0%PDF-1.7\n1 0 obj<<>>endobj")),
}
# Never a picture, whatever it is called.
NO_PICTURE: dict[str, Maker] = {
    "GIF": lambda: small("GIF"),
    "BMP": lambda: small("BMP"),
    "TIFF": lambda: small("TIFF"),
    "EPS": lambda: small("EPS"),
    "PDF": lambda: b"%PDF-1.7\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
    "SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "a page": lambda: PAGE,
    "ZIP": _zip,
    "GIF and JavaScript": lambda: b"GIF89a/*" + bytes(10) + b"*/=1;alert(1)",
    "ffmpeg's playlist": lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "ImageMagick's commands": lambda: (
        b"push graphic-context\nimage over 0,0 0,0 'https://x/`id`'\n"
    ),
    "zeros": lambda: bytes(4096),
}
BROKEN: dict[str, Maker] = {
    "PNG: its magic alone": lambda: pieces.PNG_MAGIC,
    "PNG: no pixels": lambda: png(header(8, 8)),
    "PNG: no header": lambda: png(chunk(b"IDAT", pieces.zeros(200))),
    "PNG: 0x0": lambda: black(0, 0),
    "PNG: 2^31 wide": lambda: png(header(2**31, 1), chunk(b"IDAT", pieces.zeros(200))),
    "PNG: 3 bits": lambda: png(header(8, 8, 3), chunk(b"IDAT", pieces.zeros(200))),
    "PNG: colour 9": lambda: png(header(8, 8, 8, 9), chunk(b"IDAT", pieces.zeros(200))),
    "PNG: a header of 1 byte": lambda: png(chunk(b"IHDR", b"\0")),
    "PNG: a chunk of 2^32-1": lambda: _with(small(), 33, b"\xff\xff\xff\xff"),
    "PNG: a chunk of no name": lambda: _with(small(), 37, b"\0\0\0\0"),
    "PNG: too few pixels": lambda: png(header(99, 99), chunk(b"IDAT", pieces.zeros(20))),
    "PNG: no zlib": lambda: png(header(8, 8), chunk(b"IDAT", bytes(200))),
    "PNG: no palette": lambda: black(8, 8, 8, 3),
    "PNG: a palette of 1 byte": lambda: black(8, 8, 8, 3, chunk(b"PLTE", b"\0")),
    "PNG: alpha of no palette": lambda: black(8, 8, 8, 3, chunk(b"tRNS", b"\0")),
    "PNG: a profile of nothing": lambda: _before(chunk(b"iCCP")),
    "PNG: a frame beyond the canvas": lambda: _before(
        chunk(b"acTL", struct.pack(">II", 1, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 99, 99, 0, 0, 1, 1, 1, 1)),
    ),
    "PNG: an older Apple's": lambda: pieces.PNG_MAGIC + chunk(b"CgBI", b"\0\0\0\0") + small()[8:],
    "PNG: a JPEG within": lambda: pieces.PNG_MAGIC + small("JPEG"),
    "JPEG: its magic alone": lambda: b"\xff\xd8\xff",
    "JPEG: nothing": lambda: SOI + EOI,
    "JPEG: 0x0": lambda: _claims(0, 0),
    "JPEG: 12 bits": lambda: small("JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "JPEG: lossless": lambda: small("JPEG").replace(b"\xff\xc0", b"\xff\xc3"),
    "JPEG: arithmetic": lambda: small("JPEG").replace(b"\xff\xc0", b"\xff\xc9"),
    "JPEG: 9 components": lambda: _with(
        small("JPEG"), small("JPEG").index(b"\xff\xc0") + 9, b"\x09"
    ),
    "JPEG: sampled 0 times": lambda: _with(
        small("JPEG"), small("JPEG").index(b"\xff\xc0") + 11, b"\0"
    ),
    "JPEG: a segment of 0": lambda: _jpeg(b"\xff\xe1\0\0"),
    "JPEG: a segment of 1": lambda: _jpeg(b"\xff\xe1\0\1"),
    "JPEG: a segment beyond the end": lambda: small("JPEG")[:20] + b"\xff\xe1\xff\xff",
    "JPEG: no Huffman tables": lambda: small("JPEG").replace(b"\xff\xc4", b"\xff\xe5"),
    "JPEG: a PNG within": lambda: SOI + small(),
    "WebP: its magic alone": lambda: b"RIFF\0\0\0\0WEBP",
    "WebP: no picture": lambda: pieces.riff(pieces.canvas(16, 16, 0)),
    "WebP: a length of 2^32-1": lambda: _with(small("WEBP"), 4, b"\xff\xff\xff\xff"),
    "WebP: a length of 0": lambda: _with(small("WEBP"), 4, bytes(4)),
    "WebP: another canvas": lambda: _webp(side=99),
    "WebP: animated": lambda: pieces.riff(
        pieces.canvas(16, 16, 2), piece(b"ANIM", bytes(6)), _frame(), _frame()
    ),
    **{
        f"{format}: cut at {where}": partial(_cut, format, where)
        for format, where in itertools.product(("PNG", "JPEG", "WEBP"), (20, 30, 50, -20, -9))
    },
}
