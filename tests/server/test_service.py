"""The gRPC surface, over a real socket, with tiny models behind the real engine."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch
import yaml
from google.protobuf import descriptor_pb2, message_factory
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_server.engine.edit import Edit
from retouch_server.engine.engine import Engine
from retouch_server.metrics import EDIT_OUTCOMES
from retouch_server.replies import load_report
from retouch_server.server import SERVICE, BindError, Server
from retouch_server.settings import Settings
from tests.server.conftest import Folder
from tests.server.test_equality import Unknown, mask, picture

QUEUE = 10
pytestmark = pytest.mark.asyncio(loop_scope="module")


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def pixels(image: pb.EditedImage) -> Any:
    return np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"), dtype=int)


PHOTO = png(picture(0))


def edit(**fields: Any) -> pb.EditRequest:
    usual: dict[str, Any] = {"images": [PHOTO], "prompt": "make it red", "num_inference_steps": 2}
    return pb.EditRequest(**(usual | fields))


@pytest.fixture(scope="module")
def settings(tiny_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    models = [
        {"id": "instruct", "source": str(tiny_folder("instruct"))},
        {
            "id": "kontext",
            "source": str(tiny_folder("kontext")),
            "max": {"num_inference_steps": 5},
            "examples": ["make it night", "mach’s wärmer"],
        },
        {"id": "blended", "source": str(tiny_folder("instruct")), "composite": True, "slots": 1},
    ]
    path = tmp_path_factory.mktemp("catalog") / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    return Settings(port=0, metrics_port=0, models=str(path), queue_size=QUEUE, device="cpu")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(settings: Settings) -> AsyncIterator[Server]:
    server = Server(settings, on_death=lambda: None)
    await server.start()
    await server.load()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.aio.Channel) -> Any:
    return ImageEditStub(channel)


async def refused(call: Any) -> tuple[grpc.StatusCode, dict[str, str]]:
    """Status of a call that must fail, and its field violations."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    status = rpc_status.from_call(failure.value)
    bad = BadRequest()
    if status and status.details and status.details[0].Is(BadRequest.DESCRIPTOR):
        status.details[0].Unpack(bad)
    return failure.value.code(), {v.field: v.description for v in bad.field_violations}


async def test_an_edit(stub: Any) -> None:
    reply = await stub.Edit(edit(seed=7, n=3))
    assert [image.seed for image in reply.images] == [7, 8, 9]
    for image in reply.images:
        assert (image.width, image.height, image.format) == (64, 64, pb.OUTPUT_FORMAT_PNG)
        assert pixels(image).shape == (64, 64, 3)
        assert image.revised_prompt == "make it red"
    assert reply.model == "instruct"
    assert reply.usage == pb.Usage(input_images=1, output_images=3, steps=6)
    assert reply.timings.denoise_seconds > 0
    again = await stub.Edit(edit(seed=8))
    assert abs(pixels(again.images[0]) - pixels(reply.images[1])).max() <= 1


async def test_a_seed_is_drawn_and_said_when_none_is_given(stub: Any) -> None:
    first, second = await stub.Edit(edit()), await stub.Edit(edit())
    assert first.images[0].seed != second.images[0].seed
    last = await stub.Edit(edit(seed=2**64 - 1, n=2))
    assert [image.seed for image in last.images] == [2**64 - 1, 0]


@pytest.mark.parametrize(("format", "name"), [(2, "JPEG"), (3, "WEBP")])
async def test_output_formats(stub: Any, format: int, name: str) -> None:
    reply = await stub.Edit(edit(output_format=format, output_compression=50))
    assert reply.images[0].format == format
    assert Image.open(io.BytesIO(reply.images[0].data)).format == name


async def test_size_unset_is_the_images_own_and_set_is_kept(stub: Any) -> None:
    photo = png(picture(1, (90, 70)))
    own = await stub.Edit(edit(images=[photo]))
    assert (own.images[0].width, own.images[0].height) == (88, 72)
    asked = await stub.Edit(edit(images=[photo], size=pb.Size(width=64, height=128)))
    assert pixels(asked.images[0]).shape == (128, 64, 3)


