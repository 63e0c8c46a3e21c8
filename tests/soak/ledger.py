"""What callers sent and what they got: the other side of the tiers' own counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

OTHER = "other"


@dataclass
class Ledger:
    """Kept by all callers together; one thread writes it.

    answers:   (gateway, route, method, status) of each whole answer.
    left:      (gateway, route, method) of requests whose caller hung up once their head was out.
    calls:     (rpc, code) of calls to the server itself, as their caller saw them end.
    images:    got, in answers that were not given before.
    unknown:   asked for by callers who left, or were refused: as many may have been made.
    urls:      of images, given; `unknown_urls` to whom may have left.
    deleted:   different ones, by their owners.
    scenarios: how often each was gone through, and the `longest` that it took, in seconds.
    turns:     of choices, so that each is made about as often.
    later:     (expires_at, path) of images that are left to expire.
    surprises: what should not have been answered so, in words.
    """

    answers: Counter[tuple[str, str, str, int]] = field(default_factory=Counter)
    left: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    scenarios: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    images: int = 0
    unknown: int = 0
    urls: int = 0
    unknown_urls: int = 0
    deleted: int = 0
    replayed: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    later: list[tuple[int, str]] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)

    def statuses(self, route: str = "/v1/images/edits") -> Counter[int]:
        """Answers of one route, by status."""
        found: Counter[int] = Counter()
        for (_, at, _, status), count in self.answers.items():
            if at == route:
                found[status] += count
        return found
