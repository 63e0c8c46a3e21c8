"""`pocket`, the small edit model that ships in the repo. Importing this imports no torch.

diffusers looks the classes of `model/model_index.json` up in `sys.modules`, so this module must be
imported before `from_pretrained(MODEL_DIR)`. It asks for `ModelMixin` here to know how to load them.
"""

from pathlib import Path
from typing import Any

MODEL_DIR: Path = Path(__file__).parent / "model"
_LAZY = frozenset({"ModelMixin", "PixelSpace", "PocketUNet"})


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from retouch_server.pocket import modules

    return getattr(modules, name)
