"""How calls of one denoiser stack into one forward and how the answer splits.

Calls share a forward when the rows that `tables.TABLES` names have equal shapes and all else is equal by value: shared
position ids are read from one call for all, and wrong ones give wrong images without an error. A class without a table
works too; its calls run alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from .cache import fingerprint
from .tables import MASKING, TABLES
from .trace import Trace


@dataclass(eq=False)
class Call:
    """One denoiser call that waits: arguments bound to the forward's names, and what `batching` asks.

    lead: the latents, where they are one tensor; None too where no table says which argument they are.
    alone: whether it can share a forward with no other.
    tokens: of one row, latents and text that attend to each other; a measure of its work.
    remaining: denoising steps that its edit has left, this one too, as far as is known.
    trace: of its edit, where that is traced.
    """

    arguments: dict[str, Any]
    key: Hashable
    rows: int
    lead: Tensor | None = None
    tokens: int = 1
    remaining: int = 1
    since: int = 0
    alone: bool = False
    trace: Trace | None = None


class Rows:
    """Binds, stacks and splits the calls of one denoiser.

    >>> rows = Rows(pipe.unet)
    >>> calls = [rows.bind(args, kwargs) for args, kwargs in waiting]  # equal `key`s
    >>> answers = rows.split(pipe.unet(**rows.stack(calls)), calls)

    exact: let no text be padded: calls with texts of unequal length do not share.
    """

    def __init__(self, denoiser: Any, exact: bool = False) -> None:
        self._signature = inspect.signature(denoiser.forward)
        self._table = next(
            (TABLES[c.__name__] for c in type(denoiser).__mro__ if c.__name__ in TABLES), None
        )
        named = {self._table.lead, *self._table.stacked} if self._table else set()
        self._stacked = named & self._signature.parameters.keys()
        self._text = (
            self._table.text if self._table and not exact and _takes_masks(denoiser) else None
        )
        # Position ids are the same tensor at every step of an edit: digest each once, not once a step.
        self._digests = WeakTensorKeyDictionary()

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Name the arguments of one call and say which calls it can share a forward with."""
        bound = self._signature.bind(*args, **kwargs)
        if self._table is None:
            return Call(_flatten(bound), key=object(), rows=1, alone=True)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        lead = arguments[self._table.lead]
        # Of one row; several where a model takes pictures beside the one that it makes.
        pictures = lead[0] if isinstance(lead[0], list) else [lead[0]]
        count, device = len(lead), pictures[0].device
        for name in self._stacked:
            arguments[name] = _as_rows(arguments[name], count, device)
        tokens = sum(_tokens(arguments, picture) for picture in pictures)
        latents = lead if isinstance(lead, Tensor) else None
        if self._table.alone and arguments.get(self._table.alone) is not None:
            return Call(arguments, object(), count, latents, tokens, alone=True)
        key = tuple((name, self._kind(name, value)) for name, value in sorted(arguments.items()))
        return Call(arguments, key, count, latents, tokens)

    def filler(self, call: Call, rows: int) -> Call:
        """A call of `rows` rows, each the last of `call`: to stack beside it where a forward has a fixed size."""
        arguments = {
            name: _repeat_last(value, rows) if name in self._stacked else value
            for name, value in call.arguments.items()
        }
        return Call(arguments, call.key, rows)

    def stack(self, calls: Sequence[Call]) -> dict[str, Any]:
        """Arguments of one forward for calls of equal keys: rows in the order of `calls`."""
        if len(calls) == 1:
            return calls[0].arguments
        parts = [call.arguments for call in calls]
        if self._text and self._table and self._table.mask:
            parts = _pad(parts, self._text, self._table.mask)
        return {
            name: _cat([part[name] for part in parts]) if name in self._stacked else value
            for name, value in parts[0].items()
        }

    def split(self, output: Any, calls: Sequence[Call]) -> list[Any]:
        """Each call's own rows of the forward's output, in the same container."""
        if len(calls) == 1:
            return [output]
        counts = [call.rows for call in calls]
        if isinstance(output, Tensor):
            return _split(output, counts)
        if isinstance(output, tuple):
            return list(zip(*(_split(part, counts) for part in output), strict=True))
        parts = {name: _split(value, counts) for name, value in output.items()}
        return [
            type(output)(**{name: rows[i] for name, rows in parts.items()})
            for i in range(len(counts))
        ]

    def _kind(self, name: str, value: Any) -> Hashable:
        """What must agree of an argument: the value, or where it holds rows, their shape but for a text's length."""
        if name not in self._stacked:
            return self._value(value)
        if self._text and self._table and name == self._table.mask:
            return None
        return self._shape(value, 1 if name == self._text else 0)

    def _shape(self, rows: Any, skip: int) -> Hashable:
        """What must agree for rows to be stacked, whatever their number; of each row's shape from dim `skip` on."""
        if rows is None:
            return None
        if isinstance(rows, Mapping):
            return tuple((name, self._shape(part, skip)) for name, part in sorted(rows.items()))
        if isinstance(rows, list):
            return frozenset(self._row(row, skip) for row in rows)
        return (rows.dtype, rows.device, rows.shape[1 + skip :])

    def _row(self, row: Any, skip: int) -> Hashable:
        """What must agree of one row in a list: a tensor, or some, or a plain value."""
        if isinstance(row, Tensor):
            return (row.dtype, row.device, row.shape[skip:])
        if isinstance(row, list):
            return tuple(self._row(part, skip) for part in row)
        return self._value(row)

    def _value(self, value: Any) -> Hashable:
        """Something that is equal exactly for arguments of equal value."""
        if isinstance(value, Tensor):
            if value not in self._digests:
                self._digests[value] = fingerprint(value)
            return (value.device, self._digests[value])
        if isinstance(value, Mapping):
            return tuple((name, self._value(part)) for name, part in sorted(value.items()))
        if isinstance(value, list | tuple):
            return tuple(self._value(part) for part in value)
        return value if isinstance(value, Hashable) else id(value)


