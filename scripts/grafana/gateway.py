"""The dashboard of the gateways: requests, the way to the servers, refusals, hosted images."""

from __future__ import annotations

from .panels import Dashboard, Panel, Query, Row, Variable, guide, heatmap, percentiles, stat
from .processes import processes
from .queries import PROCESS, Source, ratio
from .upkeep import REDIS, STORAGE

gateway = Source("retouch_gateway_", PROCESS)
EDITS = 'route="/v1/images/edits"'
POSTED = f'{EDITS},method="POST"'
OTHERS = 'route!="/v1/images/edits"'
CALLS = 'rpc=~"Edit|StreamEdit"'
NEXT_KEY = f"(min ({gateway.series('key_next_expiry_timestamp_seconds')}) < Inf) - time()"
BODIES = gateway.rate("body_rejections_total", 'reason!="disconnect"')
SPENT, CALLED, ASKED = (
    gateway.rate("request_seconds_sum", EDITS),
    gateway.rate("upstream_seconds_sum", CALLS),
    gateway.rate("request_seconds_count", EDITS),
)


GLANCE = Row(
    "At a glance",
    (
        guide(
            "Callers on one side, servers on the other. Many 5xx: look at **To the servers**. Many 4xx: "
            "look at **Refusals**. Slow, with fast servers: **In the servers, and around them**. "
            "Each panel's **i** says what is normal and what to do."
        ),
        stat(
            "Servers out of reach",
            "Targets that are not ready, counted at each gateway. Normal: 0. All of them: callers get 503. "
            "See Readiness below, then the server dashboard.",
            f"count({gateway.series('upstream_ready')} == 0) or vector(0)",
            limits=(1, 2),
        ),
        stat(
            "Requests",
            "HTTP requests per second, of every kind, probes included. Far above the usual: see Requests by route for "
            "what, and Limits for whether somebody is out of hand. 0: nothing comes here; look at what is in front.",
            gateway.rate("requests_total"),
            "reqps",
        ),
        stat(
            "Edits that failed",
            "Share of edit requests answered with 5xx. Normal: 0. Otherwise Edits by status tells which: 500 the "
            "model, 502 a server lost on the way, 503 none ready, 504 out of time.",
            gateway.share("requests_total", 'code=~"5.."', POSTED),
            "percentunit",
            limits=(0.005, 0.05),
        ),
        stat(
            "Edits, p95",
            "Of twenty edit requests, nineteen were answered within so long, from first byte to last. "
            "Rising: In the servers, and around them says on which side.",
            gateway.quantile(0.95, "request_seconds", EDITS),
            "s",
        ),
        stat(
            "Under way",
            "HTTP requests at this moment. It follows the servers' slots and queues; far beyond them, callers are "
            "sending bodies slowly or reading answers slowly.",
            gateway.total("in_flight"),
        ),
        stat(
            "Refused at the door",
            "Edits per second that were refused before a server was asked, for their body or their caller's "
            "limit. Normal: few. See Refused bodies and Limits.",
            f"{BODIES} + {gateway.rate('limited_total')}",
            "suffix:/s",
        ),
    ),
)

