"""`retouch verify`: marks in three formats, as anyone may have written them, signatures, and rubbish."""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from retouch_cli import marks
from retouch_cli.commands import main
from tests.signing import Studio, signed

TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
EDITED = TYPES + "compositeWithTrainedAlgorithmicMedia"
FORMATS = ("png", "jpeg", "webp")
SPACES = (
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    ' xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
)
ELEMENT = f"<i:DigitalSourceType>{EDITED}</i:DigitalSourceType>"
MANIFEST: dict[str, Any] = {
    "claim_generator_info": [{"name": "Painter", "version": "1"}],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": EDITED}]},
        }
    ],
}


def packet(said: str = ELEMENT, attributes: str = "") -> bytes:
    """An XMP packet."""
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {SPACES}>'
        f'<rdf:Description rdf:about="" {attributes}>{said}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def picture(format_: str = "png", xmp: bytes | None = None) -> bytes:
    out, image = io.BytesIO(), Image.effect_noise((32, 24), 60).convert("RGB")
    if format_ != "png":
        image.save(out, format_, **({"xmp": xmp} if xmp else {}))
        return out.getvalue()
    image.save(out, format_)
    data = out.getvalue()
    return with_chunk(data, b"iTXt", itxt(xmp)) if xmp else data


def itxt(text: bytes, head: bytes = b"\0\0") -> bytes:
    return b"XML:com.adobe.xmp\0" + head + b"\0\0" + text


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    checked = kind + body
    chunk = struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))
    return png[:33] + chunk + png[33:]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)


def verify(*pictures: bytes | str) -> int:
    """The exit status for these pictures, and before them these options."""
    names: list[str] = []
    for each in pictures:
        if isinstance(each, bytes):
            path = Path(f"{len(names)}.picture")
            path.write_bytes(each)
            names.append(str(path))
    names += (each for each in pictures if isinstance(each, str))
    return main(["verify", *names])


Told = Callable[..., Any]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """What `--json` says of pictures."""

    def tell(*pictures: bytes | str) -> Any:
        capsys.readouterr()
        verify("--json", *pictures)
        return json.loads(capsys.readouterr().out)["pictures"]

    return tell


@pytest.mark.parametrize("format_", FORMATS)
def test_a_mark_in_each_format(format_: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(picture(format_, packet())) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0.picture",
        f"  format      {format_}",
        "  mark        edited by AI (compositeWithTrainedAlgorithmicMedia)",
        "  signature   none",
    ]
    assert verify(picture(format_)) == 7
    assert "  mark        none in XMP" in capsys.readouterr().out


@pytest.mark.parametrize(
    "xmp",
    [
        packet("", f'i:DigitalSourceType="{EDITED}"'),
        packet(f'<i:DigitalSourceType rdf:resource="{EDITED}"/>'),
        packet(f"<i:DigitalSourceType>\n  {EDITED}\n</i:DigitalSourceType>"),
        packet(ELEMENT.replace("http:", "https:")),
        b"\xef\xbb\xbf" + packet() + b" " * 2048 + b"\0",
        b'<?xpacket begin="\xef\xbb\xbf" id="W5M0"?>' + packet() + b'<?xpacket end="w"?>',
    ],
)
def test_other_programs_ways_to_write_it(xmp: bytes) -> None:
    assert verify(picture("png", xmp)) == 0


def test_a_compressed_packet_in_a_png() -> None:
    png = picture()
    assert verify(with_chunk(png, b"iTXt", itxt(zlib.compress(packet()), b"\1\0"))) == 0
    bomb = zlib.compress(b" " * 50_000_000 + packet())
    assert verify(with_chunk(png, b"iTXt", itxt(bomb, b"\1\0"))) == 7
    assert verify(with_chunk(png, b"iTXt", itxt(b"rubbish", b"\1\0"))) == 7


@pytest.mark.parametrize(
    ("name", "status"),
    [("trainedAlgorithmicMedia", 0), ("digitalCapture", 7), ("humanEdits", 7), ("newType", 7)],
)
def test_only_ai_is_ai(name: str, status: int, told: Told) -> None:
    data = picture("jpeg", packet(ELEMENT.replace(EDITED, TYPES + name)))
    assert verify(data) == status
    assert told(data)[0]["digital_source_type"] == TYPES + name


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_encoded_anew_has_lost_it(format_: str) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture(format_, packet()))).convert("RGB").resize((9, 9)).save(
        out, format_
    )
    assert verify(out.getvalue()) == 7


def test_all_that_json_says(told: Told, studio: Studio) -> None:
    tool = "<xmp:CreatorTool>Retouch 1.2</xmp:CreatorTool>"
    data = signed(picture("png", packet(ELEMENT + tool)), studio.issue(), MANIFEST)
    action = {"action": "c2pa.created", "digital_source_type": EDITED}
    assert told(data) == [
        {
            "name": "0.picture",
            "marked": True,
            "exit": 0,
            "format": "png",
            "digital_source_type": EDITED,
            "creator_tool": "Retouch 1.2",
            "xmp_problem": None,
            "c2pa": {
                "state": "valid",
                "problems": [],
                "manifest": {
                    "signer": {"name": "Signer", "organisation": "Studio"},
                    "actions": [action],
                    "ingredients": [],
                },
            },
        }
    ]


def test_a_signature_alone_is_a_mark_too(told: Told, studio: Studio) -> None:
    data = signed(picture(), studio.issue(), MANIFEST)
    assert verify(data) == 0
    assert told(data)[0]["marked"]
    photographed = json.loads(json.dumps(MANIFEST).replace(EDITED, TYPES + "digitalCapture"))
    assert verify(signed(picture(), studio.issue(), photographed)) == 7


