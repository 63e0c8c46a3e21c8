"""`retouch-gateway`."""

import signal
import sys
from typing import NoReturn


def main() -> None:
    """As process.main, which takes half a second to import.

    A stop in that time is an orderly one too: of process 1, as in a container, the kernel drops a signal that
    nobody handles. uvicorn hands its signal on once it has stopped.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped)
    from retouch_gateway import process

    process.main()


def _stopped(_signal: int, _frame: object) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
