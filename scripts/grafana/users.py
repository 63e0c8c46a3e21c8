"""The dashboard of the users' view: do they get answers, how soon, and if not, why."""

from __future__ import annotations

from .looks import PHASES
from .panels import Dashboard, Panel, Query, Row, Variable, guide, heatmap, percentiles, stat
from .queries import RATE, Source
from .refusals import REFUSED

gateway = Source("retouch_gateway_", 'namespace=~"$namespace"')
models = Source("retouch_server_", 'namespace=~"$namespace",model=~"$model"')
EDITS = 'route="/v1/images/edits"'
POSTED = f'{EDITS},method="POST"'
OURS = 'code=~"5.."'
VALID = f'{POSTED},code!~"4.."'
"""Requests that we owe an answer: not the callers' own mistakes, nor those that left."""


def unavailable(over: str) -> str:
    """Which share of the requests that we owe an answer failed: 0..1."""
    return gateway.share("requests_total", OURS, VALID, over)


def available(over: str) -> str:
    return f"1 - {unavailable(over)}"


def burn(over: str) -> str:
    """How many times faster than the objective allows."""
    return f"({unavailable(over)}) / (1 - $objective)"


def in_time(over: str) -> str:
    """As the alerts have it: who leaves after that time has waited too long, who is refused does not count."""
    asked = gateway.rate("request_seconds_count", EDITS, over=over)
    soon = gateway.rate("request_seconds_bucket", f'{EDITS},le="$in_time"', over=over)
    return (
        f"clamp_min(1 - ({asked} - {soon}) / {gateway.rate('requests_total', VALID, over=over)}, 0)"
    )


def promise(title: str, description: str, expr: str, limits: tuple[float, float]) -> Panel:
    return stat(title, description, expr, "percentunit", limits, decimals=2)


AVAILABLE = (
    "Share of edit requests that we did not fail (5xx); callers' mistakes, limits and those who left (4xx) "
    "do not count. "
)
PROMISE = Row(
    "Is the promise kept?",
    (
        guide(
            "Do people get their pictures, and soon? Green: yes. Otherwise **Failures by reason** and **Wait for a "
            "slot** below say why, and the gateway and server dashboards (links above) where. "
            "Each panel's **i** says what is normal and what to do; runbooks are in docs/operating.md."
        ),
        promise(
            "Available, last hour",
            f"{AVAILABLE}Below the objective: see Failures by reason.",
            available("1h"),
            (0.995, 0.99),
        ),
        promise(
            "Available, last day",
            f"{AVAILABLE}It remembers what the last hour has forgotten.",
            available("1d"),
            (0.995, 0.99),
        ),
        promise(
            "Available, 30 days",
            f"{AVAILABLE}This is what an agreement with users would name. Shorter where Prometheus keeps less.",
            available("30d"),
            (0.995, 0.99),
        ),
        promise(
            "Error budget left, 30 days",
            "Of the failures that the objective allows in 30 days, the share not yet used: 100 % = none, 0 = all, "
            "less = more than all. Little left: no risky releases; Burn rate says how fast it goes.",
            f"1 - {burn('30d')}",
            (0.5, 0.1),
        ),
        promise(
            "In time, last hour",
            "Share of the edits that we owe an answer which did not take longer than the time chosen at the top. Below "
            "what you promise: see Where the time goes.",
            in_time("1h"),
            (0.95, 0.9),
        ),
        promise(
            "In time, last day",
            "The same over a day, in which a busy hour weighs as much as its requests. Good by day and bad in the last "
            "hour: it has just begun.",
            in_time("1d"),
            (0.95, 0.9),
        ),
    ),
)

