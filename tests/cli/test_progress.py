"""The bars: where they are shown, and what they bear."""

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from retouch_cli.progress import Bars, Watcher, watching
from retouch_cli.stream import Step


@pytest.mark.parametrize(
    ("terminal", "term", "quiet", "bars"),
    [
        (True, "xterm", False, True),
        (True, "xterm", True, False),
        (True, "dumb", False, False),
        (False, "xterm", False, False),
    ],
)
def test_bars_are_shown_where_they_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, quiet: bool, bars: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with watching(1, quiet) as watcher:
        assert (type(watcher) is not Watcher) == bars


def test_steps_of_no_image_are_passed_over() -> None:
    progress = Progress(console=Console(file=io.StringIO()))
    bars = Bars(progress, 2)
    for image in (-3, 2, 1):
        bars.event(Step(image, 3, 6))
    assert [task.completed for task in progress.tasks[1:]] == [0, 3]
