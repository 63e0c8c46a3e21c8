"""The engine's policy in virtual time: what callers would wait on hardware of a kind. `bench/policy.py` prints tables.

Runs the real `batching.Policy` and `batching.phase_allowed` event by event, beside the usual ways to serve: one edit
after another, and dynamic batching that runs each batch to completion. No torch and no sleeping: the same jobs give
the same figures on every machine. Times are seconds of virtual time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, quantiles

from retouch_server.engine.batching import Policy, phase_allowed

Cost = Callable[[int], float]
"""Tokens of a forward (sum of rows x tokens) -> its seconds."""


def linear(a: float, b: float) -> Cost:
    """`a` seconds for each forward (reading the weights, launching kernels) and `b` for each token."""
    return lambda tokens: a + b * tokens


def table(points: Sequence[tuple[int, float]]) -> Cost:
    """Measured (tokens, seconds), two or more, tokens ascending; straight lines between and beyond."""

    def cost(tokens: int) -> float:
        right = min(max(bisect_left(points, (tokens, 0.0)), 1), len(points) - 1)
        (n0, s0), (n1, s1) = points[right - 1], points[right]
        return s0 + (s1 - s0) * (tokens - n0) / (n1 - n0)

    return cost


@dataclass(frozen=True)
class Job:
    """One edit to serve. `before` and `after` its steps come phases, in seconds: encodings, and decoding."""

    arrival: float
    steps: int
    key: Hashable = "512"
    rows: int = 1
    tokens: int = 2048
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()

    def alone(self, cost: Cost) -> float:
        """Seconds that it takes on an idle device."""
        return sum(self.before) + sum(self.after) + self.steps * cost(self.rows * self.tokens)


@dataclass(frozen=True)
class Done:
    """When a job was served."""

    job: Job
    started: float
    ended: float

    @property
    def latency(self) -> float:
        return self.ended - self.job.arrival


@dataclass
class Report:
    """What came of a way of serving.

    busy:  seconds in forwards and phases.
    stall: the most seconds that phases put between a waiting edit with steps done and the next forward.
    """

    done: list[Done] = field(default_factory=list)
    refused: list[Job] = field(default_factory=list)
    forwards: int = 0
    rows: int = 0
    busy: float = 0.0
    stall: float = 0.0

    @property
    def mean(self) -> float:
        """Mean latency, seconds."""
        return fmean(done.latency for done in self.done)

    @property
    def p95(self) -> float:
        """95th percentile of latency, seconds."""
        return quantiles([done.latency for done in self.done], n=20, method="inclusive")[-1]

    @property
    def occupancy(self) -> float:
        """Rows per forward."""
        return self.rows / self.forwards

    @property
    def seconds(self) -> float:
        """From the first arrival to the last end."""
        return max(d.ended for d in self.done) - min(d.job.arrival for d in self.done)

    @property
    def throughput(self) -> float:
        """Edits per second."""
        return len(self.done) / self.seconds

    @property
    def utilisation(self) -> float:
        """Part of the time that the device was busy."""
        return self.busy / self.seconds


class Running:
    """An edit that holds a slot: in a phase, or waiting in a denoiser call, as which the policy sees it."""

    def __init__(self, job: Job, started: float) -> None:
        self.job, self.started = job, started
        self.key, self.rows, self.tokens = job.key, job.rows, job.tokens
        self.remaining, self.since = job.steps, 0
        self.before, self.after = deque(job.before), deque(job.after)

    @property
    def waits(self) -> bool:
        """In a denoiser call, not in a phase."""
        return not self.before and self.remaining > 0

    @property
    def stepping(self) -> bool:
        return self.waits and self.remaining < self.job.steps


def at_most_one(*, stepping: bool, spent: float, last_forward: float) -> bool:
    """The plain rule for phases, to compare with: one between two forwards."""
    return spent == 0


def all_at_once(*, stepping: bool, spent: float, last_forward: float) -> bool:
    """No rule for phases, to compare with."""
    return True


class Simulation:
    """The engine's loop with a clock of its own. Once only: `Simulation(...).run(jobs)`.

    slots, queue_size: as the engine's, >= 1; whoever finds the queue full is refused.
    """

    def __init__(
        self,
        cost: Cost,
        policy: Policy,
        *,
        slots: int = 8,
        queue_size: int | None = None,
        phase_allowed: Callable[..., bool] = phase_allowed,
    ) -> None:
        self.cost, self.policy, self.slots, self.queue_size = cost, policy, slots, queue_size
        self.phase_allowed = phase_allowed
        self.now, self.last_forward = 0.0, 0.0
        self.arriving: deque[Job] = deque()
        self.queue: deque[Job] = deque()
        self.running: list[Running] = []
        self.report = Report()

    def run(self, jobs: Sequence[Job]) -> Report:
        self.arriving.extend(sorted(jobs, key=lambda job: job.arrival))
        while self.arriving or self.queue or self.running:
            self._admit()
            if not self.running:
                self.now = self.arriving[0].arrival
                continue
            self._phases()
            self._forward()
        return self.report

    def _admit(self) -> None:
        while self.arriving and self.arriving[0].arrival <= self.now:
            job = self.arriving.popleft()
            full = self.queue_size is not None and len(self.queue) >= self.queue_size
            (self.report.refused if full else self.queue).append(job)
        while self.queue and len(self.running) < self.slots:
            self.running.append(Running(self.queue.popleft(), self.now))
            self._advance(self.running[-1])

    def _phases(self) -> None:
        spent = 0.0
        while phases := [edit for edit in self.running if not edit.waits]:
            stepping = any(edit.stepping for edit in self.running)
            if not self.phase_allowed(
                stepping=stepping, spent=spent, last_forward=self.last_forward
            ):
                break
            oldest = phases[0]
            seconds = (oldest.before or oldest.after).popleft()
            self._pass(seconds)
            spent += seconds
            if stepping:
                self.report.stall = max(self.report.stall, spent)
            self._advance(oldest)
            self._admit()

    def _forward(self) -> None:
        batch = self.policy.next_batch([edit for edit in self.running if edit.waits])
        if not batch:
            return
        self.last_forward = self.cost(sum(edit.rows * edit.tokens for edit in batch))
        self._pass(self.last_forward)
        self.report.forwards += 1
        self.report.rows += sum(edit.rows for edit in batch)
        for edit in batch:
            edit.remaining -= 1
            self._advance(edit)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.report.busy += seconds

    def _advance(self, edit: Running) -> None:
        """On to its next call or phase, or to its end."""
        edit.since = self.policy.forwards
        if not (edit.waits or edit.before or edit.after):
            self.running.remove(edit)
            self.report.done.append(Done(edit.job, edit.started, self.now))


def run_to_completion(
    jobs: Sequence[Job], cost: Cost, max_tokens: int, window: float = 0.01
) -> Report:
    """Dynamic batching, the usual way: equal keys and steps that come within `window` seconds go together.

    All of a batch end together, and the next one waits for that. Phases run one by one, as in the engine.
    """
    queue, report, now = deque(sorted(jobs, key=lambda job: job.arrival)), Report(), 0.0
    while queue:
        head = queue.popleft()
        now = max(now, head.arrival + window)
        batch, tokens = [head], head.rows * head.tokens
        for job in list(queue):
            joins = job.arrival <= now and (job.key, job.steps) == (head.key, head.steps)
            if joins and tokens + job.rows * job.tokens <= max_tokens:
                batch.append(job)
                tokens += job.rows * job.tokens
                queue.remove(job)
        seconds = sum(sum(job.before) + sum(job.after) for job in batch) + head.steps * cost(tokens)
        report.done += [Done(job, now, now + seconds) for job in batch]
        report.forwards += head.steps
        report.rows += head.steps * sum(job.rows for job in batch)
        report.busy += seconds
        now += seconds
    return report


def one_by_one(jobs: Sequence[Job], cost: Cost) -> Report:
    """First come, first served, alone: what a pipeline in a loop does."""
    return run_to_completion(jobs, cost, max_tokens=0, window=0.0)
