"""Edits of models with safety checks, over a real socket: who is refused, when, and that nobody else notices."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import yaml

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_server.loading import LoadError
from retouch_server.metrics import EDIT_OUTCOMES
from retouch_server.server import Server
from retouch_server.settings import Settings
from tests.server.checked import Growth, Results, Words, blocked, flagging
from tests.server.conftest import Folder
from tests.server.test_equality import mask
from tests.server.test_service import QUEUE, edit, idle, pixels, png, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = ("checked", "watched", "flagged")


@pytest.fixture(scope="module")
def house() -> Iterator[None]:
    """The module `house` with the two checks."""
    module: Any = ModuleType("house")
    module.Words, module.Results = Words, Results
    sys.modules["house"] = module
    yield
    del sys.modules["house"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    house: None, tiny_folder: Folder, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    root, plain = tmp_path_factory.mktemp("checked"), str(tiny_folder("instruct"))
    unkind = flagging(Path(shutil.copytree(plain, root / "flagging")))
    # To the bit, what an edit comes to depends on it alone.
    exact = {"source": plain, "deterministic": True, "max_rows": 12, "composite": True}
    models = [
        {"id": "checked", **exact, "safety": ["house:Words", "house:Results"]},
        {"id": "watched", **exact, "safety": ["house:Words"]},
        {"id": "flagged", "source": str(unkind)},
    ]
    path = root / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    settings = Settings(
        port=0,
        metrics_port=0,
        models=str(path),
        queue_size=QUEUE,
        device="cpu",
        safety_timeout=60,
    )
    server = Server(settings, on_death=lambda: None)
    await server.start()
    await server.load()
    yield server
    Words.hold.set()
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(server: Server) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield ImageEditStub(channel)


@pytest.fixture
def change(server: Server) -> Growth:
    """By how much a series has grown since the test began."""
    return Growth(server)


async def test_series_start_at_zero(server: Server) -> None:
    series = {
        (each.labels["model"], each.labels["stage"], each.labels["outcome"])
        for family in server._metrics.registry.collect()
        for each in family.samples
        if each.name == "retouch_server_moderation_total"
    }
    assert len(series) == len(NAMES) * 2 * 3


async def test_a_request_that_is_refused_never_reaches_the_model(stub: Any, change: Growth) -> None:
    told, metadata = await blocked(stub.Edit(edit(model="checked", prompt="early", n=3)))
    assert told == "Your request was rejected by the safety system. Not here."
    assert metadata == {"category": "words/early"}
    assert change("edits_total", model="checked", outcome="blocked") == 3
    assert change("moderation_total", model="checked", stage="before", outcome="blocked") == 1
    assert change("moderation_total", model="checked", stage="after", outcome="passed") == 0
    assert change("steps_total", model="checked") == 0
    assert change("batch_rows_count", model="checked") == 0
    lookups = {"model": "checked", "kind": "prompt"}
    assert change("encoding_lookups_total", **lookups, result="miss") == 0


async def test_neighbours_of_one_that_is_refused_do_not_notice(stub: Any, change: Growth) -> None:
    """In one batch, to the bit what they are alone; the refused one's images are all kept back."""
    asked = [
        edit(model="checked", prompt=prompt, seed=seed, n=n, num_inference_steps=steps)
        for prompt, seed, n, steps in (
            ("night", 1, 1, 6),
            ("too late", 2, 3, 4),
            ("snow", 3, 2, 5),
        )
    ]
    together: list[Any] = await asyncio.gather(
        *(stub.Edit(each) for each in asked), return_exceptions=True
    )
    rows = change("batch_rows_sum", model="checked")
    assert rows > 3 * change("batch_rows_count", model="checked"), "they shared forwards"
    assert isinstance(together[1], grpc.aio.AioRpcError)
    assert await blocked(stub.Edit(asked[1])) == (
        "Your request was rejected by the safety system.",
        {"category": "words/late"},
    )
    for i in (0, 2):
        alone = await stub.Edit(asked[i])
        assert [each.data for each in together[i].images] == [each.data for each in alone.images]
    assert change("edits_total", model="checked", outcome="blocked") == 6
    assert change("edits_total", model="checked", outcome="done") == 6
    assert change("moderation_total", model="checked", stage="after", outcome="blocked") == 2
    assert change("moderation_total", model="checked", stage="after", outcome="passed") == 4
    assert change("moderation_total", model="checked", stage="before", outcome="passed") == 6


