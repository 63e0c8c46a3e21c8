"""What a safety check is: the interface of code that an operator brings, and finding it. docs/safety.md is its page.

A check has `before`, `after`, or both. Imports neither torch nor the rest of the server: a check's own tests are quick.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from PIL import Image

NAME = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$"
"""How a model's entry names a check: `package.module:attribute`."""
MAX_REASON = 300
_CATEGORY = re.compile(r"[a-z0-9][a-z0-9_./-]{0,63}")


@dataclass(frozen=True)
class Request:
    """An edit that was asked for. Pictures are copies: what is done to them changes no edit.

    images: RGB; the first is the one edited, at the output's size, the others are references. mask: L, 255 = edit, of
    the first one's size.
    """

    model: str
    prompt: str
    negative_prompt: str
    images: tuple[Image.Image, ...]
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Refusal:
    """A check's no. Raises ValueError for a category or a reason that cannot be one.

    category: 1..64 of a-z, 0-9 and `_./-`: for the log and callers by gRPC. reason: one line of at most 300 characters
    that anyone may read, added to the caller's message; it should quote nothing.
    """

    category: str
    reason: str = ""

    def __post_init__(self) -> None:
        if not _CATEGORY.fullmatch(self.category):
            raise ValueError("a category is 1 to 64 of a-z, 0-9, `_./-`")
        if len(self.reason) > MAX_REASON or not self.reason.isprintable():
            raise ValueError(f"a reason is one line of at most {MAX_REASON} characters")


@runtime_checkable
class Before(Protocol):
    """Looks at what is asked for, before it may queue."""

    def before(self, request: Request) -> Refusal | None:
        """None: it may go on. Called in a thread, from several at once."""


@runtime_checkable
class After(Protocol):
    """Looks at what was made, before it may leave."""

    def after(self, request: Request, results: Sequence[Image.Image]) -> Refusal | None:
        """None: they may leave. `results`: all of the request's, RGB, as the caller would get them."""


Check: TypeAlias = Before | After


@dataclass(frozen=True)
class Checks:
    """A model's checks of each stage, by name, in the order in which they are asked."""

    before: Mapping[str, Before] = field(default_factory=dict)
    after: Mapping[str, After] = field(default_factory=dict)


class CheckError(Exception):
    """A name leads to no check; the message is one line for the operator."""


def load(names: Sequence[str]) -> Checks:
    """Import checks by name; a class is made an object of, without arguments. Raises CheckError."""
    checks = {name: _load(name) for name in names}
    return Checks(
        {name: check for name, check in checks.items() if isinstance(check, Before)},
        {name: check for name, check in checks.items() if isinstance(check, After)},
    )


def _load(name: str) -> Check:
    try:
        found = pkgutil.resolve_name(name)
        check: Check = found() if isinstance(found, type) else found
    except Exception as error:  # whatever the operator's code raises
        said = " ".join(str(error).split())[:300]
        raise CheckError(f"{name}: {type(error).__name__}: {said}") from error
    methods = [getattr(check, stage) for stage in ("before", "after") if hasattr(check, stage)]
    if not methods:
        raise CheckError(f"{name} has neither `before` nor `after`")
    if any(not callable(method) or inspect.iscoroutinefunction(method) for method in methods):
        raise CheckError(f"{name}: `before` and `after` are plain functions, not async ones")
    return check
