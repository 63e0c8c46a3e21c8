"""Tiny models, saved and loaded by the real code, once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retouch_server.catalog import ModelEntry
from retouch_server.loading import load
from retouch_server.models import Model
from tests.server import tiny

# The models are tiny: more threads only wait for each other.
torch.set_num_threads(1)

Folder = Callable[[str], Path]
Load = Callable[[str], Model]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Folder of the tiny pipeline of that name."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else tiny.save(name, root)

    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Folder) -> Load:
    """The tiny model of that name, loaded as the server loads it."""
    loaded: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in loaded:
            entry = ModelEntry(id=name, source=str(tiny_folder(name)))
            loaded[name] = load(entry, "cpu")
        return loaded[name]

    return get
