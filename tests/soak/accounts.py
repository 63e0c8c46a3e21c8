"""Whether the metrics of both tiers add up: among themselves, with what callers got, and with what is in the store."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.soak.caller import IMAGES
from tests.soak.ledger import Ledger
from tests.soak.tiers import TIMEOUT_SECONDS, TTL_SECONDS, Stack

# The calls that end on their caller's side alone, whatever the server makes of them; the last on their way to it, as
# its connection was renewed (no caller of the gateways sees that: then they are told of a surprise).
ONE_SIDED = ("CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE")
OUTCOMES = ("done", "failed", "cancelled", "expired", "blocked")
# Seconds that the sweep may be late: a quarter of a life, and what a busy machine makes of it.
SWEEP_SECONDS = TTL_SECONDS / 4 + 15
# The gauges that are 0 while nothing is under way.
GONE = {
    *(
        f"retouch_gateway_{name}"
        for name in ("in_flight", "body_bytes", "limits_degraded", "file_outdated")
    ),
    *(
        f"retouch_server_{name}"
        for name in ("calls", "message_bytes", "queued", "running", "file_outdated")
    ),
}
_IMAGE = re.compile(r"[0-9a-f]{32}-([0-9]{10,13})\.(?:png|jpg|webp)")

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Books:
    """All counters of both tiers at one moment."""

    server: Series
    gateways: Mapping[str, Series]
    files: frozenset[str]

    @classmethod
    def of(cls, stack: Stack) -> Books:
        """As they all are at once: read until nothing has changed meanwhile, since sweeps go on in the quiet."""
        before = cls._read(stack)
        while (after := cls._read(stack)) != before:
            before = after
        return after

    @classmethod
    def _read(cls, stack: Stack) -> Books:
        pages = {tier.name: _read(tier.metrics()) for tier in stack.tiers}
        files = (path.name for path in stack.store.iterdir()) if stack.store.exists() else ()
        return cls(pages.pop(stack.server.name), pages, frozenset(files))


def _read(page: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("retouch_")
    }


@dataclass(frozen=True)
class Accounts:
    """What has been counted since `opening`."""

    opening: Books
    now: Books
    ledger: Ledger

    def server(self, name: str, **labels: str) -> int:
        return _since(self.opening.server, self.now.server, f"retouch_server_{name}", labels)

    def gateways(self, name: str, **labels: str) -> int:
        return sum(self.gateway(each, name, **labels) for each in self.now.gateways)

    def gateway(self, tier: str, name: str, **labels: str) -> int:
        before, after = self.opening.gateways[tier], self.now.gateways[tier]
        return _since(before, after, f"retouch_gateway_{name}", labels)

    def requests(self, tier: str) -> Counter[tuple[str, str, str, int]]:
        """As the ledger has them."""
        found: Counter[tuple[str, str, str, int]] = Counter()
        for name, labels in self.now.gateways[tier]:
            if name == "retouch_gateway_requests_total":
                by = dict(labels)
                count = self.gateway(tier, "requests_total", **by)
                found[tier, by["route"], by["method"], int(by["code"])] += count
        return +found


def _since(before: Series, after: Series, name: str, labels: Mapping[str, str]) -> int:
    wanted = labels.items()
    found = [key for key in after if key[0] == name and wanted <= dict(key[1]).items()]
    return int(sum(after[key] - before.get(key, 0) for key in found))


def mistakes(accounts: Accounts, stack: Stack) -> list[str]:
    """What does not add up, in words; to be asked while nothing is under way."""
    checks = (_edits, _images, _requests, _calls, _hosted, _shelf, _nothing_held)
    return [line for check in checks for line in check(accounts, stack)]


def _edits(accounts: Accounts, _: Stack) -> Iterator[str]:
    """Every edit that was taken on ended once."""
    taken = accounts.server("edits_accepted_total")
    ended = {each: accounts.server("edits_total", outcome=each) for each in OUTCOMES}
    if taken != sum(ended.values()):
        yield f"{taken} edits were accepted, and ended: {ended}"
    if ended["failed"]:  # no caller of the soak's makes one fail
        yield f"{ended['failed']} edits failed"


def _images(accounts: Accounts, _: Stack) -> Iterator[str]:
    """Nothing that was done was lost on the way to callers who stayed."""
    done, ledger = accounts.server("edits_total", outcome="done"), accounts.ledger
    if not ledger.images <= done <= ledger.images + ledger.unknown:
        yield f"{done} images done; callers got {ledger.images}, and {ledger.unknown} were left"


def _requests(accounts: Accounts, stack: Stack) -> Iterator[str]:
    """Each gateway counts what its callers got, by route, method and status."""
    ledger = accounts.ledger
    for tier in (each.name for each in stack.gateways):
        counted = accounts.requests(tier)
        told = +Counter({key: n for key, n in ledger.answers.items() if key[0] == tier})
        left = {key[1:]: n for key, n in ledger.left.items() if key[0] == tier}
        over = Counter(counted)
        over.subtract(told)
        for where in {key[1:3] for key in over}:
            differences = {key[3]: n for key, n in over.items() if key[1:3] == where and n}
            gone = left.get(where, 0)
            # Who left was counted as gone, or as answered, where the answer was out before it was noticed; not as
            # failed.
            wrong = any(n < 0 or code >= 500 for code, n in differences.items())
            if wrong or sum(differences.values()) != gone:
                yield f"{tier} {where}: counted less told {differences}, and {gone} left"


def _calls(accounts: Accounts, _: Stack) -> Iterator[str]:
    """The server counts what the gateways and its own callers saw, but for calls that one side ended alone."""
    for rpc in ("Edit", "StreamEdit", "ListModels"):
        codes = {
            dict(labels)["code"] for name, labels in accounts.now.server if "code" in dict(labels)
        }
        more, loose = 0, 0
        for code in codes:
            here = accounts.server("requests_total", method=rpc, code=code)
            there = accounts.ledger.calls[rpc, code]
            there += accounts.gateways("upstream_requests_total", rpc=rpc, code=code)
            if code in ONE_SIDED:
                loose += there - here
            elif here < there:
                yield f"{rpc} {code}: {here} at the server, {there} at its callers"
            else:
                more += here - there
        if loose < more:
            yield f"{rpc}: {more} calls ended otherwise than callers saw, who left {loose} alone"


def _hosted(accounts: Accounts, stack: Stack) -> Iterator[str]:
    """What was stored is there, or was swept, or deleted; it is what callers got URLs of."""
    ledger = accounts.ledger
    stored = accounts.gateways("stored_images_total")
    swept = accounts.gateways("swept_images_total")
    deleted = accounts.gateways("deleted_images_total")
    there = sum(1 for name in accounts.now.files if _IMAGE.fullmatch(name))
    if stored != swept + deleted + there:
        yield f"{stored} images stored, but {swept} swept, {deleted} deleted, {there} there"
    if deleted != ledger.deleted:
        yield f"{deleted} images deleted, {ledger.deleted} by callers"
    if not ledger.urls <= stored <= ledger.urls + ledger.unknown_urls:
        yield f"{stored} images stored; callers got {ledger.urls} URLs, {ledger.unknown_urls} left"
    if failed := accounts.gateways("store_failures_total"):
        yield f"the store failed {failed} times"
    asked = sum(
        accounts.gateways("requests_total", route=IMAGES, method=method)
        for method in ("GET", "HEAD")
    )
    if asked != (served := accounts.gateways("served_images_total")):
        yield f"{asked} requests for images, {served} images served or refused"


def _shelf(_: Accounts, stack: Stack) -> Iterator[str]:
    """Nothing lies in the store past its time, and nothing that is not known."""
    now, strange = time.time(), []
    for path in stack.store.iterdir():
        try:
            if found := _IMAGE.fullmatch(path.name):
                late = now - int(found[1])
            elif path.suffix == ".reply":
                late = now - path.stat().st_mtime - max(TTL_SECONDS, TIMEOUT_SECONDS) - 5
            else:
                late = 0.0 if path.name == ".signing-key" else float("inf")
        except FileNotFoundError:
            continue
        if late > SWEEP_SECONDS:
            strange.append(f"{path.name[-12:]} by {late:.0f} s")
    if strange:
        yield f"{len(strange)} files in the store are past their time: {strange[:5]}"


def _nothing_held(accounts: Accounts, stack: Stack) -> Iterator[str]:
    """No slot of a limit is held, no limit is degraded, no file but as it is in force."""
    with redis.Redis(port=stack.redis) as asked:
        if held := list(asked.scan_iter("*/slots")):
            yield f"slots are held in Redis: {held}"
    tiers = {stack.server.name: accounts.now.server, **accounts.now.gateways}
    for tier, series in tiers.items():
        for (name, labels), value in series.items():
            if name in GONE and value:
                yield f"{tier}: {name} {dict(labels)} is {value:g}"
