"""The keys that sign image URLs, say whose an image is, and name kept replies."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from retouch_gateway.metrics import Metrics
from retouch_gateway.settings import KEY_CHARACTERS, PREFIX, SettingsError
from retouch_gateway.watched import Contents, Watched

log = logging.getLogger(__name__)


class SigningKeys(Sequence[bytes]):
    """The keys in force: those in the file at `path`, as it is now, else those `given`. The first signs, all verify.

    Raises SettingsError where the file has a mistake.
    """

    def __init__(self, path: Path | None, given: Sequence[bytes], metrics: Metrics) -> None:
        self._watched = Watched(
            "signing_key",
            [path] if path else [],
            lambda *contents: _parse(contents[0]) if contents else tuple(given),
            metrics,
        )

    async def watch_forever(self) -> None:
        """Take up what becomes of the file."""
        async for keys in self._watched.changes():
            log.info("signing_key: %d in force", len(keys))

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, index: int | slice) -> bytes | tuple[bytes, ...]:
        return self._watched.value[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._watched.value)  # by indices two values might be mixed

    def __len__(self) -> int:
        return len(self._watched.value)


def _parse(contents: Contents) -> tuple[bytes, ...]:
    """As SIGNING_KEY's value is, or a line each."""
    if isinstance(contents, str):
        raise _mistake(contents)
    keys = tuple(key for part in re.split(rb"[,\n]", contents) if (key := part.strip()))
    if not keys:
        raise _mistake("has no key in it")
    for i, key in enumerate(keys, 1):
        if len(key) < KEY_CHARACTERS:
            raise _mistake(f"key {i} has less than {KEY_CHARACTERS} characters")
    return keys


def _mistake(words: str) -> SettingsError:
    return SettingsError([f"{PREFIX}SIGNING_KEY_FILE: {words}"])
