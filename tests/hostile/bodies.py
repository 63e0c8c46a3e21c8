"""Bodies of edits, wrong in every way: JSON by its atoms and by its bytes, forms by their parts."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator

from retouch_gateway.fields import BY_NAME
from tests.hostile.corpus import words
from tests.hostile.decoding import mutated
from tests.hostile.pictures import BROKEN, NO_PICTURE, small
from tests.hostile.wire import REFUSED, Asked, request

ROUTE = "/v1/images/edits"
JSON, FORM = b"content-type: application/json", b"content-type: multipart/form-data; boundary=b"
PICTURE = base64.b64encode(small())
# A body that was changed at random may still be an edit.
ANYTHING = REFUSED | {200}
_REPEATED = [
    *(b"9" * 5000, b"0." + b"1" * 5000, b"-" + b"9" * 400, b"[" + b"1," * 12_000 + b"1]"),
    *(b"[" * 900 + b"]" * 900, b"[" * 20_000, b'{"a":' * 5000 + b"1" + b"}" * 5000),
    *(
        b'"a%b"' % (b"\xcc\x81" * 500),
        b'"%b"' % (b"\xf0\x9f\x98\x80" * 4001),
        b'"%b"' % (b"a" * 4001),
    ),
    *(b'"%b"' % (rb"\\" * 9000), b'"%b"' % (b"a" * 60_000), b'{"%b":1}' % (b"k" * 60_000)),
    *(b'"%b"' % (b"data:;base64," * 40), b'["",%b""]' % (b'"",' * 15)),
]
ATOMS = [*words("json-values"), *_REPEATED]
NAMES = [name.encode() for name in BY_NAME]
NAMES += [b"constructor", b"", b"\\u006e", b"N", b"n ", b"prompt\\u0000", b"images[]"]


def good(**fields: bytes) -> dict[bytes, bytes]:
    """An edit of a few milliseconds as JSON's texts by name, and `fields` over it."""
    base = {b"images": b'["%b"]' % PICTURE, b"prompt": b'"x"', b"num_inference_steps": b"1"}
    return base | {name.encode(): text for name, text in fields.items()}


def written(fields: dict[bytes, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % each for each in fields.items()) + b"}"


def _atoms(chance: random.Random) -> bytes:
    """One to three fields that are not what they should be; `n` sees to it that it is no edit."""
    fields = good(n=b"0")
    for _ in range(chance.randrange(1, 4)):
        fields[chance.choice(NAMES)] = chance.choice(ATOMS)
    return written(fields)


def _twice(chance: random.Random) -> bytes:
    name = chance.choice(NAMES)
    again = b",".join(
        b'"%b":%b' % (name, chance.choice(ATOMS)) for _ in range(chance.randrange(2, 40))
    )
    return b"{" + again + b"," + written(good(n=b"0"))[1:]


def _bytes(chance: random.Random) -> bytes:
    return mutated(written(good(n=b"0", size=b'"64x64"', strength=b"0.5")), chance)


def _cut(chance: random.Random) -> bytes:
    whole = written(good())
    return whole[: chance.randrange(len(whole))]


def _bare(chance: random.Random) -> bytes:
    return chance.choice(ATOMS)


def jsons(count: int, seed: int) -> Iterator[Asked]:
    chance = random.Random(seed)
    makers: list[Callable[[random.Random], bytes]] = [_atoms, _atoms, _twice, _bytes, _cut, _bare]
    for _ in range(count):
        body = chance.choice(makers)(chance)
        yield Asked("json", request("POST", ROUTE, [JSON], body), ANYTHING)


def pictured(count: int, seed: int) -> Iterator[Asked]:
    """Bodies that are right but for their pictures, which only the server finds out."""
    chance = random.Random(seed)
    bad = [make() for make in (*BROKEN.values(), *NO_PICTURE.values())]
    fine = [
        small(format, mode) for format, mode in (("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB"))
    ]
    for _ in range(count):
        data = chance.choice(bad) if chance.random() < 0.4 else mutated(chance.choice(fine), chance)
        given = b'"%b"' % base64.b64encode(data)
        # With n = 11 whatever can be decoded ends here.
        fields = good(n=b"11" if chance.random() < 0.9 else b"1")
        fields[b"images" if chance.random() < 0.7 else b"mask"] = given
        if fields[b"images"] is given:
            fields[b"images"] = b"[%b]" % given
        yield Asked("picture", request("POST", ROUTE, [JSON], written(fields)), ANYTHING)


_PICTURES = [b"image[]", b"image[0]", b"image[99999]", b"images[][image_url]", b"mask[file_id]"]
_FILES = [
    *(b"", b'; filename="a.png"', b'; filename="../../a"', b"; filename*=utf-8''%ff"),
    *(b'; filename="a\\"b"', b"; filename=", b"; x"),
]
_MORE = [
    *(b"", b"content-type: image/png", b"content-transfer-encoding: base64", b" folded", b":"),
    *(b"x: " + b"a" * 5000, b"content-disposition: form-data", b"\r\n".join([b"x: y"] * 20)),
    b"\xff: x",
]
_DATA = [
    small(),
    small()[:40],
    b"--b",
    b"\r\n--b-",
    b"\r\n--",
    *(atom.strip(b'"') for atom in ATOMS),
]


def _part(chance: random.Random) -> bytes:
    kind = chance.choice([b"form-data", b"form-data", b"form-data", b"attachment", b""])
    name, file = chance.choice([*NAMES, *_PICTURES]), chance.choice(_FILES)
    more = b"\r\n" + chance.choice(_MORE) if chance.random() < 0.5 else b""
    head = b'content-disposition: %b; name="%b"%b%b' % (kind, name, file, more)
    return b"--b\r\n%b\r\n\r\n%b\r\n" % (head, chance.choice(_DATA))


def _form(chance: random.Random) -> bytes:
    sure = b'--b\r\ncontent-disposition: form-data; name="n"\r\n\r\n0\r\n'
    return sure + b"".join(_part(chance) for _ in range(chance.randrange(6))) + b"--b--\r\n"


_BOUNDARIES = [
    *(
        b'boundary="b"',
        b"boundary=",
        b"",
        b"boundary=" + b"b" * 71,
        b"boundary=b; boundary=c",
        b"boundary=\xff",
    ),
    *(b"BOUNDARY=b", b"boundary=b;charset=utf-16", b"x=" + b"y" * 4000),
]


def forms(count: int, seed: int) -> Iterator[Asked]:
    chance = random.Random(seed)
    for _ in range(count):
        body = _form(chance)
        if chance.random() < 0.5:
            body = mutated(body, chance)
        kind = FORM
        if chance.random() < 0.1:
            kind = b"content-type: multipart/form-data; " + chance.choice(_BOUNDARIES)
        yield Asked("form", request("POST", ROUTE, [kind], body), ANYTHING)
