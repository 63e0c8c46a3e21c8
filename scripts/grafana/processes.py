"""The row about processes, which both tiers' dashboards end with."""

from __future__ import annotations

from .panels import Panel, Query, Row
from .queries import Source

READY = {
    "server": "When each server was loaded and not draining. Normal: green, red for the time of a load or a stop. "
    "Red otherwise: its log says why.",
    "gateway": "When each server, or group behind one name, could be reached and was healthy, as each gateway saw it. "
    "Red at all gateways: that server is down. Red at one: that gateway cannot reach it.",
}


EXPIRES = {
    "server": "How long the files of certificates are still good. Without TLS there are none.",
    "gateway": "How long the files of certificates, and the next API key to expire, are good. No data: none expires.",
}
TAKEN_UP = {"server": "Certificates taken up", "gateway": "Keys and certificates taken up"}
FILES = {
    "server": "files of certificates",
    "gateway": "the files of API keys, signing keys and certificates",
}
DAY = 86400


def processes(tier: Source, ready: str, name: str, *more: Query) -> Row:
    """Readiness by the gauge `ready`, and what a process takes of its machine; `more` says what else expires."""
    own = Source("", f'job="retouch-{name}",{tier.selector}')
    target = {"server": "{{instance}}", "gateway": "{{target}} from {{instance}}"}[name]
    return Row(
        "Processes",
        (
            Panel(
                "Readiness",
                READY[name],
                (Query(tier.series(ready), target),),
                "state-timeline",
                width=12,
                height=6,
            ),
            Panel(
                "Age",
                f"How long each {name} has run. A tooth without a roll-out is a crash: its exit status and last "
                "lines in the log say why.",
                (Query(f"time() - {own.series('process_start_time_seconds')}", "{{instance}}"),),
                unit="s",
                width=6,
                height=6,
            ),
            Panel(
                "Expires in",
                f"{EXPIRES[name]} Orange from three weeks, red from three days. Renew: it is taken up by itself.",
                (
                    Query(
                        f"min by (file) ({tier.series('certificate_expiry_timestamp_seconds')}) - time()",
                        "{{file}}",
                    ),
                    *more,
                ),
                "stat",
                "s",
                width=6,
                height=6,
                limits=(21 * DAY, 3 * DAY),
            ),
            Panel(
                "CPU",
                f"Cores that each {name} keeps busy. Compare with its CPU limit: at the limit everything "
                "waits, probes too, so raise it.",
                (
                    Query(
                        own.rate("process_cpu_seconds_total", by="instance"),
                        "{{instance}}",
                    ),
                ),
                unit="suffix:cores",
            ),
            Panel(
                "Memory",
                f"Memory of the machine (not of an accelerator) that each {name} holds. Flat after the first busy "
                "hour. A steady climb over days is a leak: please report it.",
                (Query(own.series("process_resident_memory_bytes"), "{{instance}}"),),
                unit="bytes",
            ),
            Panel(
                "Open files",
                "Files and connections open, as a share of what the process may open. Near 1 new callers are not "
                "let in: raise the limit, or see who holds connections open.",
                (
                    Query(
                        f"{own.series('process_open_fds')} / {own.series('process_max_fds')}",
                        "{{instance}}",
                    ),
                ),
                unit="percentunit",
                limits=(0.7, 0.9),
            ),
            Panel(
                "Tasks",
                f"Tasks of each {name}'s event loop: some for each request under way, and a few that always are. Idle, "
                "it returns to the same few; one that climbs while requests do not is a leak: please report it.",
                (Query(tier.series("tasks"), "{{instance}}"),),
                width=24,
                height=5,
            ),
            Panel(
                TAKEN_UP[name],
                f"Changes of {FILES[name]} in the last five minutes, taken up or failed; and on how many processes "
                "what a file holds is not in force. Normal: 0 outdated. Otherwise the log says what is wrong with it.",
                (
                    Query(
                        f"sum by (file, result) (increase({tier.series('file_reloads_total')}[5m]))",
                        "{{file}} {{result}}",
                    ),
                    Query(tier.total("file_outdated", by="file"), "{{file}} outdated"),
                ),
                width=24,
                height=6,
            ),
        ),
    )
