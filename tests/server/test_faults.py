"""What goes wrong in a forward or a turn: memory that runs out, answers that are no numbers. Who is told what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from retouch_server import images
from retouch_server.engine.batching import HOLD, Policy
from retouch_server.engine.cache import Encodings
from retouch_server.engine.edit import Edit, Host, Run
from retouch_server.engine.engine import Engine
from retouch_server.engine.forward import NotANumber
from tests.server.conftest import Load
from tests.server.test_batching import Call
from tests.server.test_equality import EDITS, picture
from tests.server.test_service import png
from tests.server.test_turns import run

SHORT = (
    torch.OutOfMemoryError("no room on the device"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
    ),
    torch.AcceleratorError("CUDA error: out of memory"),
    MemoryError(),
)


class Denoiser:
    """Doubles its rows; `rows` is how many each forward had, `fault` what each does before."""

    def __init__(self) -> None:
        self.rows = list[int]()
        self.fault: Callable[[Tensor], None] = lambda sample: None

    def forward(self, sample: Tensor, timestep: int) -> Tensor:
        return sample * 2

    def __call__(self, sample: Tensor, timestep: Any) -> Tensor:
        self.rows.append(len(sample))
        self.fault(sample)
        return self.forward(sample, timestep)


UNet2DConditionModel = type("UNet2DConditionModel", (Denoiser,), {})


@pytest.fixture
def denoiser() -> Any:
    return UNet2DConditionModel()


def more_than(rows: int, error: BaseException) -> Callable[[Tensor], None]:
    def fault(sample: Tensor) -> None:
        if len(sample) > rows:
            raise error

    return fault


def doubling(steps: int = 1, start: float = 1.0) -> Run:
    def pipeline(host: Host) -> Tensor:
        value = torch.full((1, 1), start)
        for step in range(steps):
            value = host.denoiser(value, step)
            host.on_step(step + 1, steps)
        return value

    return pipeline


def results(edits: list[Edit]) -> list[float]:
    return [edit.future.result(0).item() for edit in edits]


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
    """But for what is filled up to fixed sizes anyway, and a call that is larger than that by itself."""
    calls = [Call("k", tokens=1) for _ in range(8)]
    policy = Policy(max_rows=24, max_tokens=max_tokens, least_rows=least_rows)
    policy.too_large(calls[:tried])
    limit = min(tried // 2, max_tokens or 8)
    assert policy.limit == limit
    assert len(policy.next_batch(calls)) == max(limit, least_rows)
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
    assert denoiser.rows == [4, 4, 4]
    assert all(isinstance(edit.future.exception(0), torch.OutOfMemoryError) for edit in edits)


def phased(work: Callable[[], Tensor], name: str = "image") -> Run:
    def pipeline(host: Any) -> Tensor:
        result: Tensor = host.phase(name, work)
        return result

    return pipeline


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


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("spreads", [False, True])
def test_an_answer_that_is_no_number_fails_its_edit_at_that_step(
    denoiser: Any, wrong: float, spreads: bool
) -> None:
    """Though a model mix the rows of a forward: those whose answer is a number alone go on."""

    def forward(sample: Tensor, timestep: Any) -> Tensor:
        bad = sample == 8
        return torch.where(bad.any() if spreads else bad, wrong, sample * 2)

    told = list[BaseException]()
    denoiser.forward = forward
    edits = [Edit(doubling(10, start)) for start in (1.5, 2.0, 2.5)]
    run(Engine(denoiser, on_error=told.append), edits)
    with pytest.raises(NotANumber, match="not a number"):
        edits[1].future.result(0)
    assert edits[1].steps == 2
    assert [edits[i].future.result(0).item() for i in (0, 2)] == [1536, 2560]
    assert [type(error) for error in told] == [NotANumber]
    # Alone was run what was no number, and nothing else.
    assert denoiser.rows == [3, 3, 3, *[1] * (3 if spreads else 1), *[2] * 7]


def test_reuse_does_not_keep_what_is_no_number(denoiser: Any) -> None:
    denoiser.forward = lambda sample, timestep: sample * torch.nan
    edits = [Edit(doubling(10))]
    run(Engine(denoiser, reuse=0.5), edits)
    assert isinstance(edits[0].future.exception(0), NotANumber)
    assert denoiser.rows == [1]


def test_an_encoding_that_is_no_number_is_not_kept_for_others(denoiser: Any) -> None:
    """A bad moment would spoil every later edit of the same photo."""
    values = iter([torch.nan, 7.0])

    def work() -> Tensor:
        return torch.full((10,), next(values))

    engine, edits = Engine(denoiser, cache_bytes=1000), [Edit(phased(work)) for _ in range(3)]
    for edit in edits:
        run(engine, [edit])
    first, *others = (edit.future.result(0) for edit in edits)
    assert first.isnan().all()
    assert all((each == 7).all() for each in others)
    assert engine.encodings.bytes == 40


def test_a_result_that_is_no_number_fails_its_edit(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a VAE whose numbers overflow: the latents were well."""
    model, told = tiny_model("instruct"), list[BaseException]()
    vae = model.pipelines[model.family.edit].vae
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda *a, **k: (decode(*a, **k)[0] * torch.nan,))
    edits = [Edit(model.run(EDITS[0]))]
    run(Engine(model.denoiser, on_error=told.append), edits)
    assert isinstance(edits[0].future.exception(0), NotANumber)
    assert [type(error) for error in told] == [NotANumber]


def test_want_of_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a decoder raises is its caller's mistake, but for this."""
    data = png(picture(0))

    def full(image: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(images, "to_srgb", full)
    with pytest.raises(MemoryError):
        images.decode(data, "images[0]", images.InputLimits())
