"""A tier as a child process: in a session of its own, its output in a log, never left behind."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from retouch_cli import leash
from retouch_cli.errors import Failure

TAIL_BYTES = 65_536
TOGETHER_SECONDS = 0.2
WRONG_SETTINGS = 2  # the exit status of a tier that has said a line for each mistake


class Child:
    """One tier's process; `start` it once, `stop` it in any case."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, environment: Mapping[str, str]) -> None:
        """Raises Failure where the command is not installed beside this one."""
        command = Path(sys.executable).parent / self.name
        if not command.exists():
            raise Failure(
                f"{command} is missing: install retouch with its server and gateway extras"
            )
        try:
            log = self.log.open("wb")
        except OSError as error:
            raise Failure(f"cannot write {self.log}: {error.strerror}") from error
        with log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(command)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environment),
                # Ctrl-C in the terminal is for the parent, which stops its children in order.
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def died(self) -> None:
        """Waits for the process to end, which it should not, and raises Failure with the reason."""
        if self._process is None:
            return
        code = await self._process.wait()
        if code < 0:
            raise Failure(
                f"{self.name} was killed by {signal.Signals(-code).name}; log: {self.log}"
            )
        words = last_words(self.log, 10 if code == WRONG_SETTINGS else 1)
        raise Failure(f"{self.name} ended with code {code}: {words} (log: {self.log})")

    async def stop(self, seconds: float) -> bool:
        """Asks it to stop, waits, and kills it after `seconds`. False where it ended killed."""
        if self._process is None:
            return True
        if self.running:
            # Not by Popen: that first waits for the process, behind the back of asyncio, which then warns of it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            self.kill()
        return await self._process.wait() != -signal.SIGKILL

    def kill(self) -> None:
        """Ends it at once, with whatever it started."""
        if self._process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def last_words(log: Path, most: int) -> str:
    """What a dead process's log ends with, as one line: up to `most` of its last lines."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-most:]) or "no word of why"


async def first_of(*work: Coroutine[Any, Any, object]) -> None:
    """Runs all until one ends, cancels the others, and raises what the ended one raised.

    Where several end together, the first in the order given decides: causes go before effects.
    """
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(tasks, timeout=TOGETHER_SECONDS)
        ended = next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ended.result()
