"""Per denoiser class: how calls stack into one forward and how the answer splits.

What must be known of a model is one row in `TABLES`: which arguments hold a row per image. Everything else must
be equal, by value, between calls that share a forward: shared position ids are read from one call for all, and
wrong ones give wrong images without an error. A class without a table works too; its calls run alone.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Table:
    """`lead` is the argument whose dim 0 counts the rows; `stacked` the others that have a row per image."""

    lead: str
    stacked: frozenset[str]


TABLES: Mapping[str, Table] = {
    # Sources: forward() of diffusers 0.42, models/unets/unet_2d_condition.py and transformers/transformer_flux.py.
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
}


@dataclass(eq=False)
class Call:
    """One denoiser call that waits: arguments bound to the forward's names, and what `batching` asks."""

    arguments: dict[str, Any]
    key: Hashable
    rows: int
    since: int = 0


class Rows:
    """Binds, stacks and splits the calls of one denoiser.

    >>> rows = Rows(pipe.unet)
    >>> calls = [rows.bind(args, kwargs) for args, kwargs in waiting]  # equal `key`s
    >>> answers = rows.split(pipe.unet(**rows.stack(calls)), calls)
    """

    def __init__(self, denoiser: Any) -> None:
        self._signature = inspect.signature(denoiser.forward)
        self._table = next(
            (TABLES[c.__name__] for c in type(denoiser).__mro__ if c.__name__ in TABLES), None
        )
        named = {self._table.lead, *self._table.stacked} if self._table else set()
        self._stacked = named & self._signature.parameters.keys()
        # Position ids are the same tensor at every step of an edit: digest each once, not once a step.
        self._digests = WeakTensorKeyDictionary()

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Name the arguments of one call and say which calls it can share a forward with."""
        bound = self._signature.bind(*args, **kwargs)
        if self._table is None:
            return Call(_flatten(bound), key=object(), rows=1)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        lead = arguments[self._table.lead]
        for name in self._stacked:
            arguments[name] = _as_rows(arguments[name], lead)
        key = tuple(
            (name, _shape(value) if name in self._stacked else self._value(value))
            for name, value in sorted(arguments.items())
        )
        return Call(arguments, key, rows=lead.shape[0])

    def stack(self, calls: Sequence[Call]) -> dict[str, Any]:
        """Arguments of one forward for calls of equal keys: rows in the order of `calls`."""
        first = calls[0].arguments
        if len(calls) == 1:
            return first
        return {
            name: _cat([call.arguments[name] for call in calls]) if name in self._stacked else value
            for name, value in first.items()
        }

    def split(self, output: Any, calls: Sequence[Call]) -> list[Any]:
        """Each call's own rows of the forward's output, in the same container."""
        if len(calls) == 1:
            return [output]
        counts = [call.rows for call in calls]
        if isinstance(output, Tensor):
            return list(torch.split(output, counts))
        if isinstance(output, tuple):
            return list(zip(*(torch.split(part, counts) for part in output), strict=True))
        parts = {name: torch.split(value, counts) for name, value in output.items()}
        return [
            type(output)(**{name: rows[i] for name, rows in parts.items()})
            for i in range(len(counts))
        ]

    def _value(self, value: Any) -> Hashable:
        """Something that is equal exactly for arguments of equal value."""
        if isinstance(value, Tensor):
            if value not in self._digests:
                self._digests[value] = _digest(value)
            return (_shape(value), bytes(self._digests[value]))
        if isinstance(value, Mapping):
            return tuple((name, self._value(part)) for name, part in sorted(value.items()))
        if isinstance(value, list | tuple):
            return tuple(self._value(part) for part in value)
        return value if isinstance(value, Hashable) else id(value)


def _flatten(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Bound arguments as keywords, a `**kwargs` among them spread out."""
    arguments = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def _as_rows(value: Any, lead: Tensor) -> Any:
    """Give a stacked argument as many rows as `lead`: a scalar or a single row counts for all of them."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _as_rows(part, lead) for name, part in value.items()}
    tensor = torch.as_tensor(value, device=lead.device)
    if tensor.ndim == 0 or tensor.shape[0] == 1:
        return tensor.expand(lead.shape[0], *tensor.shape[1:])
    return tensor


def _shape(value: Any) -> Hashable:
    """What must agree for tensors to be stacked: everything but the number of rows."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return tuple((name, _shape(part)) for name, part in sorted(value.items()))
    return (value.dtype, value.device, value.shape[1:])


def _cat(values: Sequence[Any]) -> Any:
    if values[0] is None:
        return None
    if isinstance(values[0], Mapping):
        return {name: _cat([value[name] for value in values]) for name in values[0]}
    return torch.cat(list(values))


def _digest(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=16).digest()
