"""A model's safety checks at work: before an edit may queue, and before its results may leave.

What a check does not clearly allow is not done: one that raises, hangs or answers nonsense fails the edit. Checks run
in threads of their own, a pool for each model, so that one that hangs holds up neither decoding nor other models.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeAlias

from .errors import Blocked, CheckFailed
from .images import Pixels, to_image
from .models import Inputs, Model
from .safety import Refusal, Request
from .tracing import NONE, Span

log = logging.getLogger(__name__)

Stage = Literal["before", "after"]
Outcome = Literal["passed", "blocked", "failed"]
STAGES: tuple[Stage, ...] = ("before", "after")
OUTCOMES: tuple[Outcome, ...] = ("passed", "blocked", "failed")
CHECKPOINT = "checkpoint"
"""What the log calls a checkpoint's own safety checker."""

Ask: TypeAlias = Callable[[Any], object]
"""Asks one check, and gives its answer."""


class Moderator:
    """Asks one model's checks.

    count:   called with each stage of a request that came to an end, and how.
    seconds: that a stage may take, once it has its turn.
    threads: stages under way at once.
    """

    def __init__(
        self,
        model: Model,
        count: Callable[[Stage, Outcome], object],
        seconds: float,
        threads: int,
    ) -> None:
        self._model, self._count, self._seconds = model, count, seconds
        self._turns = asyncio.Semaphore(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"safety {model.entry.id}")

    async def before(self, inputs: Inputs, span: Span = NONE) -> None:
        """Whether an edit may queue. Raises Blocked or CheckFailed."""
        if checks := self._model.checks.before:

            def ask(check: Any) -> object:
                return check.before(self._request(inputs))

            with span.part("check request"):
                await self._ask("before", checks, ask)

    async def after(self, inputs: Inputs, results: Sequence[Pixels], span: Span = NONE) -> None:
        """Whether all results of a request may leave: if one may not, none may. Raises Blocked or CheckFailed."""
        if checks := self._model.checks.after:

            def ask(check: Any) -> object:
                return check.after(self._request(inputs), [to_image(each) for each in results])

            with span.part("check results"):
                await self._ask("after", checks, ask)
        elif self._model.has_checker:
            self._count("after", "passed")

    def flagged(self) -> Blocked:
        """The answer to a request of which the checkpoint's own checker refused a result."""
        self._count("after", "blocked")
        return Blocked(Refusal("nsfw"), "after", CHECKPOINT)

    def close(self) -> None:
        """Wait for no check."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, inputs: Inputs) -> Request:
        """What the checks are told: the whole picture, where the edit is of a part of it."""
        image, mask = inputs.image, inputs.mask
        if inputs.region:
            image, mask = inputs.region.base, inputs.region.mask
        return Request(
            model=self._model.entry.id,
            prompt=inputs.prompt,
            negative_prompt=inputs.negative_prompt or "",
            images=tuple(each.copy() for each in (image, *inputs.references)),
            mask=mask and mask.copy(),
        )

    async def _ask(self, stage: Stage, checks: Mapping[str, Any], ask: Ask) -> None:
        """All checks of a stage, in order, until one refuses."""
        asked: list[str] = []
        verdict = partial(_verdict, checks, ask, asked)
        try:
            # A check that hangs gives back its turn, but not its thread: then there is none, and the edit fails.
            async with self._turns, asyncio.timeout(self._seconds):
                refusal = await asyncio.get_running_loop().run_in_executor(self._pool, verdict)
        except _Broken as error:
            raise self._failed(stage, asked[-1], str(error)) from None
        except TimeoutError:
            why = "no answer" if asked else "no thread was free"
            name = asked[-1] if asked else next(iter(checks))
            raise self._failed(stage, name, f"{why} within {self._seconds:g} s") from None
        if refusal:
            self._count(stage, "blocked")
            raise Blocked(refusal, stage, asked[-1])
        self._count(stage, "passed")

    def _failed(self, stage: Stage, name: str, why: str) -> CheckFailed:
        where = (self._model.entry.id, name, stage)
        log.error("model %s: the safety check %s failed %s an edit: %s", *where, why)
        self._count(stage, "failed")
        return CheckFailed(stage, name)


class _Broken(Exception):
    """A check gave no answer; the message tells why, and nothing of the request."""


def _verdict(checks: Mapping[str, Any], ask: Ask, asked: list[str]) -> Refusal | None:
    """The first refusal. `asked`: is told each check's name before it is asked."""
    for name, check in checks.items():
        asked.append(name)
        try:
            answer = ask(check)
        except BaseException as error:  # SystemExit too: it would end the event loop
            # Its message may quote the prompt.
            place = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__} at {place.filename}:{place.lineno}"
            raise _Broken(why) from None
        if isinstance(answer, Refusal):
            return answer
        if answer is not None:
            raise _Broken(f"it answered with a {type(answer).__name__}")
    return None
