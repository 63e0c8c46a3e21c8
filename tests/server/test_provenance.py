"""The mark in every result, and signed results of a server whose operator has a certificate."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import yaml
from PIL import Image

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_server import images, manifests
from retouch_server.images import FORMATS, Format
from retouch_server.jobs import Job
from retouch_server.metrics import Metrics
from retouch_server.provenance import SOURCE_TYPE, VERSION, XMP, Provenance
from retouch_server.server import Server
from retouch_server.settings import Settings
from tests.server.conftest import Folder
from tests.server.test_equality import mask, picture
from tests.server.test_manifests import with_manifest
from tests.server.test_service import PHOTO, edit, pixels, png
from tests.signing import Studio, actions, active

NOISE = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
FIELDS = {
    "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType": SOURCE_TYPE,
    "{http://ns.adobe.com/xap/1.0/}CreatorTool": f"Retouch {VERSION}",
}


def xmp(data: bytes) -> dict[str, str | None]:
    """What a picture's XMP packet says, as Pillow finds it."""
    packet = Image.open(io.BytesIO(data)).info["xmp"]
    (description,) = ET.fromstring(packet).iter(f"{RDF}Description")  # noqa: S314 our own
    return {each.tag: each.text for each in description}


@pytest.mark.parametrize("format", FORMATS)
def test_the_mark_is_where_each_format_has_its_xmp(format: Format) -> None:
    data, plain = images.encode(NOISE, format, 90, XMP), images.encode(NOISE, format, 90)
    assert xmp(data) == FIELDS
    assert len(data) - len(plain) < 1024
    assert "xmp" not in Image.open(io.BytesIO(plain)).info
    shown = [np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in (data, plain)]
    assert (shown[0] == shown[1]).all()
    assert images.encode(NOISE, format, 90, XMP) == data


