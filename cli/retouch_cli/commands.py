"""All commands as one command line, and how it ends."""

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata

from retouch_cli import edit, key, models, up, verify
from retouch_cli.errors import Failure, WrongCommandLine, plain

DESCRIPTION = "AI image edits as a service. `retouch COMMAND --help` is each command's manual."


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="retouch", description=DESCRIPTION)
    version = f"retouch {metadata.version('retouch')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for command in (up, edit, models, verify, key):
        command.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, a Failure's own, 2 where the command line was wrong. Ctrl-C ends the process."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as __main__ leaves it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare_streams()
        try:
            return run(argv)
        finally:
            sys.stdout.flush()  # here, where it can be told that this failed
    except KeyboardInterrupt:
        # By the signal itself: a shell shows 130, and ends a loop around this command too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        raise
    except OSError as error:
        # Whoever read our output is gone, or its disk is full; Python must not flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"retouch: {plain(str(error))}", file=sys.stderr)
        return 1


def prepare_streams() -> None:
    """Those that were closed before this began are empty, or not to be written to; no other file takes their number."""
    closed = (
        ("stdin", os.O_RDONLY, "r"),
        ("stdout", os.O_RDONLY, "w"),
        ("stderr", os.O_WRONLY, "w"),
    )
    for name, access, mode in closed:
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, access), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):  # whose encoding may lack what a model is called
        sys.stdout.reconfigure(errors="backslashreplace")


def run(argv: Sequence[str] | None) -> int:
    arguments, rest = parser().parse_known_args(argv)
    try:
        add_words(arguments, rest)
        status: int = arguments.run(arguments)
    except Failure as failure:
        print(f"retouch: {plain(str(failure))}", file=sys.stderr)
        if getattr(arguments, "json", False) and not isinstance(failure, WrongCommandLine):
            print(json.dumps(failure.as_json(), indent=2))
        return failure.status
    return status


def add_words(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """argparse takes words up to the next option; those behind it, of a command that has `words`, are added here.

    Raises WrongCommandLine of a word that the command does not take, and of an option that there is not.
    """
    words: list[str] | None = getattr(arguments, "words", None)
    end = rest.index("--") if "--" in rest else len(rest)
    rest, literal = rest[:end], rest[end + 1 :]
    if wrong := [each for each in rest if words is None or is_option(each)]:
        command = f"retouch {arguments.command} --help"
        raise WrongCommandLine(f"{' '.join(wrong)}: not understood; `{command}` says more")
    if words is not None:
        arguments.words = [*words, *rest, *literal]


def is_option(word: str) -> bool:
    """As argparse sees it: what has a blank in it is a sentence, and - is standard input."""
    return word.startswith("-") and word != "-" and " " not in word
