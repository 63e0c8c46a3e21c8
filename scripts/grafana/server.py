"""The dashboard of the servers."""

from __future__ import annotations

from .engine import CACHES, MODELS, SLOTS
from .looks import OUTCOMES, PHASES
from .panels import Dashboard, Panel, Query, Row, Variable, guide, heatmap, percentiles, stat
from .processes import processes
from .queries import PROCESS, Source, ratio

server = Source("retouch_server_", PROCESS)
models = Source("retouch_server_", f'{PROCESS},model=~"$model"')
EDITS = 'method=~"Edit|StreamEdit"'
QUEUE = 'phase="queue"'
NOT_REJECTED = 'outcome!="rejected"'


GLANCE = Row(
    "At a glance",
    (
        guide(
            "**Load** above 100 % is a queue: add servers. **Failed** above 0: the log has each by its request id. "
            "Slow without a queue: **Time per forward** and **Batch size**. "
            "Each panel's **i** says what is normal and what to do."
        ),
        stat(
            "Servers not ready",
            "Servers that Prometheus knows and that are loading, draining or not answering it. Normal: 0, and for some "
            "minutes 1 during a roll-out. Otherwise look at Readiness below, and at that server's log.",
            f'count(up{{job="retouch-server",{PROCESS}}}) - ({server.total("ready")} or vector(0))',
            limits=(1, 2),
        ),
        stat(
            "Finished",
            "Pictures finished per second. Compare with yesterday at this time: a sudden drop while edits wait is "
            "a server in trouble; while none wait, callers have stopped asking.",
            models.rate("edits_total", 'outcome="done"'),
            "suffix:/s",
        ),
        stat(
            "Failed",
            "Share of the pictures asked for that failed by the model's or the server's fault. Normal: 0. "
            "Otherwise the log has each failure with its request id; a model that fails every edit is best stopped.",
            models.share("edits_total", 'outcome="failed"'),
            "percentunit",
            limits=(0.005, 0.05),
        ),
        stat(
            "Load",
            "(waiting + running) / slots, over the chosen models. Below 100 % each edit starts at once; above it there "
            "is a queue. Above for long: add servers, which is also what the autoscaler looks at.",
            models.load(),
            "percentunit",
            limits=(1, 2),
        ),
        stat(
            "Wait for a slot, p95",
            "Of twenty finished edits, nineteen waited at most so long to start. Normal: near 0, with short peaks. "
            "If it stays up, see Slots and queue, and add servers.",
            models.quantile(0.95, "edit_phase_seconds", QUEUE),
            "s",
            limits=(5, 30),
        ),
        stat(
            "Rejected",
            "Share of the pictures asked for that a full queue refused; callers get 429 and Retry-After. "
            "Normal: 0. Otherwise more is asked for than these servers can do: add servers.",
            models.share("edits_total", 'outcome="rejected"'),
            "percentunit",
            limits=(0.001, 0.05),
        ),
    ),
)

