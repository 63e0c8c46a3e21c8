"""`retouch`: what a person types."""

import signal
import sys


def main() -> int:
    """As commands.main, which takes a third of a second to import: Ctrl-C is to be quiet in that time too."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from retouch_cli import commands

    return commands.main()


if __name__ == "__main__":
    sys.exit(main())
