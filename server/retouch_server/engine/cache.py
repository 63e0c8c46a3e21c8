"""What edits have encoded before: prompts and images, least recently used out first, bounded in bytes."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retouch_server.memory import is_exhaustion


class Encodings:
    """Encodings by the content of what was encoded. For one engine's thread.

    capacity: bytes of the tensors held, most; 0 holds none.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = 0
        self._held: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()

    def get(self, key: bytes | None) -> Any:
        """A copy of what `put` was given, since pipelines may write into their tensors; None if it is not held."""
        if key is None or key not in self._held:
            return None
        self._held.move_to_end(key)
        try:
            return copy.deepcopy(self._held[key][0])
        except Exception as error:
            if not is_exhaustion(error):
                raise
        self.clear()
        return None

    def put(self, key: bytes | None, value: Any) -> None:
        """Hold a copy of `value`, unless it has no key, is larger than all that may be held, or is not a number.

        What came out wrong in a bad moment would spoil every later edit of the same.
        """
        size = sum(tensor.untyped_storage().nbytes() for tensor in _storages(value))
        if key is None or key in self._held or size > self.capacity:
            return
        try:
            if not is_finite(value):
                return
            while self.bytes + size > self.capacity:
                _, (_, freed) = self._held.popitem(last=False)
                self.bytes -= freed
            self._held[key] = (copy.deepcopy(value), size)
        except Exception as error:
            if is_exhaustion(error):
                return  # the edit has what it needs
            raise
        self.bytes += size

    def clear(self) -> None:
        """Hold nothing."""
        self._held.clear()
        self.bytes = 0


def is_finite(value: Any) -> bool:
    """Whether all numbers of the tensors within a value are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))


def fingerprint(*values: Any) -> bytes | None:
    """A digest that is equal exactly for equal content; None where something has no content that can be read.

    Reads tensors, arrays, pictures, numbers, words, and lists, tuples and mappings of them.
    """
    digest = hashlib.blake2b(digest_size=20)
    try:
        for part in _parts(values):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    except TypeError:
        return None
    return digest.digest()


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    """All of a value as bytes, each with what tells it from others of equal bytes."""
    yield type(value).__name__.encode()
    if isinstance(value, Tensor):
        flat = value.detach().cpu().reshape(-1).contiguous()
        yield repr((value.dtype, tuple(value.shape))).encode()
        yield flat.view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray):
        yield repr((value.dtype, value.shape)).encode()
        yield value.tobytes()
    elif isinstance(value, Image.Image):
        yield repr((value.mode, value.size)).encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        yield str(len(value)).encode()
        for name in sorted(value):
            yield from _parts(name)
            yield from _parts(value[name])
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for part in value:
            yield from _parts(part)
    elif value is None or isinstance(
        value, bool | int | float | str | torch.dtype | torch.device | torch.Size
    ):
        yield repr(value).encode()
    else:
        raise TypeError(type(value))


def _storages(value: Any) -> Iterator[Tensor]:
    """One tensor for each storage within a value: views of one another count once."""
    seen = set()
    for tensor in _tensors(value):
        if (where := tensor.untyped_storage().data_ptr()) not in seen:
            seen.add(where)
            yield tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__"):  # such as the distribution in a VAE's output
        yield from _tensors(vars(value))
