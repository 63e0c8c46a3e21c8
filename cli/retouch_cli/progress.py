"""How an edit comes along, on stderr, where that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from retouch_cli.errors import Failure, plain
from retouch_cli.stream import Event, Queued, Step

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Watcher:
    """Is told of an edit's progress, and shows none of it."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def waiting(self, failure: Failure, seconds: float) -> None:
        """The gateway is too busy, and will be asked again."""


def watching(n: int, quiet: bool) -> AbstractContextManager[Watcher]:
    """A watcher of `n` images: bars that go when it ends, or nothing where nobody would see them."""
    bars = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not quiet
    return _bars(n) if bars else nullcontext(Watcher())


@contextmanager
def _bars(n: int) -> Iterator[Watcher]:
    # Here, for it takes longer to import than all the rest.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[step]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress, n)


class Bars(Watcher):
    """One bar until the first step, then one for each image: a batch moves them all."""

    def __init__(self, progress: Progress, n: int) -> None:
        self._progress, self._n = progress, n
        self._waiting = progress.add_task("Sending", total=None, step="")
        self._images: list[TaskID] = []

    def event(self, event: Event) -> None:
        if isinstance(event, Queued):
            ahead = f"In the queue, {event.position} ahead"
            self._progress.update(
                self._waiting, description=ahead if event.position else "Next in the queue"
            )
        elif isinstance(event, Step) and 0 <= event.image < self._n:
            self._begin()
            image = self._images[event.image]
            self._progress.start_task(image)
            step = f"step {event.step} of {event.total}"
            self._progress.update(image, completed=event.step, total=event.total, step=step)

    def waiting(self, failure: Failure, seconds: float) -> None:
        said = f"{plain(str(failure))} (again in {seconds:.0f} s)"
        self._progress.update(self._waiting, description=said)

    def _begin(self) -> None:
        """The images' own bars, where they are not there yet."""
        if self._images:
            return
        self._progress.update(self._waiting, visible=False)
        names = (
            [f"Image {i + 1} of {self._n}" for i in range(self._n)] if self._n > 1 else ["Editing"]
        )
        self._images = [
            self._progress.add_task(name, start=False, total=None, step="waiting") for name in names
        ]