RATE_AND_ERRORS = Row(
    "Rate and errors",
    (
        Panel(
            "What callers got",
            "Edit requests per second: answered; refused for a mistake of theirs; asked to wait (429); left before the "
            "answer; failed by us. Normal: nearly all answered.",
            (
                Query(gateway.rate("requests_total", f'{POSTED},code=~"2.."'), "answered"),
                Query(
                    gateway.rate("requests_total", f'{POSTED},code=~"4..",code!~"429|499"'),
                    "mistaken",
                ),
                Query(gateway.rate("requests_total", f'{POSTED},code="429"'), "asked to wait"),
                Query(gateway.rate("requests_total", f'{POSTED},code="499"'), "left"),
                Query(gateway.rate("requests_total", f"{POSTED},{OURS}"), "failed by us"),
            ),
            unit="reqps",
            stacked=True,
            colours={
                "answered": "green",
                "mistaken": "blue",
                "asked to wait": "yellow",
                "left": "#8e8e8e",
                "failed by us": "red",
            },
        ),
        Panel(
            "Failed by us",
            "Share of the requests that we owe an answer which got a 5xx. "
            "Above the lower dashed line it costs the objective.",
            (Query(unavailable(RATE), "failed"),),
            unit="percentunit",
            limits=(0.005, 0.05),
            colours={"failed": "red"},
        ),
        Panel(
            "Burn rate",
            "How many times faster than allowed the error budget goes, over an hour and over six. 1 = it lasts exactly "
            "30 days. Above 14.4 in an hour, or 6 in six, somebody is woken.",
            (
                Query(burn("1h"), "1 h"),
                Query(burn("6h"), "6 h"),
            ),
            limits=(6, 14.4),
        ),
    ),
)

TIME = Row(
    "Time to an answer",
    (
        Panel(
            "By percentile",
            "Time of edit requests from the first byte to the answer's last. p50 is what most people feel, p99 what "
            "they complain of. Refusals are in it: many of them pull it down.",
            percentiles(gateway, "request_seconds", EDITS, (0.5, 0.9, 0.95, 0.99)),
            unit="s",
        ),
        heatmap(
            "How the times are spread",
            "Edit requests by how long they took; the stronger the colour, the more. "
            "A second band far above the first is people with "
            "larger pictures or more steps, or a queue.",
            gateway.heat("request_seconds", EDITS),
            "s",
        ),
        Panel(
            "Answered within",
            "Share of edit requests answered within so many seconds. The distance between two lines is the people who "
            "wait that long.",
            tuple(
                Query(gateway.within(le, "request_seconds", EDITS), f"{float(le):g} s")
                for le in ("1.0", "5.0", "10.0", "30.0", "60.0")
            ),
            unit="percentunit",
            top=1,
        ),
    ),
)

WAITING = Row(
    "Waiting",
    (
        Panel(
            "Wait for a slot",
            "How long finished edits waited to start, by percentile. Normal: near 0. Growing: more is asked for than "
            "the servers can do; add servers before callers are refused.",
            percentiles(models, "edit_phase_seconds", 'phase="queue"'),
            unit="s",
            limits=(5, 30),
        ),
        Panel(
            "Load by model",
            "(waiting + running) / slots. Above 100 % edits of that model wait; well above it for long, it needs "
            "more servers.",
            (Query(models.load("model"), "{{model}}"),),
            unit="percentunit",
            limits=(1, 2),
        ),
        Panel(
            "Where the time goes",
            "Mean seconds of a finished edit in each phase. Normally nearly all is denoise, the work itself; queue is "
            "what more servers would save.",
            (Query(models.mean("edit_phase_seconds", by="phase"), "{{phase}}"),),
            unit="s",
            stacked=True,
            colours=PHASES,
        ),
    ),
)

DASHBOARD = Dashboard(
    "users",
    "What callers see, over both tiers: availability, time to an answer, waits, and why some were refused.",
    (
        Variable("namespace", "Namespace", "retouch_gateway_in_flight"),
        Variable(
            "model",
            "Model (of waits, pictures and cancels)",
            'retouch_server_slots{namespace=~"$namespace"}',
        ),
        Variable(
            "objective",
            "Objective",
            options={"0.99": "99 %", "0.995": "99.5 %", "0.999": "99.9 %"},
            default="0.995",
        ),
        Variable(
            "in_time",
            "In time",
            options={
                "5.0": "5 s",
                "10.0": "10 s",
                "30.0": "30 s",
                "60.0": "60 s",
                "120.0": "120 s",
            },
            default="30.0",
        ),
    ),
    (PROMISE, RATE_AND_ERRORS, TIME, WAITING, REFUSED),
    span="6h",
)