TRAFFIC = Row(
    "Rate and errors",
    (
        Panel(
            "Requests by route",
            "HTTP requests per second, probes and the playground's page too. `other` is what no route knows: much of "
            "it is a scanner, or a wrong base URL.",
            (Query(f"{gateway.rate('requests_total', by='route')} > 0", "{{route}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Edits by status",
            "Edit requests per second, those statuses that occur. 4xx is the caller's mistake or limit, 429 too much "
            "at once, 499 the caller left, 5xx ours.",
            (Query(f"{gateway.rate('requests_total', POSTED, 'code')} > 0", "{{code}}"),),
            unit="reqps",
            stacked=True,
            colours={
                "200": "green",
                "429": "yellow",
                "499": "#8e8e8e",
                "500": "red",
                "503": "dark-red",
            },
        ),
        Panel(
            "Errors, as shares of edits",
            "5xx is what we owe; 4xx what callers got wrong or were not allowed. A jump of 4xx after a release of a "
            "client is that client; of 5xx after one of ours, roll back.",
            (
                Query(gateway.share("requests_total", 'code=~"5.."', POSTED), "5xx"),
                Query(
                    gateway.share("requests_total", 'code=~"4..",code!~"429|499"', POSTED), "4xx"
                ),
                Query(gateway.share("requests_total", 'code="429"', POSTED), "429"),
                Query(gateway.share("requests_total", 'code="499"', POSTED), "499, left"),
            ),
            unit="percentunit",
            colours={"5xx": "red", "4xx": "blue", "429": "yellow", "499, left": "#8e8e8e"},
        ),
        Panel(
            "Under way, by gateway",
            "HTTP requests under way at each gateway. Normal: about alike. One far above the others: the load "
            "balancer sticks to it, or its servers are slow.",
            (Query(gateway.total("in_flight", by="instance"), "{{instance}}"),),
        ),
        Panel(
            "Callers that left",
            "Requests per second whose caller was gone before the answer; their edits are cancelled. Much of it: "
            "callers' own time-outs are shorter than edits take.",
            (Query(gateway.rate("disconnects_total"), "left"),),
            unit="suffix:/s",
        ),
        Panel(
            "Bodies held",
            "Bytes of edit requests under way, by gateway. At MAX_IN_FLIGHT_BYTES more are refused with 429 "
            "(`room`). The memory they take is about three times that.",
            (Query(gateway.total("body_bytes", by="instance"), "{{instance}}"),),
            unit="bytes",
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Edits",
            "Time of edit requests, by percentile, refused ones too; the caller's own upload and download "
            "are in it. Much above the servers' own: slow callers, or a slow store.",
            percentiles(gateway, "request_seconds", EDITS),
            unit="s",
        ),
        heatmap(
            "How the times are spread",
            "Edit requests by how long they took; the stronger the colour, the more. "
            "The band at the bottom is refusals, above are edits. "
            "A band that climbs is a queue that grows.",
            gateway.heat("request_seconds", EDITS),
            "s",
        ),
        Panel(
            "Other routes, p95",
            "The lists of models, images by URL, probes. Normal: milliseconds; images as long as a slow reader "
            "takes. Seconds at every route: this gateway is out of CPU.",
            (
                Query(
                    f"{gateway.quantile(0.95, 'request_seconds', OTHERS, 'route')} >= 0",
                    "{{route}}",
                ),
            ),
            unit="s",
        ),
        Panel(
            "In the servers, and around them",
            "Mean time of an edit request in its calls to servers, and outside them: the body's arrival, fetching, "
            "storing, sending. Much of the second: slow callers, a slow store, or too little CPU here.",
            (
                Query(ratio(CALLED, ASKED), "in the servers"),
                Query(ratio(f"({SPENT} - {CALLED})", ASKED), "around them"),
            ),
            unit="s",
            width=24,
            height=7,
            stacked=True,
            colours={"in the servers": "green", "around them": "orange"},
        ),
    ),
)

UPSTREAM = Row(
    "To the servers",
    (
        Panel(
            "Calls by gRPC status",
            "gRPC calls to servers per second, those statuses that occur. UNAVAILABLE: no server, or one lost; "
            "RESOURCE_EXHAUSTED: full queues; INTERNAL: a model that fails.",
            (
                Query(
                    f"{gateway.rate('upstream_requests_total', by='rpc, code')} > 0",
                    "{{rpc}} {{code}}",
                ),
            ),
            unit="reqps",
        ),
        Panel(
            "Calls, by percentile",
            "Time of Edit and StreamEdit calls, retries included. It should be the server dashboard's own figure and "
            "a little more; much more is the network, or retries.",
            percentiles(gateway, "upstream_seconds", CALLS),
            unit="s",
        ),
        Panel(
            "Lists of models, p95",
            "How long servers take to say what they serve, which each gateway asks every half minute. Normal: "
            "milliseconds. Seconds: the server's event loop is held up.",
            (Query(gateway.quantile(0.95, "upstream_seconds", 'rpc="ListModels"'), "ListModels"),),
            unit="s",
        ),
    ),
)

REFUSALS = Row(
    "Refusals",
    (
        Panel(
            "Refused bodies, by reason",
            "Edits per second whose body was refused: content (a field or picture is wrong), time (too slow), size, "
            "content_type, room (too many bytes under way), disconnect (the caller left while sending).",
            (Query(gateway.rate("body_rejections_total", by="reason"), "{{reason}}"),),
            unit="suffix:/s",
            stacked=True,
        ),
        Panel(
            "Limits",
            "Edits per second refused because their key or address was over its rate, or had too many under way. "
            "One caller's loop shows here; the log's `key` says whose.",
            (Query(gateway.rate("limited_total", by="limit"), "{{limit}}"),),
            unit="suffix:/s",
            stacked=True,
        ),
        Panel(
            "Refused keys",
            "Edits per second with a key that is unknown (401), and requests with one that has expired. Normal: 0. "
            "Otherwise somebody's program still has an old key, or somebody guesses.",
            (
                Query(gateway.rate("requests_total", f'{POSTED},code="401"'), "401"),
                Query(gateway.rate("expired_keys_total"), "expired"),
            ),
            unit="suffix:/s",
        ),
    ),
)

DASHBOARD = Dashboard(
    "gateway",
    "The tier that speaks REST: its callers, its way to the servers, its limits and its store. Start at the top row.",
    (
        Variable("namespace", "Namespace", "retouch_gateway_in_flight"),
        Variable("instance", "Gateway", 'retouch_gateway_in_flight{namespace=~"$namespace"}'),
    ),
    (
        GLANCE,
        TRAFFIC,
        LATENCY,
        UPSTREAM,
        REFUSALS,
        STORAGE,
        REDIS,
        processes(gateway, "upstream_ready", "gateway", Query(NEXT_KEY, "next key")),
    ),
)
