"""C2PA manifests of a picture, read by the package `c2pa`, if it is installed; nothing is asked of the network."""

import faulthandler
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retouch_cli.marks import BY_AI, code

if sys.platform == "linux":
    import resource

# Whether a signature holds, and whom it is of: TRUSTED and UNTRUSTED only where somebody says whom to trust.
TRUSTED, VALID, UNTRUSTED, INVALID, UNCHECKED = (
    "trusted",
    "valid",
    "untrusted",
    "invalid",
    "unchecked",
)
# What a signer's certificate may be for: e-mail protection, documents, C2PA claims.
PURPOSES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
MOST_INGREDIENTS = 100
# Bytes that reading manifests may take, beside eight for each of the picture's own; few take a tenth of that.
MEMORY = 2**30


@dataclass(frozen=True)
class Manifest:
    """Who signed it, what was done, and from what, as `as_json` has it."""

    signer: str | None
    organisation: str | None
    actions: list[dict[str, str]]
    ingredients: "list[Ingredient]"

    def as_json(self) -> dict[str, Any]:
        return {
            "signer": {"name": self.signer, "organisation": self.organisation},
            "actions": self.actions,
            "ingredients": [each.as_json() for each in self.ingredients],
        }

    @property
    def by_ai(self) -> bool:
        """Whether AI had a part in it, or in what it was made from."""
        types = (code(each.get("digital_source_type")) for each in self.actions)
        below = (each.manifest for each in self.ingredients if each.manifest)
        return any(each in BY_AI for each in types) or any(each.by_ai for each in below)


@dataclass(frozen=True)
class Ingredient:
    """What a picture was made from. `problems` were found when it was taken up."""

    title: str
    relationship: str
    problems: list[str]
    manifest: Manifest | None

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "relationship": self.relationship,
            "problems": self.problems,
            "manifest": self.manifest and self.manifest.as_json(),
        }


@dataclass(frozen=True)
class Credentials:
    """`problems`: why it is invalid, or whom it is not of."""

    state: str
    problems: list[str] = field(default_factory=list)
    manifest: Manifest | None = None

    def as_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {"state": self.state, "problems": self.problems}
        return said | ({"manifest": self.manifest.as_json()} if self.manifest else {})


def read(data: bytes, format_: str, anchors: str | None) -> Credentials:
    """What a picture with a manifest says. `anchors`: PEM certificates of whom to trust."""
    try:
        import c2pa  # noqa: F401 once, for all the processes below
    except ImportError:
        return Credentials(UNCHECKED, ["pip install 'retouch[c2pa]' can check it"])
    if sys.platform == "linux":
        return _apart(data, format_, anchors)
    return _read(data, format_, anchors)


def _apart(data: bytes, format_: str, anchors: str | None) -> Credentials:
    """`_read` in a process of its own, with so much memory.

    A few bytes may claim to be gigabytes, and the library allocates them. Where it gets none it may end the process.
    """
    most = MEMORY + 8 * len(data)
    apart = multiprocessing.get_context("fork")
    ours, theirs = apart.Pipe(duplex=False)

    def look() -> None:
        faulthandler.disable()  # how it ended is told below
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _limit(most)
        theirs.send(_read(data, format_, anchors))

    process = apart.Process(target=look)
    process.start()
    theirs.close()
    with ours:
        try:
            found: Credentials = ours.recv()
        except EOFError:
            problem = f"its manifests cannot be read within {most >> 20} MiB of memory"
            found = Credentials(INVALID, [problem])
    process.join()
    return found


def _limit(most: int) -> None:
    """Let this process have so many bytes more than it has, and leave no core should it want them."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for limit, value in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + most),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (lower, hard))


def _read(data: bytes, format_: str, anchors: str | None) -> Credentials:
    from c2pa import C2paError, Context, Reader

    try:
        with (
            Context.from_dict(_settings(anchors)) as context,
            Reader(f"image/{format_}", io.BytesIO(data), context=context) as reader,
        ):
            told, state = json.loads(reader.json()), reader.get_validation_state()
    except C2paError as error:
        return Credentials(INVALID, [str(error)])
    try:
        return _judged(told, state, anchors is not None)
    except (AttributeError, KeyError, TypeError, ValueError):
        return Credentials(INVALID, ["the manifest makes no sense"])


def _judged(told: Mapping[str, Any], state: str | None, trusting: bool) -> Credentials:
    """What the library says, by its JSON; of the picture's own making that may be of any shape."""
    statuses = told.get("validation_status") or ()
    problems = dict.fromkeys(str(each.get("explanation") or each.get("code")) for each in statuses)
    manifest = Below(told["manifests"]).manifest(told["active_manifest"])
    if state not in ("Valid", "Trusted"):
        judgement = INVALID
    elif trusting:
        judgement = TRUSTED if state == "Trusted" else UNTRUSTED
    else:
        judgement = VALID
    return Credentials(judgement, list(problems), manifest)


def _settings(anchors: str | None) -> dict[str, Any]:
    return {
        "version": 1,
        "trust": {"trust_anchors": anchors, "trust_config": "\n".join(PURPOSES)},
        "core": {"allowed_network_hosts": [], "max_decompressed_manifest_size_in_mb": 64},
        "verify": {
            "verify_after_reading": True,
            "verify_trust": anchors is not None,
            "verify_timestamp_trust": anchors is not None,
            "ocsp_fetch": False,
            "remote_manifest_fetch": False,
        },
    }


class Below:
    """Builds the tree of manifests from the library's flat list, so many at most: one may be an ingredient of many."""

    def __init__(self, manifests: Mapping[str, Any]) -> None:
        self._manifests, self._left = manifests, MOST_INGREDIENTS

    def manifest(self, label: str | None) -> Manifest | None:
        told = self._manifests.get(label or "")
        if told is None or self._left <= 0:
            return None
        self._left -= 1
        signature = told.get("signature_info") or {}
        return Manifest(
            signer=signature.get("common_name"),
            organisation=signature.get("issuer"),
            actions=list(_actions(told)),
            ingredients=[self._ingredient(each) for each in told.get("ingredients") or ()],
        )

    def _ingredient(self, told: Mapping[str, Any]) -> Ingredient:
        results = (told.get("validation_results") or {}).get("activeManifest") or {}
        return Ingredient(
            title=str(told.get("title") or "untitled"),
            relationship=str(told.get("relationship")),
            problems=[str(each.get("code")) for each in results.get("failure") or ()],
            manifest=self.manifest(told.get("active_manifest")),
        )


def _actions(manifest: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for assertion in manifest.get("assertions") or ():
        if not str(assertion.get("label")).startswith("c2pa.actions"):
            continue
        for each in assertion["data"]["actions"]:
            agent = each.get("softwareAgent") or ""
            if isinstance(agent, dict):
                agent = " ".join(str(agent[key]) for key in ("name", "version") if key in agent)
            known = {
                "action": each.get("action"),
                "tool": agent,
                "digital_source_type": each.get("digitalSourceType"),
            }
            yield {name: str(value) for name, value in known.items() if value}
