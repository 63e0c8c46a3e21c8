"""`retouch verify`: whether pictures say that AI made or edited them, and who signed that."""

import argparse
import json
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retouch_cli import credentials, marks
from retouch_cli.credentials import Credentials, Manifest
from retouch_cli.errors import Failure, Refused, plain
from retouch_cli.marks import BY_AI, Mark
from retouch_cli.photos import MAX_PIPED_BYTES, STDIN, opened, read_text, shown

UNMARKED, BROKEN, UNCHECKED = 7, 8, 9
# What counts of several pictures: the first of these that any has.
WORST = (BROKEN, Refused.status, Failure.status, UNCHECKED, UNMARKED)

DESCRIPTION = """\
Says whether pictures bear the mark of AI (IPTC's Digital Source Type, in XMP) and, where they have
Content Credentials (C2PA manifests), who signed what was done, whether the signature holds, and what
each was made from. Nothing is sent anywhere. A mark can be removed: a picture without one may be AI's.
"""

EPILOG = """\
exit status:
  0  marked, and what is signed holds
  1  a file cannot be read
  2  the command line is wrong
  3  not a PNG, JPEG or WebP, or damaged
  7  not marked
  8  a signature does not hold, or is not of whom --trust names
  9  there is a signature, and the package that checks it is not installed

Of several pictures, the first that applies of 8, 3, 1, 9, 7 and 0.

examples:
  retouch verify photo-edited.png
  retouch verify --trust anchors.pem *.jpg
  curl -s https://example.org/a.webp | retouch verify - --json
"""


@dataclass(frozen=True)
class Picture:
    """What is known of one picture."""

    name: str
    mark: Mark
    credentials: Credentials | None

    @property
    def marked(self) -> bool:
        """Whether it says that AI had a part in it, in XMP or signed."""
        signed = self.credentials and self.credentials.manifest
        return marks.code(self.mark.source_type) in BY_AI or bool(signed and signed.by_ai)

    @property
    def status(self) -> int:
        state = self.credentials and self.credentials.state
        if state in (credentials.INVALID, credentials.UNTRUSTED):
            return BROKEN
        if state == credentials.UNCHECKED:
            return UNCHECKED
        return 0 if self.marked else UNMARKED

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "marked": self.marked,
            "exit": self.status,
            "format": self.mark.format,
            "digital_source_type": self.mark.source_type,
            "creator_tool": self.mark.tool,
            "xmp_problem": self.mark.fault,
            "c2pa": self.credentials and self.credentials.as_json(),
        }


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "verify",
        help="say whether pictures are marked as AI-edited, and who signed it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "words", nargs="+", metavar="PICTURE", help="PNG, JPEG or WebP files; - is standard input"
    )
    parser.add_argument(
        "--trust", metavar="PEM", help="file of the authorities whose signers are trusted"
    )
    parser.add_argument("--json", action="store_true", help="say it as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    anchors = read_anchors(arguments.trust) if arguments.trust is not None else None
    found: list[dict[str, Any]] = []
    statuses = set()
    for name in arguments.words:
        try:
            picture = look(name, anchors)
        except Failure as failure:
            print(f"retouch: {plain(str(failure))}", file=sys.stderr)
            found.append({"name": name, **failure.as_json()})
            statuses.add(failure.status)
            continue
        statuses.add(picture.status)
        found.append(picture.as_json())
        if not arguments.json:
            show(picture)
    if arguments.json:
        print(json.dumps({"pictures": found}, indent=2))
    return next((status for status in WORST if status in statuses), 0)


def read_anchors(name: str) -> str:
    """Raises Failure."""
    text = read_text(name)
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise Failure(f"{shown(name)} holds no PEM certificate")
    try:
        # Bundles name authorities in comments, in any language.
        ssl.create_default_context(cadata=text.encode("ascii", "replace").decode())
    except ssl.SSLError:
        raise Failure(f"a certificate in {shown(name)} cannot be read") from None
    return text


def look(name: str, anchors: str | None) -> Picture:
    """Raises Failure."""
    with opened(name) as photo:
        if photo.size > MAX_PIPED_BYTES:
            raise Refused(f"{shown(name)} has more than {MAX_PIPED_BYTES >> 20} MiB", option=name)
        try:
            data = photo.file.read()
        except OSError as error:
            raise Failure(f"cannot read {shown(name)}: {error.strerror}") from error
    try:
        mark = marks.read(data)
    except marks.Damaged:
        raise Refused(f"{shown(name)} is damaged", option=name) from None
    signed = credentials.read(data, mark.format, anchors) if mark.manifest else None
    return Picture("stdin" if name == STDIN else name, mark, signed)


def show(picture: Picture) -> None:
    print(plain(picture.name))
    for word, said in rows(picture):
        print(f"  {word:<12}{plain(said)}")


def rows(picture: Picture) -> Iterator[tuple[str, str]]:
    mark = picture.mark
    yield "format", mark.format
    if mark.source_type:
        yield "mark", marks.words(mark.source_type)
    else:
        yield "mark", f"none: its XMP cannot be read: {mark.fault}" if mark.fault else "none in XMP"
    if mark.tool:
        yield "tool", mark.tool
    if not picture.credentials:
        yield "signature", "none"
        return
    yield "signature", signature(picture.credentials)
    for problem in picture.credentials.problems:
        yield "problem", problem
    if picture.credentials.manifest:
        yield from history(picture.credentials.manifest, "")


def signature(signed: Credentials) -> str:
    words = {
        credentials.TRUSTED: "valid, of a trusted signer",
        credentials.VALID: "valid; --trust says whether of a trusted signer",
        credentials.UNTRUSTED: "of a signer who is not trusted",
        credentials.INVALID: "does not hold",
        credentials.UNCHECKED: "there is one, and it was not checked",
    }
    return words[signed.state]


def history(manifest: Manifest, indent: str) -> Iterator[tuple[str, str]]:
    """Who says what was done, and the same of each ingredient."""
    whose = [each for each in (manifest.signer, manifest.organisation) if each]
    yield f"{indent}signer", ", ".join(whose) or "unknown"
    for action in manifest.actions:
        parts = [action["action"].removeprefix("c2pa.")] if "action" in action else []
        if kind := action.get("digital_source_type"):
            parts.append(marks.words(kind))
        if tool := action.get("tool"):
            parts.append(f"with {tool}")
        yield f"{indent}action", ", ".join(parts)
    for each in manifest.ingredients:
        problems = f"; {', '.join(each.problems)}" if each.problems else ""
        own = "signed" if each.manifest else "without a signature"
        yield f"{indent}from", f"{each.title} ({each.relationship}), {own}{problems}"
        if each.manifest:
            yield from history(each.manifest, f"{indent}  ")
