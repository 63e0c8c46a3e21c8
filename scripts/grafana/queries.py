"""PromQL over one tier's metrics, as a dashboard selects them."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "$__rate_interval"
PROCESS = 'namespace=~"$namespace",instance=~"$instance"'
"""Matches the processes chosen at the top of a dashboard."""


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def ratio(part: str, whole: str) -> str:
    """NaN where `whole` is 0."""
    return f"{part} / {whole}"


@dataclass(frozen=True)
class Source:
    """Metrics whose names begin with `prefix`, narrowed by the matchers in `selector`.

    In each method `name` is a metric without the prefix, `match` holds more matchers, as
    `outcome="done"`, and `by` the labels to keep, by commas; the rest is summed over.
    """

    prefix: str
    selector: str

    def series(self, name: str, match: str = "") -> str:
        matchers = ",".join(filter(None, (self.selector, match)))
        return f"{self.prefix}{name}{{{matchers}}}"

    def total(self, name: str, match: str = "", by: str = "") -> str:
        """A gauge, summed."""
        return f"sum{_by(by)} ({self.series(name, match)})"

    def rate(self, name: str, match: str = "", by: str = "", over: str = RATE) -> str:
        """How fast a counter grows, per second, in the mean of the window `over`."""
        return f"sum{_by(by)} (rate({self.series(name, match)}[{over}]))"

    def share(self, name: str, part: str, whole: str = "", over: str = RATE) -> str:
        """Which share of a counter's growth matches `part`: 0..1, NaN while nothing grows."""
        return ratio(
            self.rate(name, _and(whole, part), over=over), self.rate(name, whole, over=over)
        )

    def mean(self, name: str, match: str = "", by: str = "") -> str:
        """The mean of a histogram's observations."""
        return ratio(self.rate(f"{name}_sum", match, by), self.rate(f"{name}_count", match, by))

    def quantile(self, q: float, name: str, match: str = "", by: str = "") -> str:
        """An estimate from a histogram's buckets, linear within the bucket."""
        buckets = self.rate(f"{name}_bucket", match, f"{by}, le" if by else "le")
        return f"histogram_quantile({q:g}, {buckets})"

    def heat(self, name: str, match: str = "") -> str:
        """Observations per bucket, for a heatmap."""
        return f"sum by (le) (increase({self.series(f'{name}_bucket', match)}[{RATE}]))"

    def within(self, le: str, name: str, match: str = "", over: str = RATE) -> str:
        """Which share of a histogram's observations was at most `le`, a bucket's bound as Prometheus spells it."""
        return ratio(
            self.rate(f"{name}_bucket", _and(match, f'le="{le}"'), over=over),
            self.rate(f"{name}_count", match, over=over),
        )

    def load(self, by: str = "") -> str:
        """(waiting + running) / slots of servers."""
        waiting, running, slots = (
            self.total(name, by=by) for name in ("queued", "running", "slots")
        )
        return f"({waiting} + {running}) / {slots}"


def _and(*matchers: str) -> str:
    return ",".join(filter(None, matchers))
