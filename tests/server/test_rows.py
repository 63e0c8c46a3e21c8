"""Stacking and splitting calls: what must be equal, what is a row, and that nothing else is merged."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retouch_server.engine.rows import Call, Rows
from retouch_server.engine.tables import TABLES
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


# By denoiser class, a tiny pipeline that has one.
DENOISERS = {
    "UNet2DConditionModel": "xl",
    "FluxTransformer2DModel": "kontext",
    "Flux2Transformer2DModel": "klein",
    "QwenImageTransformer2DModel": "qwen-plus",
    "SD3Transformer2DModel": "sd3",
    "ChromaTransformer2DModel": "chroma",
    "LongCatImageTransformer2DModel": "longcat",
    "ZImageTransformer2DModel": "z-image",
}


@pytest.mark.parametrize("cls", TABLES)
def test_the_tables_name_arguments_that_exist(cls: str, tiny_model: Load) -> None:
    table, denoiser = TABLES[cls], tiny_model(DENOISERS[cls]).denoiser
    assert type(denoiser).__name__ == cls
    taken = inspect.signature(denoiser.forward).parameters
    named = {table.lead, *table.stacked, *filter(None, (table.text, table.mask, table.alone))}
    assert named <= taken.keys()
    assert {table.text, table.mask} - {None} <= table.stacked


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


class Qwen(torch.nn.Module):
    """Adds the mean of a row's text, the padding left out, to its latents; notes the masks that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor | None] = []

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        img_shapes: list[list[tuple[int, int, int]]] | None = None,
    ) -> tuple[Tensor]:
        mask = encoder_hidden_states_mask
        self.masks.append(mask)
        assert len(img_shapes or []) == len(hidden_states)
        if mask is None:
            mask = torch.ones(encoder_hidden_states.shape[:2], dtype=torch.bool)
        weights = (mask / mask.sum(1, keepdim=True))[..., None]
        return (hidden_states + (encoder_hidden_states * weights).sum(1, keepdim=True),)


QwenImageTransformer2DModel = type("QwenImageTransformer2DModel", (Qwen,), {})


def qwen_call(
    rows: Rows, length: int, count: int = 1, mask: Tensor | None = None, side: int = 4
) -> Call:
    return rows.bind(
        (torch.randn(count, 6, 4), torch.randn(count, length, 4), mask),
        {"img_shapes": [[(1, side, 2), (1, 2, 2)]]},
    )


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3), st.booleans()), min_size=2))
def test_padding_leaves_each_row_its_own_text(sizes: list[tuple[int, int, bool]]) -> None:
    """Texts of any lengths, some with masks of their own, stack into one forward; each row gets what it got alone."""
    model = QwenImageTransformer2DModel()
    rows = Rows(model)
    masks = (torch.arange(length) < (length + 1) // 2 for length, _, _ in sizes)
    calls = [
        qwen_call(rows, length, count, mask.expand(count, -1) if masked else None)
        for (length, count, masked), mask in zip(sizes, masks, strict=True)
    ]
    assert len({call.key for call in calls}) == 1
    stacked = rows.stack(calls)
    assert stacked["encoder_hidden_states"].shape[1] == max(length for length, _, _ in sizes)
    for call, (shared,) in zip(calls, rows.split(model(**stacked), calls), strict=True):
        assert torch.allclose(shared, model(**call.arguments)[0], atol=1e-6)


def test_texts_of_one_length_need_no_mask() -> None:
    model = QwenImageTransformer2DModel()
    rows = Rows(model)
    model(**rows.stack([qwen_call(rows, 5), qwen_call(rows, 5, 2)]))
    model(**rows.stack([qwen_call(rows, 5), qwen_call(rows, 4)]))
    assert model.masks[0] is None
    assert model.masks[1] is not None
    assert model.masks[1].tolist() == [[True] * 5, [True] * 4 + [False]]


def test_a_lone_call_is_as_the_pipeline_made_it() -> None:
    rows = Rows(QwenImageTransformer2DModel())
    call = qwen_call(rows, 5)
    assert rows.stack([call]) is call.arguments
    assert call.arguments["encoder_hidden_states_mask"] is None


def test_pictures_of_other_shapes_do_not_share() -> None:
    """Their position ids are made from the first row's shape."""
    rows = Rows(QwenImageTransformer2DModel())
    assert qwen_call(rows, 5).key == qwen_call(rows, 7, 2).key
    assert qwen_call(rows, 5).key != qwen_call(rows, 5, side=3).key


@pytest.mark.parametrize(("backend", "padded"), [(None, True), ("native", True), ("flash", False)])
def test_without_masks_only_texts_of_one_length_share(backend: str | None, padded: bool) -> None:
    """diffusers' flash and sage attention raise on a mask: then no call may need one."""
    model, attention = QwenImageTransformer2DModel(), torch.nn.Module()
    attention.processor = type("Processor", (), {"_attention_backend": backend})()
    model.add_module("attention", attention)
    rows = Rows(model)
    assert (qwen_call(rows, 5).key == qwen_call(rows, 4).key) == padded
    assert qwen_call(rows, 5).key == qwen_call(rows, 5, 2).key


def test_rows_in_lists_are_stacked_and_split_by_their_number(tiny_model: Load) -> None:
    rows = Rows(tiny_model("z-image").denoiser)

    def call(count: int, length: int, side: int = 8) -> Call:
        latents = [torch.randn(4, 1, side, 8) for _ in range(count)]
        texts = [torch.randn(length + i, 16) for i in range(count)]
        return rows.bind((latents, torch.rand(count), texts), {})

    calls = [call(1, 3), call(2, 40)]
    assert calls[0].key == calls[1].key != call(1, 3, side=4).key
    stacked = rows.stack(calls)
    assert [len(stacked[name]) for name in ("x", "t", "cap_feats")] == [3, 3, 3]
    with torch.inference_mode():
        denoiser = tiny_model("z-image").denoiser
        first, second = rows.split(denoiser(**stacked), calls)
        alone = denoiser(**calls[1].arguments)
    assert (len(first.sample), len(second.sample)) == (1, 2)
    for shared, lone in zip(second.sample, alone.sample, strict=True):
        assert torch.allclose(shared, lone, atol=1e-5)


def test_a_call_with_a_cache_of_its_own_runs_alone(tiny_model: Load) -> None:
    rows = Rows(tiny_model("klein").denoiser)

    def call(**cache: Any) -> Call:
        ids = torch.zeros(1, 4, 4)
        return rows.bind(
            (torch.randn(1, 4, 16), torch.randn(1, 4, 48)),
            {"timestep": torch.ones(1), "img_ids": ids, "txt_ids": ids, **cache},
        )

    assert call().key == call().key
    assert call(kv_cache_mode="extract").key != call(kv_cache_mode="extract").key