async def test_a_stream_tells_each_step_and_ends_with_the_result(stub: Any) -> None:
    events = [event async for event in stub.StreamEdit(edit(n=2, num_inference_steps=3))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["queued", *["step"] * 6, "result"]
    for index in (0, 1):
        steps = [e.step for e in events[1:-1] if e.step.image_index == index]
        assert [(s.step, s.total) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert len(events[-1].result.images) == 2


@pytest.mark.parametrize("model", ["instruct", "kontext"])
async def test_a_stream_shows_as_many_previews_as_asked_for(stub: Any, model: str) -> None:
    request = edit(model=model, n=2, num_inference_steps=8, partial_images=3)
    events = [event async for event in stub.StreamEdit(request)]
    assert events[-1].WhichOneof("event") == "result"
    previews = [e.preview for e in events if e.WhichOneof("event") == "preview"]
    for index in (0, 1):
        mine = [p for p in previews if p.image_index == index]
        assert [p.preview_index for p in mine] == [0, 1, 2]
        assert {pixels(p.image).shape for p in mine} == {(64, 64, 3)}
        assert {p.image.seed for p in mine} == {events[-1].result.images[index].seed}
    assert len(previews) == 6


async def test_previews_keep_what_is_outside_the_mask(stub: Any) -> None:
    request = edit(model="kontext", mask=png(mask()), num_inference_steps=4, partial_images=1)
    events = [event async for event in stub.StreamEdit(request)]
    (shown,) = (e.preview.image for e in events if e.WhichOneof("event") == "preview")
    outside = np.asarray(mask()) == 0
    assert (pixels(shown)[outside] == np.asarray(picture(0))[outside]).all()


async def test_previews_are_for_streams(stub: Any) -> None:
    _, violations = await refused(stub.Edit(edit(partial_images=1)))
    assert violations == {"partial_images": "only StreamEdit sends previews"}
    _, violations = await refused(stub.StreamEdit(edit(partial_images=4)).read())
    assert violations == {"partial_images": "must be 0 to 3, not 4"}


async def test_models_are_listed_with_what_they_take(stub: Any) -> None:
    reply = await stub.ListModels(pb.ListModelsRequest())
    instruct, kontext, blended = reply.models
    assert [m.id for m in reply.models] == ["instruct", "kontext", "blended"]
    assert not instruct.capabilities.mask
    assert kontext.capabilities.mask
    assert kontext.capabilities.max_mode
    assert blended.capabilities.mask
    assert blended.capabilities.strength
    assert instruct.defaults.guidance_scale == 7.5
    assert not instruct.defaults.HasField("strength")
    assert (kontext.limits.size_multiple, kontext.limits.max_images) == (16, 2)
    assert instruct.limits.max_images == 1
    assert list(kontext.examples) == ["make it night", "mach’s wärmer"]
    assert list(instruct.examples) == []


async def test_max_mode_applies_the_profile_and_the_requests_own_word_wins(stub: Any) -> None:
    fields: dict[str, Any] = {"model": "kontext", "kontext_max_mode": True}
    reply = await stub.Edit(pb.EditRequest(images=[PHOTO], prompt="p", **fields))
    assert reply.usage.steps == 5
    reply = await stub.Edit(edit(**fields))
    assert reply.usage.steps == 2
    reply = await stub.Edit(edit(kontext_max_mode=True))
    assert reply.usage.steps == 2


async def test_a_mask_keeps_the_rest_bit_for_bit(stub: Any) -> None:
    for model in ("kontext", "blended"):
        reply = await stub.Edit(edit(model=model, mask=png(mask())))
        out, given, inside = (
            pixels(reply.images[0]),
            np.asarray(picture(0), int),
            np.asarray(mask()) > 0,
        )
        assert np.array_equal(out[~inside], given[~inside])
        assert not np.array_equal(out[inside], given[inside])


async def test_strength_blends_where_no_pipeline_knows_it(stub: Any) -> None:
    full, half, none = [
        pixels((await stub.Edit(edit(model="blended", seed=3, strength=s))).images[0])
        for s in (1.0, 0.5, 0.0)
    ]
    given = np.asarray(picture(0), int)
    assert np.array_equal(none, given)
    assert abs(half - (full + given) / 2).max() <= 1


NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"images": []}, "images"),
        ({"images": [PHOTO] * 17}, "images"),
        ({"images": [PHOTO, PHOTO]}, "images[1]"),
        ({"images": [b"text"]}, "images[0]"),
        ({"images": [PHOTO[: len(PHOTO) // 2]]}, "images[0]"),
        ({"images": [b"\x89PNG" + bytes(4 * 1024 * 1024 - 3)]}, "images[0]"),
        ({"mask": PHOTO}, "mask"),
        ({"model": "kontext", "mask": png(mask((32, 32)))}, "mask"),
        ({"model": "kontext", "mask": b"text"}, "mask"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": "a" * 4001}, "prompt"),
        ({"negative_prompt": "a" * 4001}, "negative_prompt"),
        ({"negative_prompt": "dull", "model": "kontext"}, "negative_prompt"),
        ({"negative_prompt": "dull", "guidance_scale": 1.0}, "negative_prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"size": pb.Size(width=0, height=64)}, "size.width"),
        ({"size": pb.Size(width=64, height=70)}, "size.height"),
        ({"size": pb.Size(width=16, height=16)}, "size"),
        ({"size": pb.Size(width=8192, height=8192)}, "size"),
        ({"strength": 0.5}, "strength"),
        ({"model": "kontext", "strength": 1.01}, "strength"),
        ({"model": "kontext", "strength": NAN}, "strength"),
        ({"guidance_scale": -0.1}, "guidance_scale"),
        ({"guidance_scale": 20.1}, "guidance_scale"),
        ({"guidance_scale": NAN}, "guidance_scale"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"output_format": 9}, "output_format"),
        ({"output_format": 2, "output_compression": 101}, "output_compression"),
        ({"output_compression": 50}, "output_compression"),
        ({"partial_images": 1}, "partial_images"),
    ],
)
async def test_a_violation_names_its_field(stub: Any, fields: dict[str, Any], named: str) -> None:
    code, violations = await refused(stub.Edit(edit(**fields)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations) == [named]
    assert await stub.Edit(edit())


async def test_all_violations_come_at_once(stub: Any) -> None:
    _, violations = await refused(stub.Edit(edit(n=0, prompt="", guidance_scale=99, mask=b"x")))
    assert set(violations) == {"n", "prompt", "guidance_scale", "mask"}


async def test_a_stream_refuses_as_a_call_does(stub: Any) -> None:
    code, violations = await refused(stub.StreamEdit(edit(n=0)).read())
    assert (code, list(violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["n"])


async def test_whether_a_request_was_taken_is_in_the_first_metadata(stub: Any) -> None:
    """So that a connection which breaks later is not taken for a server that never began."""
    call = stub.Edit(edit())
    assert "retouch-accepted" in (await call.initial_metadata())
    await call
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Edit(edit(n=0))
    assert "retouch-accepted" not in failure.value.initial_metadata()


async def test_an_unknown_model(stub: Any) -> None:
    code, _ = await refused(stub.Edit(edit(model="nonesuch")))
    assert code is grpc.StatusCode.NOT_FOUND


def long_edit(**fields: Any) -> pb.EditRequest:
    return edit(num_inference_steps=100, size=pb.Size(width=256, height=256), **fields)


async def idle(server: Server) -> None:
    engines = [served.engine for served in server._service.served.values()]
    await until(lambda: not any(engine.running or engine.queued for engine in engines))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def ended(server: Server, outcome: str) -> float:
    """Edits of the model `instruct` that ended so."""
    value = server._metrics.registry.get_sample_value(
        "retouch_server_edits_total", {"model": "instruct", "outcome": outcome}
    )
    return value or 0.0


async def test_a_full_queue_says_when_to_come_again(stub: Any, server: Server) -> None:
    engine = server._service.served["blended"].engine
    calls = [stub.Edit(long_edit(model="blended"))]
    await until(lambda: engine.running == 1)
    calls.append(stub.Edit(long_edit(model="blended", n=QUEUE)))
    await until(lambda: engine.queued == QUEUE)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Edit(long_edit(model="blended"))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(failure.value)
    assert status is not None
    retry = RetryInfo()
    status.details[0].Unpack(retry)
    assert 1 <= retry.retry_delay.seconds <= 60
    for call in calls:
        call.cancel()
    await idle(server)


async def test_a_stream_tells_how_it_moves_up_in_the_queue(stub: Any, server: Server) -> None:
    engine = server._service.served["blended"].engine
    ahead = [stub.Edit(long_edit(model="blended"))]
    await until(lambda: engine.running == 1)
    ahead += [stub.Edit(long_edit(model="blended")) for _ in range(2)]
    await until(lambda: engine.queued == 2)
    places: list[int] = []
    call = stub.StreamEdit(edit(model="blended"))
    async for event in call:
        match event.WhichOneof("event"):
            case "queued":
                places.append(event.queued.position)
                ahead.pop().cancel()
            case "result":
                break
    assert places == [2, 1, 0]
    assert not ahead
    await idle(server)


async def test_a_caller_that_leaves_frees_its_slot(stub: Any, server: Server) -> None:
    before = ended(server, "cancelled")
    call = stub.StreamEdit(long_edit())
    async for event in call:
        if event.WhichOneof("event") == "step":
            break
    call.cancel()
    await idle(server)
    assert ended(server, "cancelled") == before + 1


async def test_a_caller_that_leaves_as_its_request_is_taken_frees_its_slot(server: Server) -> None:
    """Between taking a request and waiting for it, too: its edits are nobody's then."""
    taken, before = asyncio.Event(), ended(server, "cancelled")

    async def slow() -> None:
        taken.set()
        await asyncio.sleep(60)

    context: Any = _Context(slow)
    call = asyncio.ensure_future(server._service.Edit(long_edit(), context))
    await asyncio.wait_for(taken.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await idle(server)
    assert ended(server, "cancelled") == before + 1


class _Context:
    """As much of a call's context as is used before its first answer."""

    def __init__(self, send_initial_metadata: Any) -> None:
        self._send = send_initial_metadata

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> None:
        return None

    async def send_initial_metadata(self, metadata: Any) -> None:
        await self._send()


async def test_what_is_accepted_ends_once_and_nothing_else_does(stub: Any, server: Server) -> None:
    def accepted() -> float:
        name, labels = "retouch_server_edits_accepted_total", {"model": "instruct"}
        return server._metrics.registry.get_sample_value(name, labels) or 0.0

    def over() -> float:
        return sum(ended(server, outcome) for outcome in EDIT_OUTCOMES if outcome != "rejected")

    before = accepted()
    await stub.Edit(edit(n=2))
    await refused(stub.Edit(edit(images=[b"no picture"])))
    left = stub.StreamEdit(long_edit())
    async for event in left:
        if event.WhichOneof("event") == "step":
            assert accepted() == over() + 1
            left.cancel()
            break
    await idle(server)
    await until(lambda: accepted() == over() == before + 3)


async def test_a_deadline_ends_the_edit(stub: Any, server: Server) -> None:
    before = ended(server, "expired")
    code, _ = await refused(stub.Edit(long_edit(), timeout=0.3))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await idle(server)
    assert ended(server, "expired") == before + 1


async def test_a_model_that_fails_is_internal_and_tells_nothing(
    stub: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = server._service.served["instruct"].model
    monkeypatch.setattr(type(model.denoiser), "forward", broken)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Edit(edit())
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(failure.value.details())
    monkeypatch.undo()
    assert await stub.Edit(edit())


def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("secret")


async def test_the_load_report_reads_as_the_balancers_message() -> None:
    """gRPC's client keeps the trailer to itself, so a message of the same fields reads the bytes."""
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package="orca")
    message = file.message_type.add(name="OrcaLoadReport")
    double = descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE
    for name, number in (("rps_fractional", 6), ("application_utilization", 9)):
        message.field.add(name=name, number=number, type=double, label=1)
    report: Any = message_factory.GetMessages([file])["orca.OrcaLoadReport"]()
    idle = Engine(Unknown(torch.nn.Identity()), slots=2)
    report.ParseFromString(load_report(idle))
    # As with one edit under way: nearly 0 would draw all that comes to the one that fell idle last.
    assert (report.rps_fractional, report.application_utilization) == (1.0, 0.5)
    idle.submit([Edit(lambda host: torch.zeros(1))] * 3)
    report.ParseFromString(load_report(idle))
    assert report.application_utilization == 1.5


async def test_health_while_loading_serving_and_stopping(settings: Settings) -> None:
    server = Server(settings, on_death=lambda: None)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health, stub = health_pb2_grpc.HealthStub(channel), ImageEditStub(channel)

        async def state(service: str) -> int:
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            return int(reply.status)

        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        assert await state("") == serving
        assert await state(SERVICE) == not_serving
        code, _ = await refused(stub.Edit(edit()))
        assert code is grpc.StatusCode.UNAVAILABLE
        await server.load()
        assert await state(SERVICE) == serving
        # What was accepted before the stop is finished after it.
        under_way = asyncio.ensure_future(stub.Edit(edit(num_inference_steps=50)))
        await until(lambda: server._service.served["instruct"].engine.running == 1)
        stopping = asyncio.ensure_future(server.stop())
        await asyncio.sleep(0.05)
        assert await state(SERVICE) == not_serving
        assert len((await under_way).images) == 1
        await stopping


async def test_a_watcher_of_health_does_not_hold_up_the_stop(settings: Settings) -> None:
    server = Server(settings, on_death=lambda: None)
    await server.start()
    await server.load()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        await watch.read()
        started = time.monotonic()
        assert await server.stop()
        assert time.monotonic() - started < 3


async def test_told_to_stop_while_loading_it_never_serves(settings: Settings) -> None:
    server = Server(settings, on_death=lambda: None)
    await server.start()
    loading = asyncio.ensure_future(server.load())
    await asyncio.sleep(0)
    assert not await server.stop(), "the loading thread cannot be ended"
    await loading
    assert server._service.served == {}
    assert server._metrics.registry.get_sample_value("retouch_server_ready") == 0


async def test_places_are_held_while_pictures_are_decoded(stub: Any, server: Server) -> None:
    served = server._service.served["instruct"]
    with served.place(QUEUE):
        code, _ = await refused(stub.Edit(edit()))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await stub.Edit(edit())
    assert served.decoding == 0


async def test_a_refusing_safety_checker_is_told(
    stub: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = server._service.served["instruct"].model.pipelines[
        "StableDiffusionInstructPix2PixPipeline"
    ]
    monkeypatch.setattr(
        type(pipe),
        "run_safety_checker",
        lambda self, image, device, dtype: (image, [True]),
        raising=True,
    )
    code, _ = await refused(stub.Edit(edit()))
    assert code is grpc.StatusCode.FAILED_PRECONDITION


async def test_not_a_number_is_no_picture(
    stub: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = (
        server._service.served["instruct"]
        .model.pipelines["StableDiffusionInstructPix2PixPipeline"]
        .vae
    )
    monkeypatch.setattr(
        type(vae), "decode", lambda self, z, **_: (torch.full((1, 3, 64, 64), torch.nan),)
    )
    code, _ = await refused(stub.Edit(edit()))
    assert code is grpc.StatusCode.INTERNAL


async def test_a_stream_that_is_left_at_its_first_event_frees_the_slot(
    stub: Any, server: Server
) -> None:
    call = stub.StreamEdit(long_edit())
    assert (await call.read()).WhichOneof("event") == "queued"
    call.cancel()
    await idle(server)


async def test_a_taken_port_is_one_line(server: Server, settings: Settings) -> None:
    second = Server(settings.model_copy(update={"port": server.port}), on_death=lambda: None)
    with pytest.raises(BindError, match="RETOUCH_SERVER_PORT: cannot listen"):
        await second.start()
    await second.stop()


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([ask]))
    names = {
        service.name async for reply in call for service in reply.list_services_response.service
    }
    assert {SERVICE, "grpc.health.v1.Health"} <= names
