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
TRIES = 2

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
        # Each a reason why what is in force may not be what the files hold.
        self._unseen = self._refused = self._late = False
        self._seen = self._read()
        self.value = make(*self._seen)

    async def changes(self) -> AsyncGenerator[T, None]:
        """Each new value, two seconds after the files hold it at most. Without files it ends.

        They are read whole each time, which costs less than to be sure by their inodes and times that nothing changed.
        What one look saw may be half written; what two saw counts. What is refused is tried once more, since `make` may
        read the files itself, and later than the look. Files that are gone or have a mistake leave the value as it was.
        """
        before, tries = self._seen, 0
        while self._paths:
            await asyncio.sleep(LOOK_SECONDS)
            made: tuple[T] | Exception | None = None
            try:
                # Threads change nothing: what one that cannot start was to do may be done by another, later.
                found = await asyncio.to_thread(self._read)
                if found == before and found != self._seen:
                    made = await asyncio.to_thread(self._try, found)
            except Exception:
                self._missed()
                continue
            self._unseen = False
            if isinstance(made, tuple):
                self._take_up(found, *made)
                yield self.value
                continue
            tries = tries + 1 if found == before else 0
            before = found
            if made and tries >= TRIES:
                self._refuse(found, made)
            self._tell()

    def late(self, yes: bool) -> None:
        """Whether the newest value is still to be in force, for whoever takes the changes to say."""
        self._late = yes
        self._tell()

    def _read(self) -> list[Contents]:
        return [contents(path) for path in self._paths]

    def _try(self, found: Sequence[Contents]) -> tuple[T] | Exception:
        try:
            return (self._make(*found),)
        except Exception as error:  # a library's own too, of a file that nobody foresaw
            return error

    def _take_up(self, found: list[Contents], value: T) -> None:
        self._seen, self.value = found, value
        self._refused = self._late = False
        self._reloads.labels(self.name, "ok").inc()
        self._tell()

    def _refuse(self, found: list[Contents], why: Exception) -> None:
        self._seen, self._refused = found, True
        if isinstance(why, Unusable):
            log.error("%s: the file is not taken up: %s", self.name, "; ".join(why.lines))
        else:
            log.error("%s: the file is not taken up", self.name, exc_info=why)
        self._reloads.labels(self.name, "failed").inc()

    def _missed(self) -> None:
        if not self._unseen:  # else it has been said
            log.exception("%s: cannot be looked at", self.name)
        self._unseen = True
        self._tell()

    def _tell(self) -> None:
        self._outdated.set(self._unseen or self._refused or self._late)


def contents(path: Path) -> Contents:
    """What is in the file now."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