def _takes_masks(denoiser: Any) -> bool:
    """Whether all of its attention runs on a backend that takes a mask."""
    modules = denoiser.modules() if isinstance(denoiser, torch.nn.Module) else ()
    processors = (getattr(module, "processor", None) for module in modules)
    chosen = {getattr(processor, "_attention_backend", None) for processor in processors}
    return {backend or DIFFUSERS_ATTN_BACKEND for backend in chosen} <= MASKING


def _flatten(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Bound arguments as keywords, a `**kwargs` among them spread out."""
    arguments = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def _as_rows(value: Any, count: int, device: torch.device) -> Any:
    """Give a stacked argument `count` rows: a scalar or a single row counts for all of them."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _as_rows(part, count, device) for name, part in value.items()}
    if isinstance(value, list):
        return value * count if len(value) == 1 else value
    tensor = torch.as_tensor(value, device=device)
    if tensor.ndim == 0 or tensor.shape[0] == 1:
        return tensor.expand(count, *tensor.shape[1:])
    return tensor


def _pad(parts: Sequence[dict[str, Any]], text: str, mask: str) -> list[dict[str, Any]]:
    """Texts (rows x L x D) right-padded to the longest, and masks (rows x L, bool) that say so.

    Where all are of one length and none has a mask, none gets one: attention without is faster.
    """
    longest = max(part[text].shape[1] for part in parts)
    if all(part[text].shape[1] == longest and part[mask] is None for part in parts):
        return list(parts)
    padded = []
    for part in parts:
        states, real = part[text], part[mask]
        if real is None:
            real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        missing = longest - states.shape[1]
        padded.append(
            part
            | {
                text: functional.pad(states, (0, 0, 0, missing)),
                mask: functional.pad(real.bool(), (0, missing)),
            }
        )
    return padded


def _tokens(arguments: Mapping[str, Any], row: Tensor) -> int:
    """Pixels of a picture of latents, which attends to its text without mixing with it; otherwise tokens of both."""
    if row.ndim > 2:
        return math.prod(row.shape[1:])
    text = arguments.get("encoder_hidden_states")
    return row.shape[0] + (text.shape[1] if isinstance(text, Tensor) else 0)


def _repeat_last(value: Any, rows: int) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _repeat_last(part, rows) for name, part in value.items()}
    if isinstance(value, list):
        return value[-1:] * rows
    return value[-1:].expand(rows, *value.shape[1:])


def _cat(values: Sequence[Any]) -> Any:
    if values[0] is None:
        return None
    if isinstance(values[0], Mapping):
        return {name: _cat([value[name] for value in values]) for name in values[0]}
    if isinstance(values[0], list):
        return [row for value in values for row in value]
    return torch.cat(list(values))


def _split(rows: Any, counts: Sequence[int]) -> list[Any]:
    if isinstance(rows, Tensor):
        return list(torch.split(rows, list(counts)))
    left = iter(rows)
    return [[next(left) for _ in range(count)] for count in counts]
