"""Per denoiser class, one row: which arguments of its forward hold a row per image, and which of them is text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Which arguments of a forward hold rows: tensors by dim 0, lists by element, mappings of these.

    lead:    the one that counts the rows.
    stacked: the others that have a row per image.
    text:    one of `stacked` whose rows (LxD) may differ in length: right-padded to the longest of a forward.
    mask:    the argument that tells padding from text, rows x L, True = text. None where the model masks by itself:
             then `text` is a list of rows, and nothing is padded here.
    alone:   an argument that keeps a call to itself when it is given.
    """

    lead: str
    stacked: frozenset[str]
    text: str | None = None
    mask: str | None = None
    alone: str | None = None


# Sources: forward() in diffusers 0.42, models/unets/unet_2d_condition.py and models/transformers/transformer_*.py.
TABLES: Mapping[str, Table] = {
    "UNet2DConditionModel": Table(
        "sample",
        frozenset(
            {
                "timestep",
                "encoder_hidden_states",
                "class_labels",
                "timestep_cond",
                "attention_mask",
                "added_cond_kwargs",
                "encoder_attention_mask",
            }
        ),
    ),
    "FluxTransformer2DModel": Table(
        "hidden_states",
        frozenset({"timestep", "guidance", "pooled_projections", "encoder_hidden_states"}),
    ),
    # Its ids have three dimensions and look like rows, but the first row is used for all.
    "Flux2Transformer2DModel": Table(
        "hidden_states",
        frozenset({"timestep", "guidance", "encoder_hidden_states"}),
        alone="kv_cache_mode",
    ),
    # `img_shapes`: the first is used for all, yet with zero_cond_t one for each row is wanted.
    "QwenImageTransformer2DModel": Table(
        "hidden_states",
        frozenset(
            {
                "timestep",
                "guidance",
                "encoder_hidden_states",
                "encoder_hidden_states_mask",
                "additional_t_cond",
                "img_shapes",
            }
        ),
        text="encoder_hidden_states",
        mask="encoder_hidden_states_mask",
    ),
    "SD3Transformer2DModel": Table(
        "hidden_states", frozenset({"timestep", "pooled_projections", "encoder_hidden_states"})
    ),
    "ChromaTransformer2DModel": Table(
        "hidden_states", frozenset({"timestep", "encoder_hidden_states", "attention_mask"})
    ),
    "LongCatImageTransformer2DModel": Table(
        "hidden_states", frozenset({"timestep", "guidance", "encoder_hidden_states"})
    ),
    "ZImageTransformer2DModel": Table(
        "x", frozenset({"t", "cap_feats", "siglip_feats", "image_noise_mask"}), text="cap_feats"
    ),
}

# diffusers' attention backends that take a mask: the others raise on one, or misread it. With those only texts of equal
# length share a forward.
MASKING = frozenset(
    {"native", "_native_cudnn", "_native_efficient", "_native_math", "flex", "xformers"}
)