TRAFFIC = Row(
    "Rate and errors",
    (
        Panel(
            "Pictures by how they ended",
            "Pictures per second: done; failed; expired, which is out of the caller's time; blocked by a safety check; "
            "rejected by a full queue; cancelled, which is given up by the caller. Normal: nearly all green.",
            (Query(models.rate("edits_total", by="outcome"), "{{outcome}}"),),
            unit="suffix:/s",
            stacked=True,
            colours=OUTCOMES,
        ),
        Panel(
            "Cancelled, expired, failed, blocked, rejected",
            "The same as shares of all. Many cancelled: callers lose patience, see the waits. Many expired: edits "
            "take longer than the gateway's TIMEOUT. Failed: see the log. Blocked: see Safety checks. Rejected: add "
            "servers.",
            (
                Query(
                    ratio(
                        models.rate("edits_total", 'outcome!="done"', "outcome"),
                        f"ignoring (outcome) group_left () {models.rate('edits_total')}",
                    ),
                    "{{outcome}}",
                ),
            ),
            unit="percentunit",
            colours=OUTCOMES,
        ),
        Panel(
            "Calls by gRPC status",
            "gRPC calls answered per second, those statuses that occur. INVALID_ARGUMENT and NOT_FOUND are the "
            "callers' mistakes; INTERNAL is ours; UNAVAILABLE belongs to starting and stopping.",
            (Query(f"{server.rate('requests_total', EDITS, 'code')} > 0", "{{code}}"),),
            unit="reqps",
            colours={"OK": "green", "INTERNAL": "red", "CANCELLED": "#8e8e8e"},
        ),
        Panel(
            "Device errors",
            "Times in five minutes that memory ran out in an edit, or the accelerator failed. Normal: 0. Out of memory:"
            " lower `slots`, `max_rows` or `cache_bytes`. Accelerator: the server restarts by itself; when it comes "
            "again and again, take that machine out.",
            (
                Query(
                    f"sum by (model, kind) (increase({models.series('device_errors_total')}[5m]))",
                    "{{model}} {{kind}}",
                ),
            ),
            width=12,
            height=6,
        ),
        Panel(
            "Accepted and not ended",
            "Pictures that were accepted and have not ended in any way, as the counters say. Idle: 0, for whatever is "
            "accepted ends once. More than queued and running for minutes: please report it.",
            (
                Query(
                    f"{models.total('edits_accepted_total')} - "
                    f"{models.total('edits_total', NOT_REJECTED)}",
                    "under way",
                ),
            ),
            width=24,
            height=5,
        ),
        Panel(
            "Calls at the door",
            "Calls for edits under way, those that are being read and answered among them. More than slots, queue and "
            "16 together: the rest is refused before it is read.",
            (Query(server.total("calls"), "calls"),),
            height=6,
        ),
        Panel(
            "Their requests",
            "Bytes of their requests, with the pictures in them. At `MAX_IN_FLIGHT_BYTES` calls are refused: callers "
            "get 429. Often there with slots free: raise it, and the memory limit with it.",
            (Query(server.total("message_bytes"), "bytes"),),
            unit="bytes",
            height=6,
        ),
        Panel(
            "Engine without a move",
            "For how long an engine has had work and done nothing. Normal: some seconds at most. A minute is a kernel "
            "that does not return; at `STALL_TIMEOUT` the server exits, to be started again.",
            (Query(f"max by (model) ({models.series('stalled_seconds')})", "{{model}}"),),
            unit="s",
            height=6,
            limits=(60, 300),
        ),
        Panel(
            "Signatures",
            "Results signed per second (C2PA), where there is a certificate for it. Normal: none failed. A result that "
            "cannot be signed is not delivered; the log says why.",
            (Query(server.rate("signatures_total", by="result"), "{{result}}"),),
            unit="suffix:/s",
            width=12,
            height=6,
            colours={"ok": "green", "failed": "red"},
        ),
        Panel(
            "Safety checks",
            "Requests per second that a model's safety checks blocked, before the queue or after the edit; or that "
            "failed because a check gave no answer. Normal: no failed ones, else the log names the check. Many "
            "blocked: one caller, as a rule; the gateway's log says whose key.",
            (
                Query(
                    models.rate("moderation_total", 'outcome!="passed"', "stage, outcome"),
                    "{{outcome}} {{stage}}",
                ),
            ),
            width=12,
            height=6,
            unit="reqps",
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        Panel(
            "From call to answer",
            "Time of Edit and StreamEdit calls, refused ones too, by percentile. What is normal depends on the "
            "model: know your own. Rising with the queue: load. Rising without: see Time per forward.",
            percentiles(server, "request_seconds", EDITS),
            unit="s",
        ),
        heatmap(
            "How the times are spread",
            "Calls by how long they took; the stronger the colour, the more. "
            "Two bands are two kinds of edits, small and large, or "
            "answered and refused. A band that climbs is a queue that grows.",
            server.heat("request_seconds", EDITS),
            "s",
        ),
        Panel(
            "Wait for a slot",
            "How long finished edits waited to start, by percentile. Normal: near 0. It is the first thing to grow "
            "when more is asked for than the servers can do.",
            percentiles(models, "edit_phase_seconds", QUEUE),
            unit="s",
            limits=(5, 30),
        ),
        Panel(
            "Where an edit's time goes",
            "Mean seconds of a finished edit in each phase. Normally nearly all is denoise. Much queue: add "
            "servers. Much encode or decode: pictures are large, or the device is shared with others.",
            (Query(models.mean("edit_phase_seconds", by="phase"), "{{phase}}"),),
            unit="s",
            width=12,
            stacked=True,
            colours=PHASES,
        ),
        Panel(
            "Slow edits, by phase",
            "The 95th percentile of each phase by itself. A phase that is far above its mean here has outliers: "
            "other sizes, more steps, or waits.",
            (Query(models.quantile(0.95, "edit_phase_seconds", by="phase"), "{{phase}}"),),
            unit="s",
            width=12,
            colours=PHASES,
        ),
    ),
)

DASHBOARD = Dashboard(
    "server",
    "The tier that has the models: its queue, its batches, where the time goes.",
    (
        Variable("namespace", "Namespace", "retouch_server_ready"),
        Variable("instance", "Server", 'retouch_server_ready{namespace=~"$namespace"}'),
        Variable("model", "Model", 'retouch_server_slots{namespace=~"$namespace"}'),
    ),
    (GLANCE, TRAFFIC, LATENCY, SLOTS, CACHES, MODELS, processes(server, "ready", "server")),
)
