"""`retouch key new`: an API key for whoever may use a gateway."""

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import os
import re
import secrets
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from retouch_cli.errors import Failure

# What the gateway takes in its file; a test holds the two together.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RATE = r"[1-9][0-9]{0,5}/(second|minute|hour|day)"
RATES = re.compile(rf"{_RATE}(; ?{_RATE})*")
MAX_CONCURRENCY = 1000
_AHEAD = re.compile(r"([1-9][0-9]{0,4})([dh])")

DESCRIPTION = """\
Makes an API key: 256 random bits. The key itself is printed once, alone on stdout, and kept nowhere;
what the gateway needs of it is an entry with its hash, in the TOML file that RETOUCH_GATEWAY_KEYS
names. With --file the entry is added there, else it is shown on stderr. A running gateway takes up
the changed file within a second or two.
"""

EPILOG = """\
exit status:
  0  the key is made, and its entry in the file
  1  the file could not be changed, or has that id already; one line on stderr says what
  2  the command line was wrong

The key's owner puts it into RETOUCH_API_KEY, or into a file for --key-file, and `retouch edit` sends it.

examples:
  retouch key new ada --file keys.toml
  retouch key new batch --rate-limit '10/minute;1000/day' --concurrency 2 --file keys.toml
  retouch key new guest --expires 90d --file keys.toml
  KEY=$(retouch key new ci --file keys.toml)

To revoke a key, delete its entry. To replace one, make a second under another id first.
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    key = commands.add_parser("key", help="make API keys", description="API keys for a gateway.")
    parser = key.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser(
        "new",
        help="make one",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("id", metavar="ID", type=_id, help="whose it is: a name for logs")
    parser.add_argument(
        "--rate-limit",
        type=_rates,
        metavar="RATE",
        help="edits it may start, as 60/minute, several by ; (the gateway's own)",
    )
    parser.add_argument(
        "--concurrency",
        type=_concurrency,
        metavar="N",
        help="edits it may have under way at once (the gateway's own)",
    )
    parser.add_argument(
        "--expires",
        type=_expiry,
        metavar="WHEN",
        help="when it ends, as 90d, 12h, 2027-03-01 (0:00 UTC) or a time with its offset (never)",
    )
    parser.add_argument(
        "--file",
        type=Path,
        help="add the entry here; made for its owner's eyes alone where there is none",
    )
    parser.set_defaults(run=new)


def _id(text: str) -> str:
    if not ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            "must be letters, digits, . _ -, the first not a sign; 64 at most"
        )
    return text


def _rates(text: str) -> str:
    if not RATES.fullmatch(text):
        raise argparse.ArgumentTypeError("must be such as 60/minute, or 10/second;1000/day")
    return text


def _concurrency(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CONCURRENCY:
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_CONCURRENCY}")
    return int(text)


def _expiry(text: str) -> str:
    """As TOML has it, in UTC."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        if ahead := _AHEAD.fullmatch(text):
            when = now + datetime.timedelta(hours=int(ahead[1]) * (24 if ahead[2] == "d" else 1))
        else:
            when = datetime.datetime.fromisoformat(f"{text}T00:00Z" if len(text) == 10 else text)
        if when > now:  # TypeError where it has no offset
            return f"{when.astimezone(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, TypeError, ValueError):
        pass
    raise argparse.ArgumentTypeError(
        "must be ahead, and such as 90d, 12h, 2027-03-01 or 2027-03-01T12:00:00+01:00"
    )


def new(arguments: argparse.Namespace) -> int:
    secret = f"rt_{secrets.token_urlsafe(32)}"
    entry = as_toml(arguments, secret)
    if arguments.file:
        add(entry, arguments.id, arguments.file)
        tell(f"Added {arguments.id} to {arguments.file}. The key, shown this once:")
    else:
        tell(f"For the file that RETOUCH_GATEWAY_KEYS names:\n\n{entry}\nThe key, shown this once:")
    print(secret, flush=True)
    return 0


def as_toml(arguments: argparse.Namespace, secret: str) -> str:
    """The entry. All values are of alphabets that TOML strings take as they are."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    lines = ["[[keys]]", f'id = "{arguments.id}"', f'hash = "sha256:{digest}"']
    if arguments.rate_limit:
        lines.append(f'rate_limit = "{arguments.rate_limit}"')
    if arguments.concurrency:
        lines.append(f"concurrency = {arguments.concurrency}")
    if arguments.expires:
        lines.append(f"expires = {arguments.expires}")
    return "\n".join(lines) + "\n"


def add(entry: str, id_: str, file: Path) -> None:
    """Put the entry at the file's end. Raises Failure, and then the file is as it was."""
    file = Path(os.path.realpath(file))  # a link stays one
    if file.exists() and not file.is_file():
        raise Failure(f"cannot write {file}: it is no file")
    try:
        with locked(file.parent):
            before = file.read_bytes().decode() if file.exists() else ""
            after = f"{before.rstrip()}\n\n{entry}" if before.strip() else entry
            check(before, after, id_, file)
            replace(file, after)
    except UnicodeDecodeError:
        raise Failure(f"{file} is not text") from None
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror}") from error


def check(before: str, after: str, id_: str, file: Path) -> None:
    try:
        entries = tomllib.loads(before).get("keys", [])
        tomllib.loads(after)
        taken = any(entry.get("id") == id_ for entry in entries)
    except (tomllib.TOMLDecodeError, AttributeError, TypeError):
        raise Failure(f"{file} is not a file of keys") from None
    if taken:
        raise Failure(f"{file} has a key {id_} already")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One at a time: two who add at once must not lose one another's entry."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(file: Path, text: str) -> None:
    """The new text, whole or not at all; mode and owner as they were, or 0600 and mine."""
    descriptor, part = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with open(descriptor, "wb") as writing:
            if file.exists():
                was = file.stat()
                os.fchown(descriptor, was.st_uid, was.st_gid)
                os.fchmod(descriptor, was.st_mode & 0o777)
            writing.write(text.encode())
            writing.flush()
            os.fsync(descriptor)
        os.replace(part, file)
    except BaseException:
        os.unlink(part)
        raise


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
