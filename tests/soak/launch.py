"""Starts a tier as its own program does, and counts what it holds whenever SIGUSR2 asks.

`python -m tests.soak.launch retouch_server FILE`: what is counted goes to FILE, as JSON. Nothing else is different
from the tier that is deployed: until it is asked, this is a handler that nobody calls.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def main() -> None:
    tier, file = sys.argv[1], Path(sys.argv[2])
    sys.argv[1:] = []
    signal.signal(signal.SIGUSR2, lambda *_: _write(file))
    importlib.import_module(f"{tier}.__main__").main()


def _write(file: Path) -> None:
    """Whole or not at all, so that whoever waits for the file reads all of it."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(census()))
    part.rename(file)


def census() -> dict[str, dict[str, Any]]:
    """What is alive once all garbage is gone: objects by type, tensors' bytes, the interpreter's small blocks."""
    gc.collect()
    held = gc.get_objects()
    types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in held)
    tasks = sum(1 for each in held if isinstance(each, asyncio.Task) and not each.done())
    counts = {
        "objects": len(held),
        "blocks": sys.getallocatedblocks(),
        "live tasks": tasks,
        "tensor_mib": _tensor_bytes(held) / 2**20,
        "heap_mib": heap_bytes() / 2**20,
    }
    return {"counts": counts, "types": dict(types)}


def _tensor_bytes(held: list[object]) -> int:
    """Of the storages of all tensors, views of one another counted once. The gateway has no torch, so 0."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    # By type: isinstance asks objects, and some lazy modules import what they are asked for.
    tensors: list[Any] = [each for each in held if issubclass(type(each), torch.Tensor)]
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    """malloc.h; `uordblks`: bytes in use in all of glibc's heaps, `hblkhd`: in blocks that are mapped alone."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def heap_bytes() -> int:
    """In use, of malloc: where what the interpreter does not keep in small blocks is, and libraries' own memory."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Mallinfo2
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


if __name__ == "__main__":
    main()
