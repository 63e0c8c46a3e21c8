"""`retouch edit`: photos and an instruction in, the edited photo out."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from retouch_cli import edit_options, outputs, photos
from retouch_cli.client import EDITS
from retouch_cli.errors import Failure, Refused, WrongCommandLine, plain
from retouch_cli.gateway import Gateway
from retouch_cli.models import MODELS
from retouch_cli.photos import STDIN, Photo
from retouch_cli.progress import Watcher, watching
from retouch_cli.session import NONSENSE, Session, session
from retouch_cli.stream import SPENT, Picture, events

# What every gateway takes unless its operator says otherwise; above it, it is asked before the picture is sent.
USUAL_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Edit:
    """What is sent: the photos in order, the mask, and the API's other fields by name, as a form has them."""

    photos: Sequence[Photo]
    mask: Photo | None
    fields: Mapping[str, str]
    n: int

    @property
    def files(self) -> list[tuple[str, tuple[str, Any]]]:
        """The form's files. Names are left out: what a file is called here is nobody's business."""
        files = [("image[]", ("photo", photo.file)) for photo in self.photos]
        return [*files, ("mask", ("mask", self.mask.file))] if self.mask else files

    @property
    def pictures(self) -> list[Photo]:
        return [*self.photos, self.mask] if self.mask else [*self.photos]


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
    if any(not is_text(value) for value in asked.values()):
        raise WrongCommandLine("the prompt, or another word, is not text in UTF-8")
    with exit_on_sigterm(), contextlib.ExitStack() as files:
        given = [files.enter_context(photos.opened(name)) for name in names]
        mask = files.enter_context(photos.opened(arguments.mask)) if arguments.mask else None
        edit = Edit(given, mask, asked, arguments.n)
        started = time.monotonic()
        try:
            with watching(edit.n, arguments.quiet) as watcher:
                made = asyncio.run(send(edit, gateway, options(arguments, names), watcher))
        except KeyboardInterrupt:
            tell("Cancelled", arguments.quiet)
            raise
        seconds = time.monotonic() - started
        saved = output.save([each.data for each in made], [each.seed for each in made])
    report(arguments, made, saved, seconds)
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


def is_text(word: str) -> bool:
    """False where it came as bytes that are no UTF-8, which Python keeps as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def options(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    """What the user of the command line calls each field of the API."""
    own = {
        field: "-n" if option == "n" else f"--{option.replace('_', '-')}"
        for option, field in edit_options.FIELDS.items()
    }
    prompt = "--prompt-file" if arguments.prompt_file else "PROMPT"
    images = {f"images[{i}]": name for i, name in enumerate(names)}
    return {**own, **images, "images": "PHOTO", "mask": "--mask", "prompt": prompt}


async def send(
    edit: Edit, gateway: Gateway, names: Mapping[str, str], watcher: Watcher
) -> list[Picture]:
    """All `n` images, in the order of their seeds. Raises Failure."""
    made = []
    async with session(gateway, names) as talk:
        await check_sizes(edit, talk)
        form = {"data": {**edit.fields, "stream": "true"}, "files": edit.files}
        async with (
            talk.answer("POST", EDITS, watcher.waiting, **form) as reply,
            contextlib.aclosing(events(talk, reply)) as coming,
        ):
            try:
                async for event in coming:
                    watcher.event(event)
                    if isinstance(event, Picture):
                        made.append(event)
            except httpx.HTTPError:
                if len(made) < edit.n:  # else only the end is missing
                    raise
    if len(made) != edit.n:
        raise Failure(f"{gateway.url} sent {len(made)} of {edit.n} images, and no word of why")
    return made


async def check_sizes(edit: Edit, talk: Session) -> None:
    """Raises Refused where a picture is larger than the model takes: sending it would only take long."""
    if all(picture.size <= USUAL_BYTES for picture in edit.pictures):
        return
    model = edit.fields.get("model")
    said = await talk.json(f"{MODELS}/{quote(model, safe='')}" if model else MODELS)
    try:
        most = int((said if model else said["data"][0])["limits"]["max_image_bytes"])
    except NONSENSE:
        return  # another kind of gateway: it will say so itself
    for picture in edit.pictures:
        if picture.size > most:
            fault = (
                f"{photos.shown(picture.name)} has {picture.size} bytes; at most {most} are allowed"
            )
            raise Refused(fault, option=picture.name)


def report(
    arguments: argparse.Namespace, made: Sequence[Picture], files: Sequence[str], seconds: float
) -> None:
    first = made[0]
    if arguments.json:
        images = [
            {"file": file, "seed": picture.seed, "prompt": picture.prompt}
            for file, picture in zip(files, made, strict=True)
        ]
        whole = {
            "model": first.model,
            "size": first.size,
            "format": first.format,
            "seconds": round(seconds, 3),
            "usage": {name: sum(each.usage[name] for each in made) for name in SPENT},
            "images": images,
        }
        print(json.dumps(whole, indent=2))
        return
    last = made[-1].seed
    seeds = f"seed {last}" if len(made) == 1 else f"seeds {first.seed} to {last}"
    tell(f"{first.model} made {first.size} in {seconds:.1f} s, {seeds}", arguments.quiet)
    if files != [outputs.STDOUT] and not arguments.quiet:
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
