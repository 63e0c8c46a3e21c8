"""What whoever starts processes on this machine needs: a port for one, a figure of its metrics."""

from __future__ import annotations

import socket

from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def total(page: str, sample: str, **labels: str) -> float:
    """The sum of all samples of that name on a metrics page that bear the labels."""
    return sum(
        each.value
        for family in text_string_to_metric_families(page)
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    )
