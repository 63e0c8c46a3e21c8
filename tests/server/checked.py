"""Safety checks that tests plug in, a checkpoint whose own checker flags everything, and what refusals look like."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from transformers import CLIPConfig, CLIPImageProcessor

from retouch_server.safety import Refusal, Request
from retouch_server.server import Server
from tests.server import tiny


class Words:
    """Refuses by words, before and after; `hold`: what it waits for where the prompt says so."""

    hold = threading.Event()
    entered = threading.Event()

    def before(self, request: Request) -> Refusal | None:
        if "wait" in request.prompt:
            Words.entered.set()
            Words.hold.wait(60)
        if "crash" in request.prompt:
            raise RuntimeError(request.prompt)
        return Refusal("words/early", "Not here.") if "early" in request.prompt else None


class Results:
    """Refuses results by the prompt."""

    def after(self, request: Request, results: Any) -> Refusal | None:
        if "sulk" in request.prompt:
            raise RuntimeError(request.prompt)
        return Refusal("words/late") if "late" in request.prompt else None


def flagging(folder: Path) -> Path:
    """A copy of a checkpoint with a real safety checker, to which every picture is one that it should flag."""
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = CLIPConfig(vision_config=size | heads, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2.0)  # below any cosine
    checker.save_pretrained(folder / "safety_checker")
    CLIPImageProcessor(size=8, crop_size=8).save_pretrained(folder / "feature_extractor")
    cls = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    extractor = ["transformers", "CLIPImageProcessor"]
    tiny.rewrite_index(folder, safety_checker=cls, feature_extractor=extractor)
    return folder


class Growth:
    """By how much a server's series have grown since this was made."""

    def __init__(self, server: Server) -> None:
        self._registry = server._metrics.registry
        self._before = self._now()

    def __call__(self, name: str, **labels: str) -> float:
        key = (f"retouch_server_{name}", *sorted(labels.items()))
        return self._now()[key] - self._before[key]

    def _now(self) -> dict[Any, float]:
        return {
            (each.name, *sorted(each.labels.items())): each.value
            for family in self._registry.collect()
            for each in family.samples
        }


async def blocked(call: Any) -> tuple[str, dict[str, str]]:
    """Message and metadata of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    status = rpc_status.from_call(failure.value)
    assert status is not None
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("MODERATION_BLOCKED", "retouch.v1")
    return failure.value.details() or "", dict(info.metadata)
