"""What is told of a job's times, while its edits are under way too."""

from __future__ import annotations

import time
from typing import Any

import pytest

from retouch_server.engine.edit import Edit
from retouch_server.jobs import Job


# Seconds before now at which it was queued, started, began to denoise, did its last step so far, and ended.
@pytest.mark.parametrize(
    ("ago", "steps", "seconds"),
    [
        ((60, None, None, None, None), 0, (60, 0, 0, 0)),
        ((60, None, None, None, 20), 0, (40, 0, 0, 0)),
        ((60, 50, None, None, None), 0, (10, 50, 0, 0)),
        ((60, 50, 45, None, None), 0, (10, 5, 45, 0)),
        ((60, 50, 45, 30, None), 39, (10, 5, 45, 0)),  # the 40th is under way
        ((60, 50, 45, 30, 20), 39, (10, 5, 25, 0)),
        ((60, 50, 45, 30, None), 40, (10, 5, 15, 30)),
        ((60, 50, 45, 30, 20), 40, (10, 5, 15, 10)),
    ],
)
def test_a_phase_that_is_under_way_counts_too(
    ago: tuple[int | None, ...], steps: int, seconds: tuple[int, ...]
) -> None:
    """And with another edit of the request that is done already."""
    now = time.monotonic()
    queued, *rest = (None if each is None else now - each for each in ago)
    names = ("started_at", "denoising_at", "denoised_at", "ended_at")
    times: Any = dict(zip(names, rest, strict=True))
    slow = Edit(lambda host: None, total=40, steps=steps, queued_at=queued, **times)  # type: ignore[arg-type, return-value]
    quick = Edit(lambda host: None, queued_at=now - 60, ended_at=now - 59)  # type: ignore[arg-type, return-value]
    nothing: Any = None
    timings = Job(nothing, nothing, [], [quick, slow], 0).timings
    told = (
        timings.queue_seconds,
        timings.encode_seconds,
        timings.denoise_seconds,
        timings.decode_seconds,
    )
    assert told == pytest.approx(seconds, abs=0.5)
