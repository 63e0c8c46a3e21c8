"""Runs a command that gets SIGTERM when its parent dies, however the parent dies.

`python leash.py PARENT_PID COMMAND ...`. The kernel does it (Linux, prctl(2) PR_SET_PDEATHSIG;
elsewhere this only runs the command). Asked for here and kept across exec, it needs no code between
fork and exec in the parent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("the parent died before the command began")
    os.execv(command[0], command)  # noqa: S606 the command is `up`'s own


if __name__ == "__main__":
    main()
