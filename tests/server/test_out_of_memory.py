"""Memory that runs out: in a forward, in a turn, and beside them. What is done again, how, and what is learnt of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from retouch_server import containers, images
from retouch_server.engine.batching import HOLD, Policy
from retouch_server.engine.cache import Encodings
from retouch_server.engine.edit import Edit, Host
from retouch_server.engine.engine import Engine
from tests.server.test_batching import Call
from tests.server.test_equality import picture
from tests.server.test_faults import denoiser, doubling, more_than, phased, results
from tests.server.test_service import png
from tests.server.test_turns import run

__all__ = ["denoiser"]

SHORT = (
    torch.OutOfMemoryError("no room on the device"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
    ),
    torch.AcceleratorError("CUDA error: out of memory"),
    MemoryError(),
)


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_a_forward_without_memory_is_run_again_by_halves(
    denoiser: Any, error: BaseException
) -> None:
    denoiser.fault = more_than(2, error)
    edits = [Edit(doubling(start=float(i))) for i in range(8)]
    run(Engine(denoiser), edits)
    assert results(edits) == [2.0 * i for i in range(8)]
    assert denoiser.rows == [8, 4, 2, 2, 4, 2, 2]


def test_what_has_no_memory_alone_fails_alone(denoiser: Any) -> None:
    def fault(sample: Tensor) -> None:
        if (sample == 3).any():
            raise torch.OutOfMemoryError

    told = list[BaseException]()
    denoiser.fault = fault
    edits = [Edit(doubling(start=float(i))) for i in range(1, 5)]
    run(Engine(denoiser, on_error=told.append), edits)
    with pytest.raises(torch.OutOfMemoryError):
        edits[2].future.result(0)
    del edits[2]
    assert results(edits) == [2, 4, 8]
    assert denoiser.rows == [4, 2, 2, 1, 1]
    assert len(told) == 3


def test_one_edit_alone_is_tried_twice(denoiser: Any) -> None:
    failures = iter([torch.OutOfMemoryError()])

    def fault(sample: Tensor) -> None:
        for error in failures:
            raise error

    denoiser.fault = fault
    edits = [Edit(doubling())]
    run(Engine(denoiser), edits)
    assert results(edits) == [2]
    assert denoiser.rows == [1, 1]


def test_the_engine_learns_what_was_too_large_and_forgets_it_in_time(denoiser: Any) -> None:
    """Else each step of the same edits would run out of memory again."""
    denoiser.fault = more_than(4, torch.OutOfMemoryError())
    engine = Engine(denoiser)
    edits = [Edit(doubling(steps=3)) for _ in range(8)]
    run(engine, edits)
    assert results(edits) == [8] * 8
    assert denoiser.rows == [8, 4, 4, *[4] * 4]
    assert engine.max_tokens == 4
    denoiser.fault = more_than(100, MemoryError())
    for _ in range(HOLD // 50):
        run(engine, [Edit(doubling(steps=50))])
    assert engine.max_tokens is None
    denoiser.rows.clear()
    run(engine, [Edit(doubling()) for _ in range(8)])
    assert denoiser.rows == [8]


@pytest.mark.parametrize("max_tokens", [None, 6, 100])
@pytest.mark.parametrize("least_rows", [1, 3])
@pytest.mark.parametrize("tried", range(2, 9))
def test_after_a_forward_was_too_large_none_of_more_than_half_of_it_is_shared(
    max_tokens: int | None, least_rows: int, tried: int
) -> None:
    """But for a call that is larger than that by itself."""
    calls = [Call("k", tokens=1) for _ in range(8)]
    policy = Policy(max_rows=24, max_tokens=max_tokens, least_rows=least_rows)
    policy.too_large(calls[:tried])
    limit = min(tried // 2, max_tokens or 8)
    assert policy.limit == limit
    assert len(policy.next_batch(calls)) == limit
    assert len(policy.next_batch([Call("k", tokens=1000)])) == 1
    policy.forwards = HOLD - 1
    assert policy.limit == limit
    policy.forwards = HOLD
    assert policy.limit == max_tokens


def test_fixed_sizes_are_let_go_for_memory_but_not_where_results_depend_on_them(
    denoiser: Any,
) -> None:
    denoiser.fault = more_than(2, torch.OutOfMemoryError())
    edits = [Edit(doubling(start=float(i))) for i in range(2)]
    run(Engine(denoiser, sizes=[4]), edits)
    assert results(edits) == [0, 2]
    assert denoiser.rows == [4, 1, 1]
    denoiser.rows.clear()
    edits = [Edit(doubling()) for _ in range(2)]
    run(Engine(denoiser, sizes=[4], exact=True), edits)
    assert denoiser.rows == [4, 4]
    assert all(isinstance(edit.future.exception(0), torch.OutOfMemoryError) for edit in edits)


@pytest.mark.parametrize(
    ("sizes", "edits", "fit", "rows"),
    [
        ([4], 1, 3, [4, *[1] * 6]),
        ([4], 4, 2, [4, 2, 2, *[2] * 10]),
        ([1, 2, 4, 8], 4, 2, [4, 2, 2, *[2] * 10]),
        ([2, 4, 8], 2, 1, [2, 1, 1, *[1] * 10]),
    ],
)
def test_what_is_filled_up_to_a_fixed_size_is_learnt_too(
    denoiser: Any, sizes: list[int], edits: int, fit: int, rows: list[int]
) -> None:
    """Else each step would run out of memory again."""
    denoiser.fault = more_than(fit, torch.OutOfMemoryError())
    doubled = [Edit(doubling(steps=6)) for _ in range(edits)]
    run(Engine(denoiser, sizes=sizes), doubled)
    assert results(doubled) == [64] * edits
    assert denoiser.rows == rows


def test_what_ran_out_before_is_not_forgotten_for_what_did_since() -> None:
    policy = Policy(max_rows=24)
    policy.too_large([Call("k", tokens=4)] * 2)
    policy.too_large([Call("k", tokens=100)] * 2)
    assert policy.limit == 4


@pytest.mark.parametrize("at", [1, 3, 8])
def test_want_of_memory_while_answers_are_looked_at_is_one_of_their_forward(
    denoiser: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real, looks = torch.Tensor.isfinite, iter(range(1, 1000))

    def isfinite(self: Tensor) -> Tensor:
        if next(looks) == at:
            raise torch.OutOfMemoryError
        return real(self)

    monkeypatch.setattr(torch.Tensor, "isfinite", isfinite)
    edits = [Edit(doubling(4)) for _ in range(8)]
    run(Engine(denoiser), edits)
    assert results(edits) == [16] * 8


def test_want_of_memory_while_an_encoding_is_looked_at_is_no_reason_to_fail(
    denoiser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, edits = Engine(denoiser, cache_bytes=1000), [Edit(phased(lambda: torch.ones(10)))]

    def isfinite(self: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "isfinite", isfinite)
    run(engine, edits)
    assert edits[0].future.result(0).sum() == 10
    assert engine.encodings.bytes == 0


def test_want_of_memory_for_a_preview_is_no_reason_to_fail(denoiser: Any) -> None:
    class Clean:
        def float(self) -> Tensor:
            raise torch.OutOfMemoryError

    def pipeline(host: Any) -> Tensor:
        host.clean = Clean()
        return doubling(4)(host)

    told, shown = list[BaseException](), list[Tensor]()
    edits = [Edit(pipeline, total=4, previews=1, on_preview=shown.append)]
    run(Engine(denoiser, on_error=told.append), edits)
    assert results(edits) == [16]
    assert [type(error) for error in told] == [torch.OutOfMemoryError]
    assert shown == []


@pytest.mark.parametrize("name", ["prompt", "image", "decode"])
def test_a_turn_without_memory_is_taken_again_without_what_was_held(
    denoiser: Any, name: str
) -> None:
    """To encode and to decode have no effect but their result."""
    engine = Engine(denoiser, cache_bytes=1000)
    run(engine, [Edit(phased(lambda: torch.ones(100)))])
    assert engine.encodings.bytes == 400
    found = list[int]()

    def work() -> Tensor:
        found.append(engine.encodings.bytes)
        if engine.encodings.bytes:
            raise torch.OutOfMemoryError
        return torch.ones(1)

    edits = [Edit(phased(work, name))]
    run(engine, edits)
    assert results(edits) == [1]
    assert found == [400, 0]


def test_a_turn_that_never_has_memory_fails_its_edit_alone(denoiser: Any) -> None:
    def work() -> Tensor:
        raise torch.OutOfMemoryError

    told = list[BaseException]()
    edits = [Edit(doubling(3)), Edit(phased(work)), Edit(doubling(3))]
    run(Engine(denoiser, on_error=told.append), edits)
    assert [edit.future.exception(0) is None for edit in edits] == [True, False, True]
    assert len(told) == 2


def test_memory_that_runs_out_elsewhere_gives_back_what_was_held(denoiser: Any) -> None:
    def pipeline(host: Host) -> Tensor:
        raise torch.OutOfMemoryError

    engine = Engine(denoiser, cache_bytes=1000)
    run(engine, [Edit(phased(lambda: torch.ones(100)))])
    run(engine, [Edit(pipeline)])
    assert engine.encodings.bytes == 0


def test_what_is_held_is_made_anew_where_there_is_no_room_for_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Encodings(1000)
    held.put(b"photo", torch.ones(100))

    def full(value: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("retouch_server.engine.cache.copy.deepcopy", full)
    assert held.get(b"photo") is None
    assert held.bytes == 0
    held.put(b"photo", torch.ones(100))
    assert held.bytes == 0


def test_want_of_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a decoder raises is its caller's mistake, but for this."""
    data = png(picture(0))

    def full(image: Image.Image) -> Image.Image:
        raise MemoryError

    for where, what in ((images, "to_srgb"), (containers, "slim")):
        monkeypatch.setattr(where, what, full)
        with pytest.raises(MemoryError):
            images.decode(data, "images[0]", images.InputLimits())
        monkeypatch.undo()
