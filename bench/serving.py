"""Ways to serve edits in real time, and what callers see of them. `bench/compare.py` compares them."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from bench.common import stock
from retouch_server import warmup
from retouch_server.engine.edit import Edit
from retouch_server.models import Inputs, Model
from retouch_server.warmup import Sharing

Submit = Callable[[Inputs], Future[Tensor]]
Way = Callable[[], AbstractContextManager[Submit]]


@dataclass(eq=False)
class Waiting:
    """An edit that waits for its call."""

    inputs: Inputs
    since: float = field(default_factory=time.perf_counter)
    future: Future[Tensor] = field(default_factory=Future)


class Loop:
    """The stock pipeline on a thread, one call after another.

    most:   edits of equal parameters that go into one call.
    window: seconds that a call waits to become full, from when its first edit came.
    """

    def __init__(self, pipe: Any, most: int, window: float) -> None:
        self._pipe, self._most, self._window = pipe, most, window
        self._queue: list[Waiting] = []
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> Submit:
        self._thread.start()
        return self._submit

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _submit(self, inputs: Inputs) -> Future[Tensor]:
        waiting = Waiting(inputs)
        with self._changed:
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.future

    def _main(self) -> None:
        with torch.inference_mode():
            while batch := self._next():
                try:
                    images = stock(self._pipe, [waiting.inputs for waiting in batch])
                except Exception as error:
                    for waiting in batch:
                        waiting.future.set_exception(error)
                else:
                    for waiting, image in zip(batch, torch.split(images, 1), strict=True):
                        waiting.future.set_result(image)

    def _next(self) -> list[Waiting]:
        """The edit that has waited longest, and those like it; none when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            if not self._queue:
                return []
            full = self._queue[0].since + self._window
            self._changed.wait_for(
                lambda: len(self._alike()) == self._most, max(0.0, full - time.perf_counter())
            )
            batch = self._alike()
            self._queue = [waiting for waiting in self._queue if waiting not in batch]
            return batch

    def _alike(self) -> list[Waiting]:
        head = parameters(self._queue[0].inputs)
        return [w for w in self._queue if parameters(w.inputs) == head][: self._most]


def parameters(inputs: Inputs) -> tuple[object, ...]:
    """What must be equal for one call of a pipeline."""
    return inputs.image.size, inputs.steps, inputs.guidance_scale


@contextmanager
def this_engine(model: Model, sharing: Sharing, queue_size: int) -> Iterator[Submit]:
    """The engine as the server starts it."""
    engine = warmup.engine(model, sharing, queue_size=queue_size)
    engine.start()

    def submit(inputs: Inputs) -> Future[Tensor]:
        edit = Edit(model.run(inputs), total=inputs.steps)
        engine.submit([edit])
        return edit.future

    try:
        yield submit
    finally:
        engine.stop()


class Forwards:
    """Counts a denoiser's forwards and their rows, whoever calls it."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.count = self.rows = 0
        denoiser.register_forward_hook(self._note)

    def _note(self, module: object, arguments: object, output: tuple[Tensor, ...]) -> None:
        self.count += 1
        self.rows += len(output[0])


@dataclass
class Served:
    """What came of serving edits one way, some times over. Seconds; `busy` ones are of CPU, of all threads."""

    latencies: list[float] = field(default_factory=list)
    makespan: float = 0.0
    busy: float = 0.0
    forwards: int = 0
    rows: int = 0

    @property
    def figures(self) -> dict[str, float]:
        cuts = statistics.quantiles(self.latencies, n=20, method="inclusive")
        return {
            "edits/s": len(self.latencies) / self.makespan,
            "mean s": statistics.fmean(self.latencies),
            "median s": cuts[9],
            "p95 s": cuts[18],
            "cpu s": self.busy / len(self.latencies),
        }


def serve(
    way: Way, edits: Sequence[Inputs], arrivals: Sequence[float], forwards: Forwards, into: Served
) -> list[Tensor]:
    """Submit each edit when its time has come, wait for all, and add what came of it to `into`."""
    ended: SimpleQueue[tuple[int, float, Future[Tensor]]] = SimpleQueue()

    def note(index: int, future: Future[Tensor]) -> None:
        ended.put((index, time.perf_counter() - started, future))

    before, busy = (forwards.count, forwards.rows), time.process_time()
    with way() as submit:
        started = time.perf_counter()
        for index, (inputs, due) in enumerate(zip(edits, arrivals, strict=True)):
            time.sleep(max(0.0, started + due - time.perf_counter()))
            submit(inputs).add_done_callback(partial(note, index))
        ends = sorted((ended.get() for _ in edits), key=lambda end: end[0])
    into.latencies += [end - due for (_, end, _), due in zip(ends, arrivals, strict=True)]
    into.busy += time.process_time() - busy
    into.makespan += max(end for _, end, _ in ends) - arrivals[0]
    into.forwards += forwards.count - before[0]
    into.rows += forwards.rows - before[1]
    return [future.result() for *_, future in ends]
