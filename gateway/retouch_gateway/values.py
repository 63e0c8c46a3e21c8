"""What a field's JSON value means, checked: one function a kind of value. All raise Wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from retouch.v1.image_edit_pb2 import Size

MAX_IMAGES = 16
MAX_SHOWN = 64  # characters
SWITCH = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class Wrong(Exception):
    """One field breaks one rule."""

    def __init__(self, field: str, text: str) -> None:
        self.field, self.text = field, text
        super().__init__(field, text)


def text(name: str, value: Any) -> str:
    if isinstance(value, memoryview):  # of a body, and longer than any text that has a meaning
        raise Wrong(name, "is too long")
    if not isinstance(value, str):
        raise Wrong(name, f"must be a string, not {kind(value)}")
    return value


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong(name, f"must be a number, not {_shown(value)}")
    return value


def integer(name: str, value: Any, bits: int, shown: str) -> int:
    """An integer of that many bits, unsigned; `shown` is the range to say when it is not."""
    number(name, value)
    # The parser reads an integer beyond 64 bits as a float: out of range, rather than not whole.
    if isinstance(value, float) and abs(value) < 2**63:
        raise Wrong(name, f"must be an integer, not {value}")
    if not 0 <= value < 2**bits:
        raise Wrong(name, f"must be {shown}, not {value}")
    return int(value)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong(name, f"must be a boolean, not {_shown(value)}")
    return value


def switch(name: str, value: Any) -> bool:
    """A boolean, or what a caller might write for one."""
    if isinstance(value, str):
        value = as_boolean(value)
    if isinstance(value, bool):
        return value
    raise Wrong(name, f"must be a boolean, or one of the strings {', '.join(SWITCH)}")


def size(name: str, value: Any) -> Size | None:
    if text(name, value) == "auto":  # what unset means, too
        return None
    found = _SIZE.fullmatch(value)
    if not found:
        raise Wrong(name, "must be 256x256, 512x512, 1024x1024, another WxH in pixels, or auto")
    return Size(width=int(found[1]), height=int(found[2]))


def choice(name: str, value: Any, meanings: Mapping[str, Any]) -> Any:
    if text(name, value) not in meanings:
        *others, last = meanings
        raise Wrong(name, f"must be {', '.join(others)} or {last}")
    return meanings[value]


def several(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Wrong(name, f"must be an array of images, not {kind(value)}")
    if not 1 <= len(value) <= MAX_IMAGES:
        raise Wrong(name, f"must be 1 to {MAX_IMAGES} images, not {len(value)}")
    return value


def one_or_several(name: str, value: Any) -> list[Any]:
    return several(name, value if isinstance(value, list) else [value])


def as_given(_name: str, value: Any) -> Any:
    return value


def as_number(given: str) -> Any:
    """As JSON writes it, so that both bodies mean the same."""
    try:
        value = orjson.loads(given) if len(given) <= 64 else given
    except orjson.JSONDecodeError:
        return given
    return value if isinstance(value, int | float) and not isinstance(value, bool) else given


def as_boolean(given: str) -> Any:
    return SWITCH.get(given.lower(), given)


def _shown(value: Any) -> str:
    """Text as it was written, for a form has nothing else; else what it is."""
    if not isinstance(value, str):
        return kind(value)
    return orjson.dumps(shortened(value)).decode()


def shortened(given: str) -> str:
    """As much of what a caller wrote as an answer says again."""
    return given if len(given) <= MAX_SHOWN else given[:MAX_SHOWN] + "…"


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, bool):
        return "a boolean"
    kinds = {
        str: "a string",
        memoryview: "a string",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return kinds.get(type(value), "null")
