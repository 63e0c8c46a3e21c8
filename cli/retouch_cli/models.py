"""`retouch models`: what a gateway serves, and what each model takes."""

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from retouch_cli import gateway
from retouch_cli.errors import Failure, plain
from retouch_cli.gateway import Gateway
from retouch_cli.session import NONSENSE, session

MODELS = "/v1/models"
SECONDS = 30.0
# A capability -> the option of `retouch edit` that wants it.
OPTIONS = {
    "mask": "--mask",
    "strength": "--strength",
    "guidance_scale": "--guidance-scale",
    "negative_prompt": "--negative-prompt",
    "max_mode": "--max-mode",
}
DEFAULTS = {"strength": "strength", "guidance_scale": "guidance", "num_inference_steps": "steps"}

DESCRIPTION = """\
Lists the models that a gateway serves: the first is the one that edits take where they name none. With
an ID, says all that is known of that one, and prompts to try it with.
"""

EPILOG = f"""\
{gateway.ENVIRONMENT}
exit status:
  0  done
  1  failed
  2  the command line is wrong
  3  there is no such model
  4  the gateway wants an API key, or another one
  5  the gateway stayed too busy until --timeout, or said that it would
  6  the gateway cannot be reached

examples:
  retouch models
  retouch models pocket
  retouch models --json | jq -r '.data[].id'
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "models",
        help="list what a gateway serves, and what each model takes",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("id", nargs="?", metavar="ID", help="one of them")
    parser.add_argument(
        "--json", action="store_true", help="the API's own answer; a failure is one object too"
    )
    gateway.add_to(parser, SECONDS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    there = Gateway.of(arguments, os.environ)
    path = f"{MODELS}/{quote(arguments.id, safe='')}" if arguments.id else MODELS
    said = asyncio.run(ask(there, path))
    try:
        if arguments.json:
            print(json.dumps(said, indent=2))
        elif arguments.id:
            show_one(said)
        else:
            show_all(said["data"])
    except NONSENSE as error:
        raise Failure(f"{there.url} said what makes no sense of its models") from error
    return 0


async def ask(there: Gateway, path: str) -> Any:
    async with session(there, {"model": "ID"}) as talk:
        return await talk.json(path)


def show_all(models: Sequence[Mapping[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table("model", "photos", "takes", "defaults", "pixels", box=box.SIMPLE_HEAD)
    for model in models:
        taken = ", ".join(option.removeprefix("--") for option in takes(model))
        most = model["limits"]["max_images"]
        row = (model["id"], most, taken, ", ".join(defaults(model)), size(model))
        table.add_row(*(plain(str(cell)) for cell in row))
    display(table)


def show_one(model: Mapping[str, Any]) -> None:
    from rich.table import Table

    limits = model["limits"]
    rows = {
        "model": model["id"],
        "pipeline": model["pipeline"],
        "photos": f"{limits['max_images']}, each of {limits['max_image_bytes'] / 2**20:g} MiB at most",
        "takes": ", ".join(takes(model)),
        "defaults": ", ".join(defaults(model)),
        "pixels": f"{size(model)}, sides in multiples of {limits['size_multiple']}",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, plain(str(value)) or "none")
    display(table)
    if examples := [plain(str(each)) for each in model.get("examples") or ()]:
        print("\nTo try it:\n")
        for example in examples:
            print(f"  retouch edit photo.jpg {shlex.quote(example)}")


def takes(model: Mapping[str, Any]) -> Iterator[str]:
    """The options that it takes, of those that not every model does."""
    return (option for name, option in OPTIONS.items() if model["capabilities"].get(name))


def defaults(model: Mapping[str, Any]) -> Iterator[str]:
    said = model["defaults"]
    return (f"{word} {said[name]:g}" for name, word in DEFAULTS.items() if name in said)


def size(model: Mapping[str, Any]) -> str:
    """The fewest and the most pixels, as the squares that have them."""
    least, most = (model["limits"][name] ** 0.5 for name in ("min_pixels", "max_pixels"))
    return f"{least:.0f}² to {most:.0f}²"


def display(table: Any) -> None:
    from rich.console import Console

    # A line a row for whoever reads it by a program; on a terminal as wide as that is.
    width = None if sys.stdout.isatty() else 1000
    Console(markup=False, highlight=False, emoji=False, width=width).print(table)
