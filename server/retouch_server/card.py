"""A checkpoint's model card, README.md: its front matter may list instructions to try.

Front matter is YAML between two lines of `---`. Its `widget` is a list of mappings; `text`, or `prompt` beside a
picture, is what a person would type (https://huggingface.co/docs/hub/models-widgets-examples).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

MOST = 24
LONGEST = 200
FILE = "README.md"

_MAX_BYTES = 64 * 1024
# More than a card has: aliases make thousands of large entries out of a few bytes.
_MAX_ENTRIES = 10 * MOST
_STRING = "tag:yaml.org,2002:str"

log = logging.getLogger(__name__)


def examples(folder: Path) -> tuple[str, ...]:
    """What a folder's card lists to try: at most MOST, in its order, none twice, each as `instruction` has it.

    Raises nothing: a card that is missing lists none, and one that cannot be read lists none and is warned of.
    """
    path = folder / FILE
    try:
        # Nodes, not objects: none of a stranger's tags, dates or merge keys takes effect, or fails.
        root = yaml.compose(_front_matter(path), yaml.SafeLoader)
    # Beside its own errors the parser lets through those of int(), chr() and deep recursion.
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        log.warning("%s: its front matter is not read: %s", path, words)
        return ()
    found = dict.fromkeys(map(instruction, _texts(root)))
    return tuple(islice(filter(None, found), MOST))


def instruction(text: str) -> str | None:
    """`text` on one line, without what does not print; None unless that has 1..LONGEST characters and a word."""
    shown = "".join(c for c in text if c.isprintable() or c.isspace())
    line = " ".join(shown.split())
    return line if len(line) <= LONGEST and any(map(str.isalnum, line)) else None


def _front_matter(path: Path) -> str:
    """What is between the first two lines of `---`; empty if it does not end within _MAX_BYTES. Raises OSError."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES).decode("utf-8-sig", "replace")
    lines = [line.rstrip() for line in text.lstrip().split("\n")]
    if lines[0] != "---" or "---" not in lines[1:]:
        return ""
    return "\n".join(lines[1 : lines.index("---", 1)])


def _texts(root: Any) -> Iterator[str]:
    """What the entries of a card's `widget` say, where it is a string."""
    widget = _value(root, "widget")
    if not isinstance(widget, yaml.SequenceNode):
        return
    for entry in widget.value[:_MAX_ENTRIES]:
        said = _value(entry, "text") or _value(entry, "prompt")
        if isinstance(said, yaml.ScalarNode) and said.tag == _STRING:
            yield said.value


def _value(node: Any, name: str) -> Any:
    """What a mapping has under a name; None if it is no mapping, or has no such name."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for key, value in pairs if key.value == name), None)
