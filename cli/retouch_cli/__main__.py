"""`retouch`: what a person types."""

import argparse
import os
import sys
from collections.abc import Sequence

from retouch_cli import key, up
from retouch_cli.errors import Failure

DESCRIPTION = "AI image edits as a service. `retouch COMMAND --help` is each command's manual."


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="retouch", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    up.add_to(commands)
    key.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 where the command failed, 2 where the command line was wrong, 130 by Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except Failure as failure:
        print(f"retouch: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there was anything to stop
        return 130
    except BrokenPipeError:
        # Whoever read our output is gone; Python must not flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
