"""The first edits of a model: what they prove, and what they measure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch_server import warmup
from retouch_server.loading import LoadError
from retouch_server.models import Inputs, Model
from retouch_server.previews import Previewer
from retouch_server.warmup import COUNTS, Sharing, token_budget, warm_up
from tests.server.conftest import Load
from tests.server.test_sharing import sizes_of_forwards, told


@given(st.floats(1e-4, 1.0), st.floats(1e-7, 1e-3), st.integers(1, 10_000))
def test_the_budget_is_where_more_tokens_hardly_pay(fixed: float, each: float, one: int) -> None:
    points = [(n * one, fixed + each * n * one) for n in COUNTS]
    budget = token_budget(points)
    assert budget == pytest.approx(10 * fixed / each, rel=1e-3, abs=2)


def test_what_costs_nothing_to_share_has_no_budget() -> None:
    assert token_budget([(n, 0.01) for n in COUNTS]) is None
    assert token_budget([(8, 0.02), (16, 0.015), (32, 0.01)]) is None


def test_too_few_points_tell_nothing() -> None:
    assert token_budget([]) is None
    assert token_budget([(1, 1.0)]) is None


def test_where_sharing_saves_nothing_calls_take_turns() -> None:
    assert token_budget([(n, float(n)) for n in COUNTS]) == 1


def test_a_model_is_measured_and_its_previews_are_ready(tiny_model: Load) -> None:
    previewer = Previewer()
    sharing = warm_up(tiny_model("instruct"), previewer)
    assert sharing.max_tokens is None or sharing.max_tokens >= 1
    assert sharing.sizes == ()
    assert previewer.ready


def test_the_catalogues_word_on_tokens_is_taken(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "_measure", None)
    assert warm_up(told(tiny_model("kontext"), max_tokens=77), Previewer()).max_tokens == 77


def test_every_size_is_run_before_the_model_is_ready(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nobody waits for a compiler later."""
    sizes = sizes_of_forwards(tiny_model("instruct"), monkeypatch, "sample")
    model = told(
        tiny_model("instruct"), max_tokens=1, batch_sizes=[6, 12], warm_up=[(64, 64), (64, 96)]
    )
    assert warm_up(model, Previewer()) == Sharing(1, (6, 12))
    edit = [3] * warmup.STEPS
    assert sizes == [*edit, 6, 12, *edit, 6, 12]


def test_compiled_models_have_fixed_sizes_without_being_told(tiny_model: Load) -> None:
    model = told(tiny_model("instruct"), compile=True, max_tokens=1, max_rows=12)
    assert warm_up(model, Previewer()).sizes == (3, 6, 12)


def test_deterministic_models_have_one_size(tiny_model: Load) -> None:
    model = told(tiny_model("instruct"), deterministic=True, max_tokens=1, max_rows=9)
    assert warm_up(model, Previewer()).sizes == (9,)


def test_a_slow_model_is_measured_too(tiny_model: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two sizes at least: it is the one for which sharing may not pay."""
    monkeypatch.setattr(warmup, "CALIBRATION_SECONDS", 0.0)
    monkeypatch.setattr(warmup, "_forward", lambda model, rows, call, size: size / 100)
    assert warm_up(tiny_model("instruct"), Previewer()).max_tokens == 1


def test_a_machine_that_was_busy_for_a_moment_is_measured_again(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([[(1, 1.0), (8, 8.0)], [(10, 1.0), (80, 1.7)]])
    monkeypatch.setattr(warmup, "_measure", lambda *_: next(measured))
    assert warm_up(tiny_model("instruct"), Previewer()).max_tokens == pytest.approx(900, abs=2)


def test_reuse_needs_latents_in_one_tensor(tiny_model: Load) -> None:
    with pytest.raises(LoadError, match=r"model z-image: .*reuse: "):
        warm_up(told(tiny_model("z-image"), reuse=0.1), Previewer())


def test_a_model_whose_results_are_no_numbers_is_not_served(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of weights that overflow in float16."""
    model = tiny_model("instruct")
    weights = model.denoiser.conv_in.weight
    monkeypatch.setattr(weights, "data", weights.data * float("nan"))
    with pytest.raises(LoadError, match="not a number"):
        warm_up(model, Previewer())


def test_every_pipeline_does_an_edit(tiny_model: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model, used = tiny_model("diffusion"), set[str]()
    run = Model.run

    def watched(self: Model, inputs: Inputs) -> Any:
        used.add(self.pipeline_name(mask=bool(inputs.mask), strength=inputs.strength is not None))
        return run(self, inputs)

    monkeypatch.setattr(Model, "run", watched)
    warm_up(told(model, max_tokens=1), Previewer())
    assert used == model.pipelines.keys()


def test_a_model_that_cannot_do_an_edit_is_not_served(
    tiny_model: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("instruct")

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("a shape that fits nothing")

    broken.__wrapped__ = model.denoiser.forward  # type: ignore[attr-defined]
    monkeypatch.setattr(model.denoiser, "forward", broken)
    with pytest.raises(LoadError, match=r"model instruct: its first edit failed: .*fits nothing"):
        warm_up(model, Previewer())
