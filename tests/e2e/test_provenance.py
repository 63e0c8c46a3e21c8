"""Whatever way a picture leaves by, it says that AI edited it, and nothing of what the input's metadata said."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from retouch.v1 import image_edit_pb2 as pb
from retouch_cli.commands import main
from tests.e2e.conftest import OUTPUT, Tiers
from tests.e2e.pictures import b64, left_half, photo, pixels, png

TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
PLACE = "Hauptstrasse 1, Berlin"
LATITUDE = "52,31.2456N"

Verify = Callable[[bytes], dict[str, Any]]


@pytest.fixture
def verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    """What `retouch verify` says of a marked picture."""

    def read(data: bytes) -> dict[str, Any]:
        path = tmp_path / "picture"
        path.write_bytes(data)
        assert main(["verify", "--json", str(path)]) == 0
        said: dict[str, Any] = json.loads(capsys.readouterr().out)["pictures"][0]
        assert said["digital_source_type"] == TYPE
        assert said["creator_tool"].startswith("Retouch ")
        return said

    return read


def request(**fields: Any) -> dict[str, Any]:
    given = {"images": [b64(png(photo(128, 128)))], "prompt": "make it brighter"}
    return {**given, "num_inference_steps": 1, "seed": 7, **fields}


@pytest.mark.parametrize("format_", FORMATS)
def test_by_rest_and_by_grpc_the_same_marked_bytes(
    format_: str, tiers: Tiers, verify: Verify
) -> None:
    """With strength 0, which is exact whoever shares a forward: the gateway passes on what the server encoded."""
    fields: dict[str, Any] = {"strength": 0, "output_format": format_}
    by_url = tiers.edit(request(**fields))["data"][0]["url"]
    fetched = tiers.rest.get(by_url)
    assert fetched.status_code == 200
    inline = tiers.edit(request(**fields, response_format="b64_json"))["data"][0]["b64_json"]
    reply = tiers.grpc.Edit(
        pb.EditRequest(
            images=[png(photo(128, 128))],
            prompt="make it brighter",
            num_inference_steps=1,
            seed=7,
            strength=0,
            output_format=pb.OutputFormat.Value(f"OUTPUT_FORMAT_{FORMATS[format_]}"),
        )
    )
    assert fetched.content == base64.b64decode(inline) == reply.images[0].data
    assert verify(fetched.content)["format"] == format_


def events(body: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {"))


def test_previews_and_what_a_stream_ends_with(tiers: Tiers, verify: Verify) -> None:
    wanted = request(stream=True, partial_images=2, num_inference_steps=6)
    reply = tiers.rest.post("/v1/images/edits", json=wanted)
    told = [each for each in events(reply.text) if "b64_json" in each]
    kinds = [each["type"] for each in told]
    assert kinds[-1] == "image_edit.completed"
    assert "image_edit.partial_image" in kinds
    for each in told:
        verify(base64.b64decode(each["b64_json"]))
    previews = 0
    for event in tiers.grpc.StreamEdit(
        pb.EditRequest(
            images=[png(photo(128, 128))],
            prompt="make it brighter",
            num_inference_steps=6,
            partial_images=2,
        )
    ):
        if event.HasField("preview"):
            verify(event.preview.image.data)
            previews += 1
        elif event.HasField("result"):
            verify(event.result.images[0].data)
    assert previews


def test_outside_the_mask_the_mark_changes_no_pixel(tiers: Tiers, verify: Verify) -> None:
    body = request(mask=b64(png(left_half(128, 128))), response_format="b64_json")
    data = base64.b64decode(tiers.edit(body)["data"][0]["b64_json"])
    verify(data)
    assert (pixels(data)[:, 64:] == pixels(photo(128, 128))[:, 64:]).all()


def exif() -> Image.Exif:
    """As a phone writes it: upside down, with the place."""
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: turned by 180 degrees
    exif[0x010E] = exif[0x013B] = exif[0x8298] = PLACE  # description, artist, copyright
    place = exif.get_ifd(0x8825)
    place.update({1: "N", 2: (52.0, 31.0, 14.7), 3: "E", 4: (13.0, 24.0, 26.0), 29: PLACE})
    return exif


def xmp() -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/"'
        f' exif:GPSLatitude="{LATITUDE}" exif:GPSAreaInformation="{PLACE}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def telling(format_: str) -> bytes:
    """The photo with all the metadata that its format has room for."""
    out, image = io.BytesIO(), photo(128, 128)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = profile.replace(b"sRGB built-in", PLACE[:13].encode())
    known: dict[str, Any] = {"exif": exif(), "icc_profile": named}
    if format_ == "png":
        image.save(out, "PNG", **known)
        data = out.getvalue()
        itxt = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp()
        told = chunk(b"tEXt", b"Comment\0" + PLACE.encode()) + chunk(b"iTXt", itxt)
        return data[:33] + told + data[33:]
    if format_ == "jpeg":
        iptc = b"\x1c\x02\x5a" + struct.pack(">H", len(PLACE)) + PLACE.encode()  # 2:90, city
        resource = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc
        image.save(out, "JPEG", quality=95, xmp=xmp(), comment=PLACE, **known)
        data = out.getvalue()
        return data[:2] + b"\xff\xed" + struct.pack(">H", len(resource) + 2) + resource + data[2:]
    image.save(out, "WEBP", lossless=True, xmp=xmp(), **known)
    return out.getvalue()


@pytest.mark.parametrize("format_", FORMATS)
def test_nothing_of_an_inputs_metadata_goes_on(format_: str, tiers: Tiers, verify: Verify) -> None:
    given = telling(format_)
    assert given.count(PLACE.encode()) >= (3 if format_ == "webp" else 4)
    assert LATITUDE.encode() in given
    for into in FORMATS:
        body = request(
            images=[b64(given)], output_format=into, response_format="b64_json", strength=0
        )
        data = base64.b64decode(tiers.edit(body)["data"][0]["b64_json"])
        verify(data)
        for secret in (PLACE[:13], PLACE, LATITUDE, "Exif\0\0", "8BIM"):
            assert secret.encode() not in data, secret
        with Image.open(io.BytesIO(data)) as image:
            assert not image.getexif()
            assert not {"icc_profile", "exif", "comment", "photoshop"} & image.info.keys()
        if into == "png" and format_ != "jpeg":
            # Turned the right way up, as the orientation said that it was not.
            assert (pixels(data) == pixels(photo(128, 128).rotate(180))).all()
    for log in OUTPUT.glob("retouch-*.log"):
        said = log.read_text(errors="replace")
        assert PLACE[:13] not in said
        assert LATITUDE not in said
