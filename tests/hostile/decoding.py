"""Decodes pictures in a process of its own, and says of each what it took.

python -m tests.hostile.decoding FILE …
python -m tests.hostile.decoding mutants SEED COUNT FILE …
"""

from __future__ import annotations

import gc
import json
import random
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from retouch_server import images
from retouch_server.errors import InvalidRequest

# What lengths, counts and offsets are made.
_NUMBERS = (
    bytes(4),
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\0\0\xff\xff",
    b"\xff\xff\0\0",
    b"\0\0\0\1",
)
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Taken:
    """By one picture.

    `seconds`: of CPU; `mebibytes`: at the peak, beyond what there was; `said`: of a refusal, else "".
    """

    seconds: float
    mebibytes: float
    said: str
    # Lines that a library would have written into the log by itself: the same one comes once in a process's life.
    warned: int


def decode(data: bytes) -> Taken:
    """As an edit does it: decoded, laid over white, fitted to a megapixel."""
    gc.collect()
    _CLEAR.write_text("5")  # proc(5): the peak begins anew
    before, began, said = _status("VmRSS"), time.process_time(), ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            image = images.decode(data, "images[0]", images.InputLimits())
            images.fit(images.flatten(image), (1024, 1024))
        except InvalidRequest as refused:
            said = refused.message
    return Taken(time.process_time() - began, _status("VmHWM") - before, said, _lines(warned))


def _lines(warned: Sequence[warnings.WarningMessage]) -> int:
    return len({str(each.message) for each in warned})


def _status(name: str) -> float:
    """A size of /proc/self/status in MiB."""
    (line,) = (each for each in _STATUS.read_text().splitlines() if each.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


@dataclass
class Mutants:
    """What came of pictures that were changed at random.

    `slowest`: seconds of CPU; `mebibytes`: grown by the end, since a tenth was done.
    """

    decoded: int = 0
    refused: int = 0
    warned: int = 0
    slowest: float = 0.0
    mebibytes: float = 0.0


def mutants(originals: Sequence[bytes], seed: int, count: int) -> Mutants:
    """Decode `count` pictures, each one of `originals` with some bytes changed, cut, doubled or made large."""
    found, chance = Mutants(), random.Random(seed)
    before = 0.0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for i in range(count):
            data, began = mutated(chance.choice(originals), chance), time.process_time()
            try:
                images.decode(data, "images[0]", images.InputLimits(max_pixels=2**20))
                found.decoded += 1
            except InvalidRequest:
                found.refused += 1
            found.slowest = max(found.slowest, time.process_time() - began)
            if i == count // 10:
                before = _status("VmRSS")
    found.warned, found.mebibytes = _lines(warned), _status("VmRSS") - before
    return found


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(changed))
        match chance.randrange(5):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at : at + 4] = chance.choice(_NUMBERS)
            case 2:
                del changed[at : at + chance.randrange(1, 9)]
            case 3:
                changed[at:at] = changed[at : at + chance.randrange(1, 99)]
            case _:
                changed[at] = chance.randrange(256)
        changed = changed or bytearray(data)
    return bytes(changed)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.argv[1] == "mutants":
        read = [Path(file).read_bytes() for file in sys.argv[4:]]
        print(json.dumps(asdict(mutants(read, int(sys.argv[2]), int(sys.argv[3])))))
    else:
        for file in sys.argv[1:]:
            print(json.dumps(asdict(decode(Path(file).read_bytes()))), flush=True)
