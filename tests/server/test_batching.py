"""The batching policy, exhaustively: no torch, milliseconds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from retouch_server.engine.batching import next_batch, room


@dataclass(eq=False)
class Call:
    key: str
    rows: int = 1
    since: int = 0


def test_nothing_waits() -> None:
    assert next_batch([], 8) == []


def test_the_oldest_goes_with_those_of_its_key() -> None:
    new, old, other, young = (
        Call("a", since=5),
        Call("a", since=1),
        Call("b", since=2),
        Call("a", since=9),
    )
    assert next_batch([new, old, other, young], 8) == [old, new, young]


def test_what_does_not_fit_blocks_none_behind_it() -> None:
    first, large, small = Call("a", 2, 0), Call("a", 3, 1), Call("a", 1, 2)
    assert next_batch([first, large, small], 4) == [first, small]


def test_a_call_beyond_the_limit_runs_alone() -> None:
    large, small = Call("a", 9, 0), Call("a", 1, 1)
    assert next_batch([large, small], 4) == [large]


def test_every_small_case() -> None:
    """All ways to have up to four calls of two keys and three sizes."""
    for count in range(1, 5):
        for shape in product(product("ab", (1, 2, 5)), repeat=count):
            calls = [Call(key, rows, since) for since, (key, rows) in enumerate(shape)]
            batch = next_batch(calls, 4)
            assert batch[0] is calls[0]
            assert {call.key for call in batch} == {calls[0].key}
            assert sum(call.rows for call in batch) <= max(4, calls[0].rows)
            left_out = [c for c in calls if c.key == calls[0].key and c not in batch]
            room_left = 4 - sum(call.rows for call in batch)
            assert all(call.rows > room_left for call in left_out)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.integers(1, 8)),
        min_size=1,
        max_size=24,
    ),
    st.integers(1, 8),
)
def test_nothing_starves(edits: list[tuple[str, int, int]], max_rows: int) -> None:
    """Each edit that waits is served at least once in as many forwards as there are edits."""
    waiting = [Call(key, rows) for key, rows, _ in edits]
    steps = {id(call): n for call, (_, _, n) in zip(waiting, edits, strict=True)}
    for tick in range(1, sum(n for *_, n in edits) + 1):
        batch = next_batch(waiting, max_rows)
        assert batch
        assert tick - min(call.since for call in waiting) <= len(edits)
        for call in batch:
            steps[id(call)] -= 1
            call.since = tick
        waiting = [call for call in waiting if steps[id(call)]]
        if not waiting:
            return
    raise AssertionError("a forward made no progress")


def test_room() -> None:
    assert room(free_slots=8, queued=5, running=0) == 5
    assert room(free_slots=8, queued=20, running=0) == 8
    assert room(free_slots=5, queued=20, running=3) == 1
    assert room(free_slots=0, queued=20, running=8) == 0
    assert room(free_slots=4, queued=0, running=4) == 0


def test_the_policy_imports_no_torch() -> None:
    code = "import sys, retouch_server.engine.batching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