async def test_results_are_seen_as_the_caller_would_get_them(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid over the input where the mask says so."""
    seen: list[Any] = []
    monkeypatch.setattr(Results, "after", lambda self, request, results: seen.extend(results))
    masked = edit(model="checked", mask=png(mask()), n=2)
    reply = await stub.Edit(masked)
    for result, image in zip(seen, reply.images, strict=True):
        assert (np.asarray(result, dtype=int) == pixels(image)).all()


async def test_a_checkpoints_own_checker_is_one_of_them(
    stub: Any, change: Growth, caplog: pytest.LogCaptureFixture
) -> None:
    told, metadata = await blocked(stub.Edit(edit(model="flagged", n=2)))
    assert told == "Your request was rejected by the safety system."
    assert metadata == {"category": "nsfw"}
    assert change("edits_total", model="flagged", outcome="blocked") == 2
    assert change("moderation_total", model="flagged", stage="after", outcome="blocked") == 1
    assert "black image" not in caplog.text


async def test_a_checkpoints_own_checker_lets_others_pass(
    stub: Any, server: Server, change: Growth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch with what it refuses."""
    served = server._service.served["flagged"]
    await until(lambda: not served.engine.running)  # another test's, refused while it was decoded
    pipe = served.model.pipelines["StableDiffusionInstructPix2PixPipeline"]
    means: list[float] = []
    threshold = 99.0

    def by_brightness(self: Any, image: Any, *_: Any) -> Any:
        means.append(float(image.mean()))
        return image, [means[-1] > threshold]

    monkeypatch.setattr(type(pipe), "run_safety_checker", by_brightness)
    asked = [edit(model="flagged", seed=seed) for seed in (5, 6, 7)]
    alone = [await stub.Edit(each) for each in asked]
    worst = means.index(max(means))
    threshold = sum(sorted(means)[1:]) / 2
    together: list[Any] = await asyncio.gather(
        *(stub.Edit(each) for each in asked), return_exceptions=True
    )
    for i, reply in enumerate(together):
        if i == worst:
            assert isinstance(reply, grpc.aio.AioRpcError)
            assert reply.code() is grpc.StatusCode.FAILED_PRECONDITION
        else:
            assert abs(pixels(reply.images[0]) - pixels(alone[i].images[0])).max() <= 1
    assert change("moderation_total", model="flagged", stage="after", outcome="passed") == 5
    assert change("moderation_total", model="flagged", stage="after", outcome="blocked") == 1


async def test_what_nobody_has_looked_at_is_not_shown(stub: Any) -> None:
    listed = await stub.ListModels(pb.ListModelsRequest())
    shown = {model.id: model.limits.max_partial_images for model in listed.models}
    assert shown == {"checked": 0, "flagged": 0, "watched": 3}
    for model in ("checked", "flagged"):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.StreamEdit(edit(model=model, partial_images=1)).read()
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "partial_images: model" in (failure.value.details() or "")
    events = [event async for event in stub.StreamEdit(edit(model="checked", partial_images=0))]
    assert {event.WhichOneof("event") for event in events} == {"queued", "step", "result"}


async def test_a_stream_ends_with_the_refusal(stub: Any, change: Growth) -> None:
    for prompt, started in (("early", False), ("late", True)):
        seen: list[str] = []

        async def read(prompt: str, seen: list[str]) -> None:
            async for event in stub.StreamEdit(edit(model="checked", prompt=prompt)):
                seen.append(event.WhichOneof("event"))  # noqa: PERF401 - some come before it fails

        await blocked(read(prompt, seen))
        assert ("step" in seen) == started
        assert "result" not in seen
    assert change("edits_total", model="checked", outcome="blocked") == 2


async def test_a_check_that_fails_lets_nothing_pass_and_tells_nothing(
    stub: Any, change: Growth, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for prompt in ("crash my secret", "sulk my secret"):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Edit(edit(model="checked", prompt=prompt))
        assert failure.value.code() is grpc.StatusCode.INTERNAL
        assert failure.value.details() == "the safety check failed"
    assert change("edits_total", model="checked", outcome="failed") == 2
    for stage in ("before", "after"):
        assert change("moderation_total", model="checked", stage=stage, outcome="failed") == 1
    assert "secret" not in caplog.text + json.dumps([vars(r) for r in caplog.records], default=str)


async def test_the_log_says_who_refused_and_why(
    stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    metadata = (("x-request-id", "r-1"),)
    await blocked(stub.Edit(edit(model="checked", prompt="an early secret"), metadata=metadata))
    (line,) = [vars(r) for r in caplog.records if getattr(r, "request_id", "") == "r-1"]
    told = {"code": "FAILED_PRECONDITION", "blocked": "before", "check": "house:Words"}
    assert line.items() >= (told | {"category": "words/early"}).items()
    assert "secret" not in json.dumps(line, default=str)


async def test_a_place_is_held_while_a_request_is_checked(
    stub: Any, server: Server, change: Growth
) -> None:
    """So the queue bounds what is checked; the other models go on; who leaves gives the place back."""
    Words.hold.clear()
    Words.entered.clear()
    served = server._service.served["checked"]
    calls = [stub.Edit(edit(model="checked", prompt="wait", n=QUEUE // 2)) for _ in range(2)]
    await until(lambda: Words.entered.is_set() and served.decoding == QUEUE)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Edit(edit(model="checked"))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Edit(edit(model="watched"))).images
    for call in calls:
        call.cancel()
    await until(lambda: served.decoding == 0)
    Words.hold.set()
    await idle(server)
    assert change("edits_total", model="checked", outcome="cancelled") == QUEUE
    assert change("edits_total", model="checked", outcome="rejected") == 1
    assert (await stub.Edit(edit(model="checked"))).images


async def test_every_image_that_was_asked_for_ends_once(stub: Any, change: Growth) -> None:
    asked = {"night": 1, "early": 2, "late": 3, "crash": 1, "sulk": 2, "early late": 1}
    for prompt, n in asked.items():
        await asyncio.gather(
            stub.Edit(edit(model="checked", prompt=prompt, n=n)), return_exceptions=True
        )
    ended = {each: change("edits_total", model="checked", outcome=each) for each in EDIT_OUTCOMES}
    assert ended == dict.fromkeys(EDIT_OUTCOMES, 0) | {"done": 1, "blocked": 6, "failed": 3}
    assert change("edits_accepted_total", model="checked") == sum(asked.values())


async def test_a_name_that_leads_to_no_check_ends_the_start(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    """Before any model is loaded: the first one's folder is not there."""
    path = tmp_path / "models.yaml"
    checked = {"id": "m", "source": str(tiny_folder("instruct")), "safety": ["nowhere:Check"]}
    path.write_text(yaml.safe_dump({"models": [{"id": "n", "source": "/no/where"}, checked]}))
    server = Server(
        Settings(port=0, metrics_port=0, models=str(path), device="cpu"), on_death=lambda: None
    )
    with pytest.raises(LoadError, match="model m: safety: nowhere:Check: ModuleNotFoundError"):
        await server.load()
    await server.stop()
