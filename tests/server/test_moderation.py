"""A moderator: what checks are told, and that only a clear yes is one."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retouch_server.crop import Region
from retouch_server.errors import Blocked, CheckFailed
from retouch_server.models import Inputs, Model
from retouch_server.moderation import Moderator
from retouch_server.safety import Checks, Refusal, Request
from tests.server.conftest import Load
from tests.server.test_equality import mask, picture

PROMPT = "a prompt that nobody else may read"
INPUTS = Inputs(prompt=PROMPT, image=picture(0), steps=2, seed=7, references=(picture(1),))
RESULT = np.asarray(picture(2), dtype=np.float32) / np.float32(255)


class Check:
    """Does as it is told, and remembers what it was told."""

    def __init__(self, answer: Callable[[], Any] = lambda: None) -> None:
        self.answer = answer
        self.seen: list[tuple[Request, Sequence[Image.Image]]] = []

    def before(self, request: Request) -> Refusal | None:
        self.seen.append((request, ()))
        return self.answer()  # type: ignore[no-any-return]

    def after(self, request: Request, results: Sequence[Image.Image]) -> Refusal | None:
        self.seen.append((request, results))
        return self.answer()  # type: ignore[no-any-return]


Ask = Callable[..., Moderator]
Counted = list[tuple[str, str]]


@pytest.fixture
def counted() -> Counted:
    """Stage and outcome of all that moderators came to."""
    return []


@pytest.fixture
def asking(tiny_model: Load, counted: Counted) -> Iterator[Ask]:
    """Makes a moderator over these checks."""
    made: list[Moderator] = []

    def make(*checks: Check, seconds: float = 60.0, threads: int = 2) -> Moderator:
        named: Mapping[str, Check] = {f"check:{i}": check for i, check in enumerate(checks)}
        model: Model = replace(tiny_model("instruct"), checks=Checks(named, named))
        moderator = Moderator(model, lambda *what: counted.append(what), seconds, threads)
        made.append(moderator)
        return moderator

    yield make
    for moderator in made:
        moderator.close()


async def test_a_check_is_told_all_that_was_asked_and_made(asking: Ask, counted: Counted) -> None:
    check = Check()
    moderator = asking(check)
    masked = replace(INPUTS, mask=mask(), negative_prompt="blue")
    await moderator.before(INPUTS)
    await moderator.after(masked, [RESULT, RESULT])
    (early, _), (late, results) = check.seen
    assert (early.model, early.prompt, early.negative_prompt) == ("instruct", PROMPT, "")
    assert [each.tobytes() for each in early.images] == [
        each.tobytes() for each in (picture(0), picture(1))
    ]
    assert early.mask is None
    assert (late.negative_prompt, late.mask) == ("blue", mask())
    assert [each.tobytes() for each in results] == [picture(2).tobytes()] * 2
    assert counted == [("before", "passed"), ("after", "passed")]


async def test_of_an_edit_of_a_part_it_is_told_the_whole(asking: Ask) -> None:
    check = Check()
    region = Region(picture(5), mask(), (16, 8, 48, 40), (16, 8, 48, 40))
    part = replace(INPUTS, image=region.cut(picture(5)), mask=region.cut(mask()), region=region)
    await asking(check).before(part)
    (request, _) = check.seen[0]
    assert request.images[0].tobytes() == picture(5).tobytes()
    assert request.mask == mask()


async def test_what_it_does_to_a_picture_changes_no_edit(asking: Ask) -> None:
    class Vandal(Check):
        def before(self, request: Request) -> None:
            for image in (*request.images, request.mask):
                if image:
                    image.paste(0, (0, 0, *image.size))
                    image.thumbnail((8, 8))

    second = Check()
    inputs = replace(INPUTS, image=picture(0), mask=mask())
    await asking(Vandal(), second).before(inputs)
    assert inputs.image.tobytes() == picture(0).tobytes()
    assert inputs.mask == mask()
    assert second.seen[0][0].images[0].tobytes() == picture(0).tobytes()


async def test_the_first_refusal_counts(asking: Ask, counted: Counted) -> None:
    last = Check(lambda: Refusal("late"))
    moderator = asking(Check(), Check(lambda: Refusal("weapons", "No weapons.")), last)
    with pytest.raises(Blocked) as refused:
        await moderator.before(INPUTS)
    assert refused.value.message == "Your request was rejected by the safety system. No weapons."
    assert refused.value.logged == {"blocked": "before", "check": "check:1", "category": "weapons"}
    with pytest.raises(Blocked):
        await moderator.after(INPUTS, [RESULT])
    assert not last.seen
    assert counted == [("before", "blocked"), ("after", "blocked")]


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: _raise(ValueError(PROMPT)), r"ValueError at .*test_moderation\.py:\d+"),
        (lambda: _raise(TimeoutError(PROMPT)), "TimeoutError at"),
        (lambda: _raise(SystemExit(PROMPT)), "SystemExit at"),
        (lambda: _raise(StopIteration(PROMPT)), "StopIteration at"),
        (lambda: Refusal(PROMPT), "ValueError at"),
        (lambda: True, "it answered with a bool"),
        (lambda: False, "it answered with a bool"),
        (lambda: PROMPT, "it answered with a str"),
    ],
)
async def test_what_is_no_answer_fails_the_edit_and_tells_nothing(
    asking: Ask,
    counted: Counted,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[], Any],
    why: str,
) -> None:
    moderator = asking(Check(answer))
    for stage in (moderator.before(INPUTS), moderator.after(INPUTS, [RESULT])):
        with pytest.raises(CheckFailed, match=r"^the safety check failed$"):
            await stage
    assert re.search(rf"the safety check check:0 failed before an edit: {why}", caplog.text)
    assert PROMPT not in caplog.text
    assert counted == [("before", "failed"), ("after", "failed")]


async def test_one_that_hangs_fails_the_edit_and_holds_up_no_other_model(
    asking: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    come_back = threading.Event()
    hanging = asking(Check(), Check(come_back.wait), seconds=0.2, threads=1)
    try:
        started = time.monotonic()
        with pytest.raises(CheckFailed):
            await hanging.before(INPUTS)
        assert "check:1 failed before an edit: no answer within 0.2 s" in caplog.text
        with pytest.raises(CheckFailed):
            await hanging.before(INPUTS)
        assert "check:0 failed before an edit: no thread was free within 0.2 s" in caplog.text
        assert time.monotonic() - started < 30
        await asking(Check()).before(INPUTS)
    finally:
        come_back.set()


async def test_a_burst_takes_turns_and_each_has_its_own_time(asking: Ask, counted: Counted) -> None:
    """Who waits for others' checks is no check that hangs."""
    moderator = asking(Check(lambda: time.sleep(0.05)), seconds=1.0, threads=2)
    early = [moderator.before(INPUTS) for _ in range(80)]
    await asyncio.gather(*early, moderator.after(INPUTS, [RESULT]))
    assert counted == [*[("before", "passed")] * 80, ("after", "passed")]


async def test_without_checks_nothing_is_counted(
    asking: Ask, counted: Counted, tiny_model: Load
) -> None:
    moderator = asking()
    await moderator.before(INPUTS)
    await moderator.after(INPUTS, [RESULT])
    assert counted == []
    assert tiny_model("instruct").shows_previews
