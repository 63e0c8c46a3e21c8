"""The simulator: nothing is lost, the same jobs give the same figures, and what the policy promises is seen in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.policy import DEVICES, budget, poisson, runs, show
from bench.simulator import (
    Job,
    Report,
    Simulation,
    all_at_once,
    at_most_one,
    linear,
    one_by_one,
    run_to_completion,
    table,
)
from retouch_server.engine.batching import PATIENCE, Policy, phase_allowed

COMPUTE_BOUND = linear(0.0, 0.001)
WEIGHTS_BOUND = linear(1.0, 0.0001)


UNIT = linear(1.0, 0.0)
"""A device whose forward takes a second, whatever its size: times count forwards."""


def test_one_edit_takes_its_phases_and_steps() -> None:
    report = Simulation(UNIT, Policy(max_rows=24)).run(
        [Job(2.0, 3, before=(0.5, 0.25), after=(0.125,))]
    )
    (done,) = report.done
    assert (done.started, done.ended) == (2.0, 5.875)
    assert (report.forwards, report.occupancy, report.utilisation) == (3, 1.0, 1.0)
    assert report.throughput == pytest.approx(1 / 3.875)
    assert report.mean == done.latency == 3.875


def test_equal_edits_share_their_forwards() -> None:
    report = Simulation(UNIT, Policy(max_rows=24)).run([Job(0.0, 4) for _ in range(6)])
    assert [done.ended for done in report.done] == [4.0] * 6
    assert (report.forwards, report.occupancy) == (4, 6.0)


def test_edits_join_and_leave_at_any_step() -> None:
    report = Simulation(UNIT, Policy(max_rows=24)).run([Job(0.0, 4), Job(1.5, 1), Job(2.5, 3)])
    assert [(done.started, done.ended) for done in report.done] == [(2, 3), (0, 4), (3, 6)]
    assert report.occupancy == 8 / 6


def test_slots_and_queue_bound_what_is_taken() -> None:
    """What arrives during the first forward finds three places; the second slot is taken after it."""
    jobs = [Job(0.1 * i, 5) for i in range(9)]
    report = Simulation(UNIT, Policy(max_rows=24), slots=2, queue_size=3).run(jobs)
    assert report.refused == jobs[4:]
    assert [done.started for done in report.done] == [0.0, 1.0, 5.0, 6.0]


job = st.builds(
    Job,
    arrival=st.floats(0, 50),
    steps=st.integers(1, 6),
    key=st.sampled_from("ab"),
    rows=st.integers(1, 3),
    tokens=st.sampled_from([512, 2048]),
    before=st.sampled_from([(), (0.5,), (0.25, 2.0)]),
    after=st.sampled_from([(), (0.5,)]),
)
rule = st.sampled_from([phase_allowed, at_most_one, all_at_once])


@given(
    st.lists(job, min_size=1, max_size=20),
    st.integers(1, 5),
    st.sampled_from([None, 2048, 8192]),
    st.none() | st.integers(1, 3),
    rule,
)
def test_conservation(
    jobs: list[Job], slots: int, max_tokens: int | None, queue_size: int | None, rule: object
) -> None:
    """Each job is served or refused, once, and no sooner than it could be; twice the same run gives twice the same."""

    def run() -> Report:
        return Simulation(
            WEIGHTS_BOUND,
            Policy(max_rows=6, max_tokens=max_tokens),
            slots=slots,
            queue_size=queue_size,
            phase_allowed=rule,  # type: ignore[arg-type]
        ).run(jobs)

    report = run()
    assert sorted(map(id, [*(d.job for d in report.done), *report.refused])) == sorted(
        map(id, jobs)
    )
    for done in report.done:
        assert done.started >= done.job.arrival
        assert done.ended - done.started >= 0.999 * done.job.alone(UNIT)
    assert report.rows == sum(done.job.steps * done.job.rows for done in report.done)
    assert run() == report


@given(st.lists(job, min_size=1, max_size=20), st.sampled_from([0, 2048, 8192]))
def test_conservation_of_the_usual_ways(jobs: list[Job], max_tokens: int) -> None:
    report = run_to_completion(jobs, WEIGHTS_BOUND, max_tokens)
    assert sorted(id(done.job) for done in report.done) == sorted(map(id, jobs))
    assert all(done.latency >= done.job.alone(UNIT) for done in report.done)
    assert report.rows == sum(done.job.steps * done.job.rows for done in report.done)


def test_run_to_completion_wants_equal_key_and_steps() -> None:
    jobs = [Job(0.0, 2), Job(0.005, 2), Job(0.005, 3), Job(0.005, 2, "1024"), Job(5.0, 2)]
    report = run_to_completion(jobs, UNIT, 10_000, window=0.01)
    assert [done.ended for done in report.done] == pytest.approx([2.01, 2.01, 5.01, 7.01, 9.01])


def test_one_by_one_is_first_come_first_served() -> None:
    report = one_by_one([Job(1.0, 2), Job(0.0, 3), Job(9.0, 1)], UNIT)
    assert [done.ended for done in report.done] == [3.0, 5.0, 10.0]


def test_measured_costs() -> None:
    cost = table([(1000, 1.0), (2000, 1.0), (4000, 2.0)])
    assert [cost(n) for n in (500, 1000, 1500, 2000, 3000, 4000, 6000)] == [
        1.0,
        1.0,
        1.0,
        1.0,
        1.5,
        2.0,
        3.0,
    ]


@pytest.mark.parametrize("max_tokens", [None, 2048, 8192, 16384])
def test_neither_size_starves_the_other(max_tokens: int | None) -> None:
    """One edit in an endless stream of the other size: (PATIENCE + 1) x slots forwards a step, no more."""
    small, large = ("512", 1, 2048), ("1024", 1, 8192)
    for lone, stream in ((small, large), (large, small)):
        stranger = Job(0.0, 10, *lone)
        jobs = [stranger, *(Job(0.0, 10, *stream) for _ in range(300))]
        report = Simulation(UNIT, Policy(max_rows=24, max_tokens=max_tokens)).run(jobs)
        (ended,) = (done.ended for done in report.done if done.job is stranger)
        assert ended <= 10 * (PATIENCE + 1) * 8
        assert ended < report.seconds / 2


def test_turns_beat_lockstep_where_sharing_brings_nothing() -> None:
    """Eight edits at once, compute-bound: shortest first takes a quarter off the mean, and the last ends no later."""
    jobs = [Job(0.0, steps) for steps in (4, 8, 12, 16, 20, 24, 28, 30)]
    turns, lockstep = (
        Simulation(COMPUTE_BOUND, Policy(max_rows=24, max_tokens=max_tokens)).run(jobs)
        for max_tokens in (2048, None)
    )
    assert turns.mean < 0.75 * lockstep.mean
    assert turns.seconds == pytest.approx(lockstep.seconds)


def test_sharing_beats_one_by_one_where_weights_bound() -> None:
    a, b = DEVICES["weights-bound"]
    cost = linear(a, b)
    for jobs in runs(cost, 100, 1.2, (4, 30), seeds=3):
        engine = Simulation(cost, Policy(max_rows=24, max_tokens=budget(a, b))).run(jobs)
        alone = one_by_one(jobs, cost)
        usual = run_to_completion(jobs, cost, budget(a, b))
        assert engine.mean < 0.6 * min(alone.mean, usual.mean)
        assert engine.throughput > max(alone.throughput, usual.throughput)


def test_nothing_is_blocked_behind_what_does_not_fit() -> None:
    """Beside three rows of four, the two rows wait; the one behind them goes along, in every forward."""
    jobs = [Job(0.0, 2, rows=3), Job(0.0, 9, rows=2), Job(0.0, 20, rows=1)]
    report = Simulation(UNIT, Policy(max_rows=4)).run(jobs)
    assert [done.ended for done in report.done] == [2, 11, 20]


def test_a_burst_on_an_idle_engine_starts_together() -> None:
    jobs = [Job(0.0, 4, before=(0.5,), after=(0.5,)) for _ in range(8)]
    burst, plain = (
        Simulation(linear(0.1, 0.0), Policy(max_rows=24), phase_allowed=rule).run(jobs)
        for rule in (phase_allowed, at_most_one)
    )
    assert (burst.occupancy, burst.stall) == (8.0, 0.0)
    assert plain.occupancy < 3
    assert burst.seconds < plain.seconds


def test_phases_hold_nobody_up_longer_than_a_forward_and_a_phase() -> None:
    """Few steps at 1.2 of capacity: far better than one phase at a time, and a bound that all at once does not have."""
    a, b = DEVICES["weights-bound"]
    cost = linear(a, b)
    jobs = runs(cost, 200, 1.2, (4, 4), seeds=1)[0]
    plain, chosen, unbounded = (
        Simulation(cost, Policy(max_rows=24, max_tokens=budget(a, b)), phase_allowed=rule).run(jobs)
        for rule in (at_most_one, phase_allowed, all_at_once)
    )
    longest = max(max(*job.before, *job.after) for job in jobs)
    assert plain.stall == pytest.approx(longest)
    assert chosen.stall < cost(budget(a, b)) + longest
    assert chosen.stall < unbounded.stall
    assert chosen.mean < 0.5 * plain.mean
    assert chosen.occupancy > 1.2 * plain.occupancy


def test_the_table_reads(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = list(poisson(20, 1.0, 0, (4, 30)))
    show("twenty edits", [jobs], {"one by one": lambda jobs: one_by_one(jobs, COMPUTE_BOUND)})
    title, head, row, _ = capsys.readouterr().out.splitlines()
    assert title == "twenty edits"
    assert head.split()[:2] == ["mean", "s"]
    assert row.startswith("  one by one ")
    assert f"{one_by_one(jobs, COMPUTE_BOUND).mean:.2f}" in row
