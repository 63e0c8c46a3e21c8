"""The row of the users' dashboard that says why some got no picture, and what the others asked for."""

from __future__ import annotations

from .looks import SERVED
from .panels import Panel, Query, Row
from .queries import Source

gateway = Source("retouch_gateway_", 'namespace=~"$namespace"')
servers = Source("retouch_server_", 'namespace=~"$namespace"')
models = Source("retouch_server_", 'namespace=~"$namespace",model=~"$model"')
POSTED = 'route="/v1/images/edits",method="POST"'
REASONS = {
    "400, not understood": "400",
    "401, no such key": "401",
    "404, no such model": "404",
    "408, body too slow": "408",
    "409, repeated while under way": "409",
    "413, too large": "413",
    "415, content type": "415",
    "422, Idempotency-Key reused": "422",
    "429, too much at once": "429",
}
FAILURES = {
    "500, the model or we failed": "500",
    "502, server lost on the way": "502",
    "503, no server ready": "503",
    "504, out of time": "504",
}


def by_code(codes: dict[str, str]) -> tuple[Query, ...]:
    return tuple(
        Query(gateway.rate("requests_total", f'{POSTED},code="{code}"'), words)
        for words, code in codes.items()
    )


REFUSED = Row(
    "Refusals and failures by reason",
    (
        Panel(
            "Refused, by status",
            "Edit requests per second that were refused, by what the caller was told. One caller's bug is the usual "
            "cause of a jump; the log's `key` says whose.",
            by_code(REASONS),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Asked to wait, by whom",
            "Edits per second that were refused for being too many: queue full at the servers, over a caller's rate or "
            "number at once, or too much under way at a server or a gateway. All but the second and third call for "
            "more machines.",
            (
                Query(models.rate("edits_total", 'outcome="rejected"'), "queue full"),
                Query(servers.rate("refused_calls_total", 'bound!="queue"'), "no room at a server"),
                Query(gateway.rate("limited_total", 'limit="rate"'), "over the rate"),
                Query(gateway.rate("limited_total", 'limit="concurrency"'), "too many at once"),
                Query(
                    gateway.rate("body_rejections_total", 'reason="room"'), "no room for the body"
                ),
            ),
            unit="suffix:/s",
            stacked=True,
        ),
        Panel(
            "Failures by reason",
            "Edit requests per second that we failed. 500: see the server's log. 502 and 503: see Readiness on the "
            "gateway dashboard. 504: edits are longer than TIMEOUT, or the queue is.",
            by_code(FAILURES),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Left and cancelled",
            "Callers per second that left before the answer, and pictures given up by it. Rising with the waits: "
            "patience runs out. Rising alone: a client's time-out is too short.",
            (
                Query(gateway.rate("disconnects_total"), "callers left"),
                Query(models.rate("edits_total", 'outcome="cancelled"'), "pictures cancelled"),
            ),
            unit="suffix:/s",
        ),
        Panel(
            "Pictures by model",
            "Pictures finished per second, by model: what people use. A model that falls to 0 while others go on is "
            "gone from every server, or its callers are; see refusals with 404.",
            (Query(models.rate("edits_total", 'outcome="done"', "model"), "{{model}}"),),
            unit="suffix:/s",
            stacked=True,
        ),
        Panel(
            "Image URLs",
            "Image URLs asked for, per second. Expired and unknown are 410 and 404 to callers: they come too late, or "
            "have lost the end of the URL. Failed: the store is away.",
            (Query(gateway.rate("served_images_total", by="result"), "{{result}}"),),
            unit="suffix:/s",
            stacked=True,
            colours=SERVED,
        ),
    ),
)
