"""Rows of the gateway dashboard about what it keeps, and reads: hosted images, keys, Redis."""

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
            "Stored and swept",
            "Images put into the store per second, and expired ones deleted. Over an hour they are alike; stored "
            "alone means that nothing sweeps: see the log.",
            (
                Query(STORED, "stored"),
                Query(gateway.rate("swept_images_total"), "swept"),
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

KEYS = Row(
    "Keys and Redis",
    (
        Panel(
            "File of keys",
            "Changes of the file of keys in the last five minutes, taken up or failed; and the gateways on which what "
            "the file holds is not in force. Normal: 0 outdated. Otherwise the log says which line is wrong.",
            (
                Query(
                    f"sum by (result) (increase({gateway.series('key_reloads_total')}[5m]))",
                    "{{result}}",
                ),
                Query(gateway.total("keys_outdated"), "outdated"),
            ),
            width=12,
            colours={"ok": "green", "failed": "red", "outdated": "orange"},
        ),
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
