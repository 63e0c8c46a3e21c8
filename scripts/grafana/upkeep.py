"""Rows of the gateway dashboard about what it keeps: hosted images, and counts in Redis."""

from __future__ import annotations

from .looks import SERVED
from .panels import Panel, Query, Row
from .queries import PROCESS, Source, ratio

gateway = Source("retouch_gateway_", PROCESS)
STORED, INLINE = gateway.rate("stored_images_total"), gateway.rate("store_failures_total")

STORAGE = Row(
    "Images by URL",
    (
        Panel(
            "Stored, swept, deleted",
            "Images put into the store per second, expired ones swept, others deleted by who made them. Over an hour "
            "what is stored goes again; stored alone means that nothing sweeps: see the log.",
            (
                Query(STORED, "stored"),
                Query(gateway.rate("swept_images_total"), "swept"),
                Query(gateway.rate("deleted_images_total"), "deleted"),
            ),
            unit="suffix:/s",
        ),
        Panel(
            "Bytes stored",
            "Bytes per second put into the store. Times the images' TTL it is the room that the store needs: "
            "give it twice that, or shorten the TTL.",
            (Query(gateway.rate("stored_bytes_total"), "stored"),),
            unit="Bps",
        ),
        Panel(
            "Store failures",
            "Share of images that could not be stored and went inline instead, with a `warning`. Normal: 0. "
            "Otherwise the disk is full, or the bucket or its credentials are gone.",
            (Query(ratio(INLINE, f"({INLINE} + {STORED})"), "failed"),),
            unit="percentunit",
            colours={"failed": "red"},
        ),
        Panel(
            "URLs asked for",
            "Image URLs per second: ok; expired, which is asked too late; unknown, which is deleted or guessed; "
            "failed, where the store did not answer. Many expired: callers want a longer TTL.",
            (Query(gateway.rate("served_images_total", by="result"), "{{result}}"),),
            unit="suffix:/s",
            width=24,
            height=7,
            stacked=True,
            colours=SERVED,
        ),
    ),
)

REDIS = Row(
    "Redis",
    (
        Panel(
            "Limits without Redis",
            "Gateways that count limits by themselves since Redis is away, and how often it was lost in the last five "
            "minutes. Normal: 0. Callers notice nothing, but each gateway allows the whole limit.",
            (
                Query(gateway.total("limits_degraded"), "gateways without"),
                Query(
                    f"sum (increase({gateway.series('limits_outages_total')}[5m]))", "times lost"
                ),
            ),
            width=12,
            colours={"gateways without": "red", "times lost": "orange"},
        ),
    ),
)
