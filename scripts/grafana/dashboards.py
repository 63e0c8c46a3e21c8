"""The three dashboards, and the files that hold them."""

from __future__ import annotations

import json
from pathlib import Path

from . import gateway, server, users
from .panels import Dashboard
from .render import rendered

DASHBOARDS: tuple[Dashboard, ...] = (users.DASHBOARD, gateway.DASHBOARD, server.DASHBOARD)


def write(folder: Path) -> list[Path]:
    """Write NAME.json of each into the folder, the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for dashboard in DASHBOARDS:
        path = folder / f"{dashboard.name}.json"
        path.write_text(json.dumps(rendered(dashboard), indent=2, ensure_ascii=False) + "\n")
        written.append(path)
    return written