def test_off_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert Provenance(Settings(), Metrics([])).xmp == XMP
        assert not caplog.messages
        assert Provenance(Settings(provenance=False), Metrics([])).xmp is None
    assert caplog.messages == ["results do not say that they are AI-edited: PROVENANCE is off"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def catalog(tiny_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    entry = {"id": "tiny", "source": str(tiny_folder("instruct")), "composite": True}
    path = tmp_path_factory.mktemp("catalog") / "models.yaml"
    path.write_text(yaml.safe_dump({"models": [entry]}))
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(catalog: Path, studio: Studio) -> AsyncIterator[Server]:
    pair = studio.issue("in-force")
    settings = Settings(
        port=0,
        metrics_port=0,
        models=str(catalog),
        device="cpu",
        c2pa_cert=pair.cert,
        c2pa_key=pair.key,
    )
    server = Server(settings, on_death=lambda: None)
    await server.start()
    await server.load()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(server: Server) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield ImageEditStub(channel)


def sample(server: Server, name: str, **labels: str) -> float | None:
    return server._metrics.registry.get_sample_value(f"retouch_server_{name}", labels)


async def until(true: Callable[[], bool]) -> None:
    """Files are looked at each second."""
    for _ in range(600):
        if true():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not come true")


of_server = pytest.mark.asyncio(loop_scope="module")


@of_server
@pytest.mark.parametrize(
    "format", [pb.OUTPUT_FORMAT_PNG, pb.OUTPUT_FORMAT_JPEG, pb.OUTPUT_FORMAT_WEBP]
)
async def test_every_result_is_marked_and_signed(
    format: pb.OutputFormat.ValueType, stub: Any, server: Server
) -> None:
    before = sample(server, "signatures_total", result="ok") or 0
    reply = await stub.Edit(edit(n=3, output_format=format))
    for image in reply.images:
        assert xmp(image.data) == FIELDS
        name = pb.OutputFormat.Name(format).rpartition("_")[2].lower()
        assert active(image.data, f"image/{name}")["signature_info"]["common_name"] == "in-force"
    assert sample(server, "signatures_total", result="ok") == before + 3


@of_server
async def test_previews_are_marked_and_not_signed(stub: Any) -> None:
    seen = []
    async for event in stub.StreamEdit(edit(partial_images=2, num_inference_steps=4)):
        if event.HasField("preview"):
            seen.append(event.preview.image.data)
        elif event.HasField("result"):
            result = event.result.images[0].data
    assert seen
    for data in seen:
        assert xmp(data) == FIELDS
        assert b"jumb" not in data
    assert active(result)


@of_server
async def test_outside_the_mask_pixels_are_kept(stub: Any) -> None:
    chosen = mask()
    reply = await stub.Edit(edit(mask=png(chosen)))
    outside = np.asarray(chosen.convert("L")) == 0
    before = np.asarray(Image.open(io.BytesIO(PHOTO)).convert("RGB"), dtype=int)
    assert outside.any()
    assert (pixels(reply.images[0])[outside] == before[outside]).all()
    assert active(reply.images[0].data)


@of_server
async def test_even_where_nothing_was_edited(stub: Any) -> None:
    """There is no line below which an edit is none, and no result without the mark."""
    reply = await stub.Edit(edit(strength=0.0))
    before = np.asarray(Image.open(io.BytesIO(PHOTO)).convert("RGB"), dtype=int)
    assert (pixels(reply.images[0]) == before).all()
    assert xmp(reply.images[0].data) == FIELDS


@of_server
async def test_an_edit_of_an_edit_keeps_the_first_ones_manifest(stub: Any) -> None:
    first = (await stub.Edit(edit())).images[0].data
    second = (
        await stub.Edit(
            edit(
                images=[
                    first,
                ],
                n=2,
            )
        )
    ).images
    for image in second:
        (parent,) = active(image.data)["ingredients"]
        assert parent["active_manifest"]
        assert parent["validation_results"]["activeManifest"]["failure"] == []


@of_server
async def test_only_the_first_image_is_the_parent(stub: Any) -> None:
    plain = (await stub.Edit(edit())).images[0].data
    assert b"jumb" not in PHOTO
    (parent,) = active(plain)["ingredients"]
    assert "active_manifest" not in parent


@of_server
async def test_a_broken_manifest_fails_no_edit(stub: Any) -> None:
    rubbish = with_manifest(b"\x00\x00\x00\x20jumb\x00\x00\x00\x18jumdc2pa" + b"\xff" * 16)
    reply = await stub.Edit(edit(images=[rubbish]))
    assert [each["action"] for each in actions(active(reply.images[0].data))] == [
        "c2pa.opened",
        "c2pa.edited",
    ]


@of_server
async def test_what_cannot_be_signed_does_not_go_out(
    stub: Any, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a certificate has expired in force."""
    monkeypatch.setitem(manifests.MIME, "PNG", "image/none")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Edit(edit(n=2))
    assert failure.value.code() == grpc.StatusCode.INTERNAL
    assert failure.value.details() == "the result could not be signed"
    assert (sample(server, "signatures_total", result="failed") or 0) >= 1
    assert "a result cannot be signed: " in caplog.text


@of_server
async def test_new_files_are_taken_up_and_bad_ones_are_not(
    stub: Any, server: Server, studio: Studio
) -> None:
    old, new = studio.issue("in-force"), studio.issue("renewed", days=5)
    cert, key = new.cert.read_bytes(), new.key.read_bytes()
    was = sample(server, "certificate_expiry_timestamp_seconds", file="c2pa_cert")

    async def signer() -> str:
        manifest = active((await stub.Edit(edit())).images[0].data)
        return str(manifest["signature_info"]["common_name"])

    def outdated() -> float | None:
        return sample(server, "file_outdated", file="c2pa")

    good = old.key.read_bytes()
    old.key.write_bytes(b"rubbish")
    await until(lambda: outdated() == 1)
    assert await signer() == "in-force"
    old.key.write_bytes(good)
    old.cert.write_bytes(cert)
    old.key.write_bytes(key)
    await until(lambda: outdated() == 0)
    assert await signer() == "renewed"
    now = sample(server, "certificate_expiry_timestamp_seconds", file="c2pa_cert")
    assert was
    assert now
    assert now > was


@of_server
async def test_an_input_is_held_for_its_manifest_alone_and_no_longer_than_its_job(
    stub: Any, server: Server
) -> None:
    plain = pb.EditRequest(images=[png(picture(0))])
    assert server._provenance.parent(plain) is None
    signed = (await stub.Edit(edit())).images[0].data
    assert server._provenance.parent(pb.EditRequest(images=[signed])) == signed
    await stub.Edit(edit(images=[signed]))
    # gRPC holds on to a call for a moment, and to the last one that failed until the next does.
    await until(lambda: not any(type(each) is Job and each.parent for each in gc.get_objects()))
