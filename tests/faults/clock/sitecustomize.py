"""On the path of a process: its wall clock is wrong by as many seconds as a file says at the moment."""

import os
import sys
import time
from pathlib import Path

_file = Path(os.environ["TESTS_CLOCK"])
_true = time.time


def _shifted() -> float:
    # It adds seconds to this clock, and its C core takes them off the kernel's at once: those two must be the same.
    if sys._getframe(1).f_globals.get("__name__", "").startswith("grpc"):
        return _true()
    try:
        return _true() + float(_file.read_text())
    except (OSError, ValueError):  # not there, or being written
        return _true()


time.time = _shifted