def test_a_picture_that_was_changed_after(
    studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(signed(picture("png", packet()), studio.issue(), MANIFEST))
    data[-30] ^= 1
    assert verify(bytes(data)) == 8
    assert "  signature   does not hold\n  problem     asset hash error" in capsys.readouterr().out
    data[-30] ^= 1
    data[data.index(b"Painter")] ^= 1
    assert verify(bytes(data)) == 8
    for rubbish in (
        b"",
        b"rubbish",
        b"\0" * 99,
        b"\0\0\0\x20jumb\0\0\0\x18jumdc2pa" + b"\xff" * 30,
    ):
        assert verify(with_chunk(picture("png", packet()), b"caBX", rubbish)) == 8


def test_whom_to_trust(
    studio: Studio, tmp_path: Path, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    data = signed(picture(), studio.issue(), MANIFEST)
    other = Studio(tmp_path, "Other")
    assert verify(f"--trust={studio.root}", data) == 0
    assert "valid, of a trusted signer" in capsys.readouterr().out
    assert verify(f"--trust={other.root}", data) == 8
    assert "of a signer who is not trusted" in capsys.readouterr().out
    states = [told(f"--trust={each.root}", data)[0]["c2pa"]["state"] for each in (studio, other)]
    assert states == ["trusted", "untrusted"]


def test_anchors_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    Path("anchors.pem").write_text("rubbish")
    assert verify("--trust=anchors.pem", picture()) == 1
    assert verify("--trust=nowhere.pem", picture()) == 1
    for body in ("rubbish", "AAAA", "é"):
        Path("anchors.pem").write_text(
            f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
        )
        assert verify("--trust=anchors.pem", picture()) == 1
    assert capsys.readouterr().err.splitlines() == [
        "retouch: anchors.pem holds no PEM certificate",
        "retouch: cannot read nowhere.pem: No such file or directory",
        *["retouch: a certificate in anchors.pem cannot be read"] * 3,
    ]


def test_anchors_among_comments(studio: Studio) -> None:
    own = studio.root.read_text()
    Path("anchors.pem").write_text(f"# Autoridad de Certificación\n{own}\n# and again\n{own}")
    assert verify("--trust=anchors.pem", signed(picture(), studio.issue(), MANIFEST)) == 0


def test_without_the_package(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = signed(picture("png", packet()), studio.issue(), MANIFEST)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert verify(data) == 9
    assert "pip install 'retouch[c2pa]' can check it" in capsys.readouterr().out
    assert verify(picture("png", packet())) == 0


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(picture("webp", packet())))
    monkeypatch.setattr("sys.stdin", stream)
    assert main(["verify", "-"]) == 0
    assert capsys.readouterr().out.startswith("stdin\n  format      webp\n")


def test_of_several_the_worst_counts_and_all_are_told(
    told: Told, studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    good, plain = picture("png", packet()), picture()
    broken = with_chunk(good, b"caBX", b"rubbish")
    assert verify(good, good) == 0
    assert verify(good, plain) == 7
    assert verify(plain, "nowhere.png") == 1
    assert verify(b"no picture", "nowhere.png") == 3
    assert verify(b"no picture", broken, plain) == 8
    assert [each.get("exit") for each in told(good, plain, broken)] == [0, 7, 8]
    fine, failure = told(good, "nowhere.png")
    assert failure["name"] == "nowhere.png"
    assert failure["error"]["exit"] == 1
    assert fine["marked"]


@pytest.mark.parametrize(
    ("xmp", "fault"),
    [
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + packet(), "has a document type"),
        (b"<nothing", "not XML"),
        (b"", "not XML"),
        (packet()[:-20], "not XML"),
        ("é".encode("latin-1") + packet(), "not UTF-8"),
        (packet().decode().encode("utf-16"), "not UTF-8"),
        (packet() + b" " * 2**20, "too long"),
    ],
)
def test_xmp_that_cannot_be_read_is_no_mark(xmp: bytes, fault: str, told: Told) -> None:
    data = with_chunk(picture(), b"iTXt", itxt(xmp))
    assert verify(data) == 7
    assert told(data)[0]["xmp_problem"] == fault


def test_deep_xml_is_no_trouble() -> None:
    assert verify(picture("png", packet("<a>" * 50_000 + "</a>" * 50_000 + ELEMENT))) == 0


@pytest.mark.parametrize("format_", FORMATS)
def test_a_picture_cut_anywhere_is_damaged(format_: str) -> None:
    whole = picture(format_, packet())
    end = whole.index(b"\xff\xda") if format_ == "jpeg" else len(whole) - 8
    for at in range(12, end, 7):
        with pytest.raises(marks.Damaged):
            marks.read(whole[:at])
    assert verify(whole[: end - 9]) == 3


@pytest.mark.parametrize("format_", FORMATS)
def test_no_damage_is_more_than_that(format_: str) -> None:
    whole, chance = picture(format_, packet()), random.Random(format_)
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 2, 8])):
            data[chance.randrange(12, min(len(data), 1500))] = chance.randrange(256)
        try:
            mark = marks.read(bytes(data))
        except marks.Damaged:
            continue
        assert mark.format == format_


def test_a_tool_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "evil\u202e\u009b31m"
    assert (
        verify(picture("png", packet(f"{ELEMENT}<xmp:CreatorTool>{name}</xmp:CreatorTool>"))) == 0
    )
    assert r"  tool        evil\u202e\x9b31m" in capsys.readouterr().out


def test_nothing_to_verify() -> None:
    with pytest.raises(SystemExit) as wrong:
        verify()
    assert wrong.value.code == 2
    assert verify("--nonsense", picture()) == 2
