"""What a run of training keeps: the UNet with its optimizer, the checkpoint to go on from, the folder it ends in."""

import copy
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from retouch_server.pocket import words
from retouch_server.pocket.modules import PixelSpace, PocketUNet, build_scheduler


@dataclass
class State:
    """All that a checkpoint of the UNet holds. `seconds` is time spent training, over all runs."""

    unet: PocketUNet
    average: PocketUNet
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


def build_unet() -> PocketUNet:
    levels = (24, 48, 96, 128)
    return PocketUNet(  # type: ignore[no-any-return]
        sample_size=128,
        in_channels=24,
        out_channels=12,
        down_block_types=("DownBlock2D",) * len(levels),
        up_block_types=("UpBlock2D",) * len(levels),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=levels,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=words.WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def build(out: Path) -> State:
    """A fresh state, or the checkpoint's."""
    unet = build_unet()
    # What knows the surroundings alone is learned fast; the deep part, given the same rate, is undone by it.
    groups = {"near": 1.0, "everywhere": 1.0, "": 0.25}
    optimizer = torch.optim.AdamW(  # the rate is set at every step
        [
            {"params": params, "share": groups[name]}
            for name, params in _parts(unet, groups).items()
        ],
        weight_decay=0.01,
    )
    state = State(unet, copy.deepcopy(unet).eval(), optimizer)
    state.average.requires_grad_(False)
    if (out / "unet.pt").exists():
        content = torch.load(out / "unet.pt", weights_only=True)
        for name in ("unet", "average", "optimizer"):
            getattr(state, name).load_state_dict(content[name])
        state.step, state.seconds = content["step"], content["seconds"]
    return state


def _parts(unet: PocketUNet, names: Iterable[str]) -> dict[str, list[nn.Parameter]]:
    """The parameters by the part they belong to, "" for the rest."""
    parts: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    for name, parameter in unet.named_parameters():
        part = name.split(".")[0]
        parts[part if part in parts else ""].append(parameter)
    return parts


def save(state: State, out: Path) -> None:
    content: dict[str, Any] = {
        name: getattr(state, name).state_dict() for name in ("unet", "average", "optimizer")
    }
    torch.save(content | {"step": state.step, "seconds": state.seconds}, out / "unet.tmp")
    os.replace(out / "unet.tmp", out / "unet.pt")


def export(
    unet: PocketUNet, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """Writes the pipeline folder, the UNet in half precision, then puts it in the place of an older one."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=PixelSpace(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet).half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(fresh)
    index = fresh / "model_index.json"
    content = json.loads(index.read_text())
    for name in ("vae", "unet"):  # found in the package, whichever file the class is in
        content[name][0] = "retouch_server.pocket"
    index.write_text(json.dumps(content, indent=2) + "\n")
    for path in fresh.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600, which an installed package must not keep
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
