"""Weights larger than a model is made with, where those let a prompt move a pixel by less than a thousandth."""

from __future__ import annotations

from typing import Any

import torch


def enlivened(model: Any) -> Any:
    """The model, its matrices three times as large."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(3)
    return model
