"""Answers that are no numbers, and what else goes wrong in a forward: who is told what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from retouch_server.engine.edit import Edit, Host, Run
from retouch_server.engine.engine import Engine
from retouch_server.engine.forward import NotANumber
from tests.server.conftest import Load
from tests.server.test_equality import EDITS
from tests.server.test_turns import run


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


def test_of_what_a_forward_failed_of_no_words_are_told(
    denoiser: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be a caller's; the formatter knows which are not."""
    denoiser.fault = more_than(1, ValueError("words of a caller"))
    edits = [Edit(doubling()) for _ in range(2)]
    run(Engine(denoiser), edits)
    assert results(edits) == [2, 2]
    (line,) = caplog.records
    assert "words" not in line.getMessage()
    assert line.exc_info
    caplog.clear()


def phased(work: Callable[[], Tensor], name: str = "image") -> Run:
    def pipeline(host: Any) -> Tensor:
        result: Tensor = host.phase(name, work)
        return result

    return pipeline


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
