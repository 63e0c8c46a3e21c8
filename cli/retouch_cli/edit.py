"""`retouch edit`: photos and an instruction in, the edited photo out."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from retouch_cli import edit_options, outputs, photos
from retouch_cli.errors import Failure, WrongCommandLine, plain
from retouch_cli.gateway import Gateway
from retouch_cli.outputs import Output
from retouch_cli.photos import STDIN
from retouch_cli.progress import watching
from retouch_cli.request import Edit, send
from retouch_cli.stream import SPENT, Picture


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "edit",
        help="edit a photo by an instruction",
        usage=edit_options.USAGE,
        description=edit_options.DESCRIPTION,
        epilog=edit_options.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    edit_options.add_to(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    names, prompt = words(arguments)
    output = outputs.chosen(arguments, names[0])
    if arguments.json and output.piped:
        raise WrongCommandLine("--json and the image cannot both go to standard output; name -o")
    output.check(arguments.seed)
    gateway = Gateway.of(arguments, os.environ)
    asked = {"prompt": prompt, "output_format": output.format, **fields(arguments)}
    made: list[Picture] = []
    with exit_on_sigterm(), contextlib.ExitStack() as files:
        given = [files.enter_context(photos.opened(name)) for name in names]
        mask = files.enter_context(photos.opened(arguments.mask)) if arguments.mask else None
        edit = Edit(given, mask, asked, arguments.n)
        started = time.monotonic()
        try:
            with watching(edit.n, arguments.quiet) as watcher:
                asyncio.run(send(edit, gateway, options(arguments, names), watcher, made))
        except KeyboardInterrupt:
            tell("Cancelled", arguments.quiet)
            raise
        except Failure as failure:
            if made:
                keep(made, output, arguments, failure)
            raise
        seconds = time.monotonic() - started
        report(made, save(made, output), seconds, arguments)
    return 0


def words(arguments: argparse.Namespace) -> tuple[list[str], str]:
    """The photos' names, and the prompt. Raises WrongCommandLine, or Failure where it cannot be read."""
    *names, prompt = arguments.words or [""]
    if arguments.prompt is not None or arguments.prompt_file is not None:
        names, prompt = arguments.words, arguments.prompt
    elif names and os.path.isfile(prompt):
        raise WrongCommandLine(f"the last word is the prompt, and {prompt} is a file: use --prompt")
    elif not names and prompt:
        raise WrongCommandLine(f"a photo and a prompt are needed, not only {prompt!r}")
    elif wrong := [name for name in names[1:] if name != STDIN and not os.path.lexists(name)]:
        raise WrongCommandLine(f"there is no file {wrong[0]}; is the prompt in quotes?")
    if not names:
        raise WrongCommandLine("a photo is needed, and a prompt; `retouch edit --help` says more")
    if [*names, arguments.mask, arguments.prompt_file, arguments.key_file].count(STDIN) > 1:
        raise WrongCommandLine("- is standard input, which can be read only once")
    if arguments.prompt_file is not None:
        prompt = photos.read_text(arguments.prompt_file)
    return names, prompt


def fields(arguments: argparse.Namespace) -> dict[str, str]:
    """The API's fields that options give, as a form writes them."""
    given = {name: getattr(arguments, option) for option, name in edit_options.FIELDS.items()}
    said = {name: value for name, value in given.items() if value is not None}
    return {name: "true" if value is True else str(value) for name, value in said.items()}


def options(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    """What the user of the command line calls each field of the API."""
    own = {
        field: "-n" if option == "n" else f"--{option.replace('_', '-')}"
        for option, field in edit_options.FIELDS.items()
    }
    prompt = "--prompt-file" if arguments.prompt_file else "PROMPT"
    images = {f"images[{i}]": name for i, name in enumerate(names)}
    return {**own, **images, "images": "PHOTO", "mask": "--mask", "prompt": prompt}


def save(made: Sequence[Picture], output: Output) -> list[str]:
    return output.save([each.data for each in made], [each.seed for each in made])


def keep(
    made: Sequence[Picture], output: Output, arguments: argparse.Namespace, failure: Failure
) -> None:
    """Saves what came before the failure: where nobody noted its seed, it cannot be had again."""
    files = save(made, output)
    failure.images = listed(made, files)
    if not arguments.json:
        tell(f"Kept {len(made)} of {arguments.n} images, {seeds(made)}", arguments.quiet)
        name(files, arguments.quiet)


def report(
    made: Sequence[Picture], files: Sequence[str], seconds: float, arguments: argparse.Namespace
) -> None:
    first = made[0]
    if not arguments.json:
        told = f"{first.model} made {first.size} in {seconds:.1f} s, {seeds(made)}"
        tell(told, arguments.quiet)
        name(files, arguments.quiet)
        return
    whole = {
        "model": first.model,
        "size": first.size,
        "format": first.format,
        "seconds": round(seconds, 3),
        "usage": {name: sum(each.usage[name] for each in made) for name in SPENT},
        "images": listed(made, files),
    }
    print(json.dumps(whole, indent=2))


def seeds(made: Sequence[Picture]) -> str:
    first, last = made[0].seed, made[-1].seed
    return f"seed {last}" if len(made) == 1 else f"seeds {first} to {last}"


def listed(made: Sequence[Picture], files: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"file": file, "seed": picture.seed, "prompt": picture.prompt}
        for file, picture in zip(files, made, strict=True)
    ]


def name(files: Sequence[str], quiet: bool) -> None:
    """As bytes: a name may be no text in any encoding."""
    if files != [outputs.STDOUT] and not quiet:
        for file in files:
            sys.stdout.buffer.write(os.fsencode(file) + b"\n")


def tell(text: str, quiet: bool) -> None:
    if not quiet:
        print(plain(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Leaves by way of all that is to be put in order: the connection, the terminal."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
