"""Files that change while the process runs, as keys and certificates do: taken up without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

from prometheus_client import Counter, Gauge

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

T = TypeVar("T")
# A file's bytes, or in words why they cannot be had.
Contents: TypeAlias = bytes | str


class Unusable(Exception):
    """Every mistake in what was read, one line each; nothing secret is in them."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


class Counted(Protocol):
    """The metrics of a tier that this needs: by `file` and `result`, and by `file`."""

    file_reloads: Counter
    file_outdated: Gauge


class Watched(Generic[T]):
    """What `make` makes of the contents of `paths`: of each, in that order.

    `value` is in force. `name` is what the files are called in the log and the metrics. `make` raises Unusable, and
    then so does this.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], make: Callable[..., T], metrics: Counted
    ) -> None:
        self.name = name
        self._paths, self._make = paths, make
        self._reloads, self._outdated = metrics.file_reloads, metrics.file_outdated.labels(name)
        self._seen = self._before = self._read()
        self.value = make(*self._seen)

    async def changes(self) -> AsyncGenerator[T, None]:
        """Each new value, two seconds after the files hold it at most. Without files it ends.

        They are read whole each time, which costs less than to be sure by their inodes and times that nothing changed.
        What one look saw may be half written; what two saw counts. Files that are gone or have a mistake leave the
        value as it was.
        """
        while self._paths:
            await asyncio.sleep(LOOK_SECONDS)
            if await asyncio.to_thread(self._look):
                self._reloads.labels(self.name, "ok").inc()
                self._outdated.set(0)
                yield self.value

    def _look(self) -> bool:
        """Whether there is a new value."""
        contents, before = self._read(), self._before
        self._before = contents
        if contents != before or contents == self._seen:
            return False
        self._seen = contents
        try:
            self.value = self._make(*contents)
        except Unusable as error:
            log.error("%s: the file is not taken up: %s", self.name, "; ".join(error.lines))
            self._reloads.labels(self.name, "failed").inc()
            self._outdated.set(1)
            return False
        return True

    def _read(self) -> list[Contents]:
        return [contents(path) for path in self._paths]


def contents(path: Path) -> Contents:
    """What is in the file now."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
