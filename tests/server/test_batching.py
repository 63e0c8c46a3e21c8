"""The batching policy, exhaustively: no torch, milliseconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch_server.engine.batching import PATIENCE, Policy, phase_allowed


@dataclass(eq=False)
class Call:
    key: str
    rows: int = 1
    since: int = 0
    tokens: int = 10
    remaining: int = 1


def test_nothing_waits() -> None:
    policy = Policy(max_rows=8)
    assert policy.next_batch([]) == []
    assert policy.forwards == 0


def test_calls_of_a_key_share_least_work_first() -> None:
    long, short, other = Call("a", remaining=9), Call("a", remaining=2), Call("b", remaining=9)
    assert Policy(max_rows=8).next_batch([long, other, short]) == [short, long]


def test_ties_go_by_age_then_by_order() -> None:
    young, old, twin = Call("a", since=2), Call("a", since=1), Call("a", since=1)
    assert Policy(max_rows=8).next_batch([young, old, twin]) == [old, twin, young]


@pytest.mark.parametrize(("max_rows", "max_tokens"), [(4, None), (24, 40)])
def test_what_does_not_fit_blocks_none_behind_it(max_rows: int, max_tokens: int | None) -> None:
    first, large, small = Call("a", 2), Call("a", 3), Call("a", 1, remaining=4)
    policy = Policy(max_rows=max_rows, max_tokens=max_tokens)
    assert policy.next_batch([first, large, small]) == [first, small]


@pytest.mark.parametrize(("max_rows", "max_tokens"), [(4, None), (24, 40)])
def test_a_call_beyond_the_limits_runs_alone(max_rows: int, max_tokens: int | None) -> None:
    large, small = Call("a", 9), Call("a", 1)
    policy = Policy(max_rows=max_rows, max_tokens=max_tokens)
    assert {policy.next_batch([large, small])[0] for _ in range(2 * PATIENCE + 2)} == {large, small}
    assert policy.next_batch([large]) == [large]


def test_turns_by_least_work_where_nothing_is_shared() -> None:
    """Few steps of many tokens against many steps of few: it is their product that counts, across keys."""
    many = Call("a", tokens=30, remaining=5)
    few = Call("a", tokens=30, remaining=3)
    cheap = Call("b", tokens=10, remaining=8)
    assert Policy(max_rows=8, max_tokens=30).next_batch([many, few, cheap]) == [cheap]
    assert Policy(max_rows=8, max_tokens=30).next_batch([many, few]) == [few]


def test_every_small_case() -> None:
    """All ways to have up to four calls of two keys and three sizes, under either limit."""
    kinds = list(product("ab", (1, 2, 5)))
    for count, limits in product(range(1, 5), ((4, None), (9, 40))):
        for shape in product(kinds, repeat=count):
            lengths = (3, 1, 4, 2)
            calls = [
                Call(key, rows, remaining=n) for (key, rows), n in zip(shape, lengths, strict=False)
            ]
            batch = Policy(max_rows=limits[0], max_tokens=limits[1]).next_batch(calls)
            rows = sum(call.rows for call in batch)
            assert len({id(call) for call in batch}) == len(batch) > 0
            assert {call.key for call in batch} == {batch[0].key}
            assert rows <= 4 or len(batch) == 1
            left_out = [c for c in calls if c.key == batch[0].key and c not in batch]
            assert all(call.rows > 4 - rows for call in left_out)


def test_the_order_of_calls_decides_nothing_but_ties() -> None:
    calls = [Call("a", 1, remaining=3), Call("a", 2), Call("b", 2, remaining=2), Call("b", 3)]
    chosen = {
        frozenset(map(id, Policy(max_rows=4).next_batch(order))) for order in permutations(calls)
    }
    assert len(chosen) == 1


def served(policy: Policy, calls: Sequence[Call], forwards: int) -> list[list[Call]]:
    """The batches of edits that never end."""
    batches = []
    for _ in range(forwards):
        batches.append(policy.next_batch(calls))
        for call in batches[-1]:
            call.since = policy.forwards
    return batches


def test_buckets_are_served_in_proportion_to_their_calls() -> None:
    """Six small edits that share and two large ones that cannot: a quarter of all tokens goes to the large ones."""
    small = [Call("a", tokens=10) for _ in range(6)]
    large = [Call("b", tokens=40) for _ in range(2)]
    batches = served(Policy(max_rows=24, max_tokens=60), small + large, 400)
    tokens = {key: sum(c.tokens for b in batches for c in b if c.key == key) for key in "ab"}
    assert tokens["b"] / (tokens["a"] + tokens["b"]) == pytest.approx(0.25, abs=0.03)


def test_a_bucket_that_empties_starts_from_nothing() -> None:
    """`b` has earned most of a turn when it goes; what comes with its key later waits as long as if new."""
    small, large = [Call("a"), Call("a")], [Call("b", tokens=40), Call("b", tokens=40)]
    fresh = served(Policy(max_rows=24), small + large, 4)
    policy = Policy(max_rows=24)
    served(policy, small + large, 3)
    served(policy, small, 1)
    again = [Call(c.key, since=policy.forwards, tokens=c.tokens) for c in small + large]
    assert [b[0].key for b in served(policy, again, 4)] == [b[0].key for b in fresh]
    assert [b[0].key for b in fresh] == ["a", "a", "a", "b"]


def test_ageing() -> None:
    """The longest edit of all goes once in about PATIENCE rounds, and not more often."""
    calls = [Call("a", tokens=99), Call("b", remaining=7), Call("c", remaining=99)]
    batches = served(Policy(max_rows=8), calls, 30 * PATIENCE)
    turns = [i for i, batch in enumerate(batches) if calls[2] in batch]
    gaps = [later - earlier for earlier, later in pairwise(turns)]
    assert gaps
    assert all(3 * PATIENCE < gap <= 3 * (PATIENCE + 1) for gap in gaps)


edit = st.tuples(
    st.sampled_from("abc"), st.integers(1, 3), st.sampled_from([10, 40]), st.integers(1, 9)
)


@given(
    st.lists(edit, min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([None, 10, 40, 80]),
)
def test_nothing_starves_nor_is_lost(
    edits: list[tuple[str, int, int, int]], slots: int, max_rows: int, max_tokens: int | None
) -> None:
    """Edits come as slots free: each gets exactly its steps, within the bound, and no forward exceeds the limits."""
    policy = Policy(max_rows=max_rows, max_tokens=max_tokens)
    queue = [Call(key, rows, 0, tokens, steps) for key, rows, tokens, steps in edits]
    steps, calls = sum(call.remaining for call in queue), 0
    running: list[Call] = []
    while queue or running:
        while queue and len(running) < slots:
            running.append(queue.pop(0))
            running[-1].since = policy.forwards
        now = policy.forwards
        batch = policy.next_batch(running)
        assert policy.forwards == now + 1
        assert batch
        assert len(batch) == 1 or sum(call.rows for call in batch) <= max_rows
        tokens = sum(call.rows * call.tokens for call in batch)
        assert len(batch) == 1 or max_tokens is None or tokens <= max_tokens
        for call in batch:
            assert now - call.since <= (PATIENCE + 1) * slots - 1
            running.remove(call)
            calls += 1
            if call.remaining > 1:
                new = Call(call.key, call.rows, policy.forwards, call.tokens, call.remaining - 1)
                running.append(new)
    assert calls == steps


@pytest.mark.parametrize("slots", [2, 5, 8])
def test_the_bound_holds_against_an_endless_stream(slots: int) -> None:
    """All slots but one take ever new edits of one cheap step; the one of long, large steps still goes."""
    policy, waits = Policy(max_rows=8, max_tokens=40), []
    long = Call("large", 2, 0, 400, 99)
    for _ in range(20 * slots * PATIENCE):
        now = policy.forwards
        stream = [Call("small", since=now, tokens=30) for _ in range(slots - 1)]
        if long in policy.next_batch([*stream, long]):
            waits.append(now - long.since)
            long = Call("large", 2, policy.forwards, 400, long.remaining)
    assert len(waits) > 10
    assert max(waits) <= (PATIENCE + 1) * slots - 1


def test_phases() -> None:
    assert phase_allowed(stepping=False, spent=9.0, last_forward=0.0)
    assert phase_allowed(stepping=True, spent=0.0, last_forward=0.1)
    assert phase_allowed(stepping=True, spent=0.09, last_forward=0.1)
    assert not phase_allowed(stepping=True, spent=0.1, last_forward=0.1)


def test_the_policy_imports_no_torch() -> None:
    code = "import sys, retouch_server.engine.batching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
