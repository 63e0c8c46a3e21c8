"""Where results go: names, formats, and files that are there whole or not at all."""

import argparse
import contextlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retouch_cli.errors import Failure, WrongCommandLine
from retouch_cli.photos import STDIN

STDOUT = "-"
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
SEED, INDEX = "{seed}", "{index}"


@dataclass(frozen=True)
class Output:
    """Where the `n` images of an edit go, in one format (png, jpeg or webp); `name` `-` is standard output."""

    name: str
    n: int
    format: str
    force: bool

    @property
    def piped(self) -> bool:
        return self.name == STDOUT

    def check(self, seed: int | None) -> None:
        """Raises what `save` would, as far as it can be known before the edit, which takes time."""
        if self.piped:
            if self.n > 1:
                raise WrongCommandLine(f"-o -: standard output holds one image, not {self.n}")
            if sys.stdout.isatty():
                raise WrongCommandLine("-o -: standard output is the terminal; send it elsewhere")
            return
        folder = Path(self.name).parent
        if not folder.is_dir():
            raise Failure(f"cannot write {self.name}: there is no folder {folder}")
        # Of names with a seed that is not drawn yet, all that can be known is the folder.
        seeds = None if seed is None else [(seed + i) % 2**64 for i in range(self.n)]
        for path in self.paths(seeds):
            self._check(path)

    def paths(self, seeds: Sequence[int] | None) -> list[Path]:
        """A file for each image; none while a name wants a seed and there are no `seeds`."""
        name = self.name
        if SEED in name and seeds is None:
            return []
        if self.n > 1 and SEED not in name and INDEX not in name:
            path = Path(name)
            name = str(path.with_name(f"{path.stem}-{INDEX}{path.suffix}"))
        drawn = seeds or [0] * self.n
        return [
            Path(name.replace(SEED, str(seed)).replace(INDEX, str(i)))
            for i, seed in enumerate(drawn, 1)
        ]

    def save(self, images: Sequence[bytes], seeds: Sequence[int]) -> list[str]:
        """Writes them, and says where: each file is whole or not there. Raises Failure."""
        if self.piped:
            sys.stdout.buffer.write(images[0])
            return [STDOUT]
        paths = self.paths(seeds)
        for path, data, seed in zip(paths, images, seeds, strict=True):
            try:
                self._check(path)
                write(path, data, self.force)
            except OSError as error:
                raise Failure(f"cannot write {path}: {error.strerror} (seed {seed})") from error
            except Failure as failure:
                raise Failure(f"{failure} (seed {seed})") from None
        return [str(path) for path in paths]

    def _check(self, path: Path) -> None:
        try:
            kind = stat.S_IFMT(path.stat().st_mode)
        except FileNotFoundError:
            kind = 0
        except OSError as error:  # such as a name that is too long, or links in a circle
            raise Failure(f"cannot write {path}: {error.strerror}") from error
        if kind == stat.S_IFDIR:
            raise Failure(f"cannot write {path}: it is a folder")
        if kind in (0, stat.S_IFREG) and not os.access(path.resolve().parent, os.W_OK):
            raise Failure(f"cannot write {path}: its folder cannot be written to")
        if kind == stat.S_IFREG and not self.force:
            raise Failure(f"{path} is there already: --force replaces it, -o names another")


def chosen(arguments: argparse.Namespace, photo: str) -> Output:
    """The output that the options ask for; `photo` is the name of what is edited. Raises WrongCommandLine."""
    name, format_ = arguments.output, arguments.format
    if name == "":
        raise WrongCommandLine("-o: must be a name, a folder, or - for standard output")
    if name == "/dev/stdout" or (name is None and photo == STDIN):
        name = STDOUT
    if name is None or name.endswith("/") or os.path.isdir(name):
        stem = "stdin" if photo == STDIN else Path(photo).stem
        name = os.path.join(name or "", f"{stem}-edited{ENDINGS[format_ or 'png']}")
    ending = "" if name == STDOUT else Path(name).suffix.lower()
    by_name = FORMATS.get(ending)
    if format_ and by_name and by_name != format_:
        raise WrongCommandLine(f"-o {name} and --format {format_} contradict one another")
    if not format_ and not by_name and ending:
        raise WrongCommandLine(f"-o {name}: no format ends in {ending}; --format says which it is")
    format_ = format_ or by_name or "png"
    if arguments.quality is not None and format_ == "png":
        raise WrongCommandLine("--quality is for jpeg and webp; png is lossless")
    return Output(name, arguments.n, format_, arguments.force)


def is_special(path: Path) -> bool:
    """Whether it is there and no file: /dev/null or a pipe, which is written to and never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write(path: Path, data: bytes, force: bool) -> None:
    """The file, whole or as it was before. Raises OSError, also where it is there and `force` is false."""
    if is_special(path):
        path.write_bytes(data)
        return
    path = path.resolve()  # a link stays one
    with beside(path) as part:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not force:
            path.open("xb").close()
        elif path.exists():
            shutil.copymode(path, part)  # a picture that only its owner may see stays one
        os.replace(part, path)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name in the same folder for what is not whole yet; whatever is there at the end is removed."""
    part = path.with_name(f".retouch-{secrets.token_hex(8)}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
