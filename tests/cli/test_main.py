"""The command line as a whole: words and options in any order, help that is the manual."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from retouch_cli import errors
from retouch_cli.commands import add_words, main, parser
from retouch_cli.errors import Failure, WrongCommandLine

ROOT = Path(__file__).parents[2]


def commands(
    whole: argparse.ArgumentParser, name: str = "retouch"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command's name and parser, those of commands too."""
    inner = [each for each in whole._actions if isinstance(each, argparse._SubParsersAction)]
    if not inner:
        yield name, whole
    for action in inner:
        for word, sub in action.choices.items():
            yield from commands(sub, f"{name} {word}")


COMMANDS = dict(commands(parser()))


def words(line: list[str]) -> list[str]:
    arguments, rest = parser().parse_known_args(["edit", *line])
    add_words(arguments, rest)
    found: list[str] = arguments.words
    return found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (["a", "b", "p"], ["a", "b", "p"]),
        (["a", "-n", "2", "b", "--seed=7", "p"], ["a", "b", "p"]),
        (["-n", "2", "a", "p"], ["a", "p"]),
        (["-", "-f", "-"], ["-", "-"]),
        (["a", "-f", "-10% less light"], ["a", "-10% less light"]),
        (["a", "-f", "--", "-dark"], ["a", "-dark"]),
        (["a", "-f", "b", "--", "-c", "--"], ["a", "b", "-c", "--"]),
        (["a", "--forced", "--", "-dark"], None),
        (["a", "--", "-dark"], ["a", "-dark"]),
        (["a", "--forced", "p"], None),
        (["a", "--forc", "p"], None),
    ],
)
def test_words_and_options_in_any_order(line: list[str], found: list[str] | None) -> None:
    if found is None:
        with pytest.raises(WrongCommandLine):
            words(line)
    else:
        assert words(line) == found


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"retouch {metadata.version('retouch')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_the_manual(command: str) -> None:
    text = COMMANDS[command].format_help()
    assert "exit status:" in text
    assert "examples:" in text
    for action in COMMANDS[command]._actions:
        assert action.help, f"{action.dest} has no help"
    longest = max(len(line) for line in text.splitlines())
    assert longest <= 110, "a terminal's line, or little more"


@pytest.mark.parametrize("command", ["retouch edit", "retouch models"])
def test_each_exit_status_is_in_the_help(command: str) -> None:
    """Of Failure and all that it branches into."""
    kinds = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, Failure)
    ]
    listed = set(re.findall(r"^  (\d+)  ", COMMANDS[command].format_help(), re.MULTILINE))
    assert {str(kind.status) for kind in kinds} | {"0"} <= listed


def test_the_document_names_each_option() -> None:
    document = (ROOT / "docs/cli.md").read_text()
    for command, each in COMMANDS.items():
        assert f"`{command}" in document
        for action in each._actions:
            for option in action.option_strings[-1:]:
                assert f"`{option}" in document, f"{option} of {command}"


def test_an_output_that_is_full_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "retouch_cli", "key", "new", "ada"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("\nretouch: [Errno 28] No space left on device\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("retouch edit nowhere.png x --json > /dev/full", 1, "No space left on device"),
        ("retouch edit nowhere.png x --json >&-", 1, "Bad file descriptor"),
        ("retouch edit - x -o x.png <&-", 3, "standard input is empty"),
        ("(trap '' PIPE; retouch edit nowhere.png x --json; echo $? >&2) | true", 0, "\n1\n"),
    ],
)
def test_streams_that_are_closed_or_full(
    tmp_path: Path, script: str, status: int, said: str
) -> None:
    run = script.replace("retouch", f"{shlex.quote(sys.executable)} -m retouch_cli")
    done = subprocess.run(
        ["bash", "-c", run], cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_fails_without_stderr_is_still_one_object(tmp_path: Path) -> None:
    run = f"{shlex.quote(sys.executable)} -m retouch_cli edit nowhere.png x --json 2>&-"
    done = subprocess.run(["bash", "-c", run], cwd=tmp_path, stdout=subprocess.PIPE, timeout=60)
    assert json.loads(done.stdout)["error"]["exit"] == done.returncode == 1


def test_nothing_slow_is_imported_before_it_is_needed() -> None:
    code = "import sys, retouch_cli.commands; print(*sys.modules)"
    # httpx imports rich for a command of its own, where click is installed too.
    hide = "import sys; sys.modules['click'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", hide + code],
        capture_output=True,
        check=True,
        text=True,
        env=os.environ,
    )
    assert not {"rich", "PIL", "numpy"} & set(done.stdout.split())


INTERRUPT = """
import os, signal, sys
def at(event, arguments):
    if event == "import" and arguments[0] == os.environ["INTERRUPT_AT"]:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(at)
"""
IMPORTED = ("retouch_cli.commands", "argparse", "retouch_cli.edit", "httpx", "retouch_cli.up")


@pytest.mark.parametrize("module", IMPORTED)
@pytest.mark.parametrize("trap", ["", "trap '' INT; "], ids=["told", "deaf"])
def test_ctrl_c_while_it_is_only_being_imported(tmp_path: Path, module: str, trap: str) -> None:
    """It ends without a word, by the signal; where whoever started it has it ignored, it goes on."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT)
    run = f"{trap}exec {shlex.quote(sys.executable)} -m retouch_cli edit nowhere.png x"
    done = subprocess.run(
        ["bash", "-c", run],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "INTERRUPT_AT": module},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if trap:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    else:
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
