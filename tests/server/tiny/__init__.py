"""Tiny random-weight pipelines, built from configs alone and saved as the folders that real ones come in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import flux, qwen, stable

BUILDERS: Mapping[str, Callable[[], Any]] = {
    "instruct": stable.instruct,
    "diffusion": stable.diffusion,
    "inpaint": stable.inpaint,
    "xl": stable.xl,
    "xl-inpaint": stable.xl_inpaint,
    "xl-instruct": stable.xl_instruct,
    "sd3": stable.sd3,
    "kontext": flux.kontext,
    "flux": flux.dev,
    "fill": flux.fill,
    "chroma": flux.chroma,
    "klein": flux.klein,
    "klein-distilled": flux.klein_distilled,
    "klein-kv": flux.klein_kv,
    "flux2": flux.flux2,
    "qwen": qwen.image,
    "qwen-edit": qwen.edit,
    "qwen-plus": qwen.plus,
    "longcat": qwen.longcat,
    "z-image": qwen.z_image,
    "z-omni": qwen.z_omni,
}


def save(name: str, folder: Path) -> Path:
    """Build the pipeline `name`, a key of BUILDERS, and save it under `folder`."""
    torch.manual_seed(0)
    pipe = BUILDERS[name]()
    pipe.save_pretrained(folder / name)
    for part in pipe.components.keys() & {"processor", "text_processor"}:
        rewrite_index(folder / name, **{part: ["transformers", "Qwen2VLProcessor"]})
    return folder / name


def rewrite_index(folder: Path, **changes: Any) -> None:
    """Change entries of a saved pipeline's model_index.json."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
