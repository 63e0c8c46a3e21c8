"""Stacking and splitting calls: what must be equal, what is a row, and that nothing else is merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retouch_server.engine.rows import TABLES, Rows
from tests.server.conftest import Load


class Flux:
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        guidance: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Tensor:
        return hidden_states + timestep[:, None, None]


FluxTransformer2DModel = type("FluxTransformer2DModel", (Flux,), {})


def call(rows: Rows, count: int = 1, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "hidden_states": torch.randn(count, 6, 4),
        "encoder_hidden_states": torch.randn(count, 5, 8),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.arange(12.0).reshape(6, 2),
    }
    return rows.bind((), arguments | changes)


@pytest.fixture
def rows() -> Rows:
    return Rows(FluxTransformer2DModel())


def test_calls_of_equal_shape_and_ids_share(rows: Rows) -> None:
    one, three = call(rows), call(rows, 3, timestep=torch.tensor([0.25]))
    assert one.key == three.key
    assert (one.rows, three.rows) == (1, 3)
    stacked = rows.stack([one, three])
    assert stacked["hidden_states"].shape == (4, 6, 4)
    assert stacked["timestep"].tolist() == [0.5, 0.25, 0.25, 0.25]
    assert stacked["img_ids"] is one.arguments["img_ids"]
    output = FluxTransformer2DModel().forward(**stacked)
    first, second = rows.split(output, [one, three])
    assert torch.equal(first, one.arguments["hidden_states"] + 0.5)
    assert torch.equal(second, three.arguments["hidden_states"] + 0.25)


@pytest.mark.parametrize(
    "change",
    [
        {"img_ids": torch.arange(12.0).reshape(6, 2).flip(0)},
        {"hidden_states": torch.randn(1, 7, 4)},
        {"encoder_hidden_states": torch.randn(1, 4, 8)},
        {"hidden_states": torch.randn(1, 6, 4, dtype=torch.float64)},
        {"guidance": torch.tensor([3.5])},
        {"return_dict": False},
        {"joint_attention_kwargs": {"scale": 0.5}},
    ],
)
def test_whatever_differs_does_not_share(rows: Rows, change: dict[str, Any]) -> None:
    assert call(rows).key != call(rows, **change).key


def test_defaults_given_or_not_are_the_same_call(rows: Rows) -> None:
    assert call(rows).key == call(rows, guidance=None, return_dict=True).key


def test_positional_arguments_are_bound_to_their_names(rows: Rows) -> None:
    named = call(rows)
    values = [
        named.arguments[k]
        for k in ("hidden_states", "encoder_hidden_states", "timestep", "img_ids")
    ]
    assert rows.bind(tuple(values), {}).key == named.key


def test_tuples_and_models_outputs_are_split_in_their_container(rows: Rows) -> None:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    calls = [call(rows), call(rows, 2)]
    sample = torch.arange(3.0)
    assert [part[0].tolist() for part in rows.split((sample,), calls)] == [[0], [1, 2]]
    outputs = rows.split(Transformer2DModelOutput(sample=sample), calls)
    assert [type(part).__name__ for part in outputs] == ["Transformer2DModelOutput"] * 2
    assert outputs[1].sample.tolist() == [1, 2]


def test_an_unknown_class_never_shares() -> None:
    rows = Rows(Flux())
    assert call(rows).key != call(rows).key


@pytest.mark.parametrize(
    ("name", "cls"), [("instruct", "UNet2DConditionModel"), ("kontext", "FluxTransformer2DModel")]
)
def test_the_tables_name_arguments_that_exist(name: str, cls: str, tiny_model: Load) -> None:
    import inspect

    taken = inspect.signature(tiny_model(name).denoiser.forward).parameters
    assert TABLES[cls].stacked | {TABLES[cls].lead} <= taken.keys()


def test_nested_conditions_are_rows(tiny_model: Load) -> None:
    rows = Rows(tiny_model("instruct").denoiser)

    def unet(count: int, t: Any) -> Any:
        text = {"text_embeds": torch.randn(count, 3)}
        return rows.bind(
            (torch.randn(count, 8, 8, 8), t, torch.randn(count, 4, 16)), {"added_cond_kwargs": text}
        )

    calls = [unet(1, torch.tensor(7)), unet(2, torch.tensor(9))]
    stacked = rows.stack(calls)
    assert stacked["timestep"].tolist() == [7, 9, 9]
    assert stacked["added_cond_kwargs"]["text_embeds"].shape == (3, 3)
