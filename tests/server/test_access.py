"""Who may call a server that wants certificates, and what its log says of a call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_server.server import Server
from retouch_server.settings import Settings
from tests.certificates import Authority
from tests.server.conftest import Folder
from tests.server.test_service import broken, edit

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
IDS = (("x-request-id", "mine-1"), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(ca: Authority, tiny_folder: Folder) -> AsyncIterator[Server]:
    pair = ca.issue("server")
    tls: Any = {"tls_cert": pair.cert, "tls_key": pair.key, "tls_client_ca": ca.cert}
    models = f"instruct={tiny_folder('instruct')}"
    settings = Settings(port=0, metrics_port=0, models=models, device="cpu", **tls)
    server = Server(settings, on_death=lambda: None)
    await server.start()
    await server.load()
    yield server
    await server.stop()


def channel(server: Server, ca: Authority, caller: Authority | None) -> grpc.aio.Channel:
    """To the server, by a certificate that `caller` has signed, or without."""
    own = caller.issue("caller") if caller else None
    proof = grpc.ssl_channel_credentials(
        ca.cert.read_bytes(),
        own.key.read_bytes() if own else None,
        own.cert.read_bytes() if own else None,
    )
    return grpc.aio.secure_channel(f"127.0.0.1:{server.port}", proof)


@pytest_asyncio.fixture(loop_scope="module")
async def stub(server: Server, ca: Authority) -> AsyncIterator[Any]:
    async with channel(server, ca, ca) as open_channel:
        yield ImageEditStub(open_channel)


async def test_who_proves_itself_is_answered(stub: Any) -> None:
    listed = await stub.ListModels(pb.ListModelsRequest(), timeout=5)
    assert [model.id for model in listed.models] == ["instruct"]


@pytest.mark.parametrize("stranger", [False, True])
async def test_who_does_not_is_not(
    server: Server, ca: Authority, tmp_path: Path, stranger: bool
) -> None:
    caller = Authority(tmp_path) if stranger else None
    async with channel(server, ca, caller) as refused:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ImageEditStub(refused).ListModels(pb.ListModelsRequest(), timeout=5)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_plain_text_is_not_answered(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as plain:
        with pytest.raises(grpc.aio.AioRpcError):
            await ImageEditStub(plain).ListModels(pb.ListModelsRequest(), timeout=5)


async def logged(caplog: pytest.LogCaptureFixture, count: int = 1) -> list[dict[str, Any]]:
    """The calls' records, once there are so many: a line may come a moment after its answer."""

    def lines() -> list[dict[str, Any]]:
        return [vars(each) for each in caplog.records if each.name == "retouch_server.access"]

    async with asyncio.timeout(3):
        while len(lines()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return lines()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_edit_is_one_line(
    stub: Any, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level("INFO")
    request = edit(n=2, size=pb.Size(width=96, height=64))
    if stream:
        assert [event async for event in stub.StreamEdit(request, metadata=IDS)]
    else:
        await stub.Edit(request, metadata=IDS)
    (line,) = await logged(caplog)
    expected = {
        "rpc": "StreamEdit" if stream else "Edit",
        "code": "OK",
        "request_id": "mine-1",
        "trace_id": TRACE,
        "model": "instruct",
        "inputs": 1,
        "images": 2,
        "size": "96x64",
        "steps": 4,
    }
    assert line.items() >= expected.items()
    assert line["bytes_in"] == request.ByteSize()
    assert line["bytes_out"] > 2 * 96 * 64 // 10
    assert "error" not in line
    phases = [line[f"{phase}_ms"] for phase in ("queue", "encode", "denoise", "decode")]
    assert 0 < sum(phases) <= line["ms"] + len(phases)


async def test_a_refusal_is_one_line_without_what_was_sent(
    stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    sent = (("x-request-id", "not sane"), ("traceparent", "neither"))
    for request in (edit(prompt="my secret wish", n=99), edit(model="my secret wish")):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Edit(request, metadata=sent)
    faulty, unknown = await logged(caplog, 2)
    assert (faulty["code"], unknown["code"]) == ("INVALID_ARGUMENT", "NOT_FOUND")
    assert (faulty["error"], unknown["error"]) == ("InvalidRequest", "UnknownModel")
    assert faulty["model"] == "instruct"
    assert "model" not in unknown  # that is the caller's own word
    for line in (faulty, unknown):
        assert not {"request_id", "trace_id"} & line.keys()
    ours = [vars(each) for each in caplog.records if each.name.startswith("retouch")]
    assert "secret" not in json.dumps(ours, default=str)
    assert "sane" not in json.dumps(ours, default=str)


async def test_an_edit_that_fails_is_told_of_with_its_request_s_id(
    stub: Any, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    denoiser = type(server._service.served["instruct"].model.denoiser)
    monkeypatch.setattr(denoiser, "forward", broken)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Edit(edit(), metadata=IDS)
    (line,) = await logged(caplog)
    (failed,) = (vars(each) for each in caplog.records if each.message == "an edit failed")
    assert failed["request_id"] == line["request_id"] == "mine-1"
    caplog.clear()  # of the traceback, which holds the model


async def test_a_caller_that_leaves_is_one_line(
    stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    call = stub.StreamEdit(edit(num_inference_steps=100), metadata=IDS)
    async for event in call:
        if event.HasField("step"):
            break
    call.cancel()
    (line,) = await logged(caplog)
    assert (line["code"], line["request_id"]) == ("CANCELLED", "mine-1")
    assert 1 <= line["steps"] < 100
    assert line["decode_ms"] == 0
    assert 0 < line["queue_ms"] + line["encode_ms"] + line["denoise_ms"] <= line["ms"] + 3


async def test_what_is_served_is_asked_in_silence(
    stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await stub.ListModels(pb.ListModelsRequest())
    await stub.Edit(edit())
    (line,) = await logged(caplog)
    assert line["rpc"] == "Edit"
