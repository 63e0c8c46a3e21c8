"""Which client does what, and the table of it in docs/api.md."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent / "clients"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
NPM = json.loads((HERE / "package.json").read_text())["dependencies"]
COMPATIBLE = "@ai-sdk/openai-compatible"
AI = ("node", "ai.mjs", "node_modules")
START, END = "<!-- conformance -->\n", "<!-- /conformance -->\n"


@dataclass(frozen=True)
class Client:
    """What people send edits with: what runs its program here, the program, what that imports or starts."""

    title: str
    runtime: str
    program: str
    packages: str = ""
    tool: str = ""

    @property
    def installed(self) -> bool:
        started = (self.runtime, self.tool or self.runtime)
        return all(map(shutil.which, started)) and (HERE / self.packages).exists()


def _pinned(package: str, file: Path) -> str:
    found = re.search(rf"^{package}==(.+)$", file.read_text(), re.M)
    assert found
    return found[1]


OLD = str(HERE / ".venv/bin/python")
CLIENTS = {
    "python": Client(
        f"openai-python {_pinned('openai', CONSTRAINTS)}", sys.executable, "official.py"
    ),
    "python-1": Client(
        f"openai-python {_pinned('openai', HERE / 'openai-1.txt')}", OLD, "official.py"
    ),
    "node": Client(f"openai (npm) {NPM['openai']}", "node", "official.mjs", "node_modules"),
    "ai": Client(f"ai {NPM['ai']}, @ai-sdk/openai {NPM['@ai-sdk/openai']}", *AI),
    "ai-compatible": Client(f"ai {NPM['ai']}, {COMPATIBLE} {NPM[COMPATIBLE]}", *AI),
    "curl": Client("curl", sys.executable, "curl.py", tool="curl"),
}
SCENARIOS = {
    "one": "one image, no `response_format`: both",
    "two": "two images",
    "mask": "a mask",
    "several": "`n` = 2",
    "url": "`response_format` `url`",
    "inline": "`response_format` `b64_json`",
    "fields": "fields that OpenAI has not, in a form",
    "dialect": "the JSON body",
    "extra_body": "the JSON body by `images.edit`",
    "stream": "`stream`, `partial_images` = 2",
    "broken": "an error in the middle of a stream",
    "hang_up": "left in the middle of a stream: the edit stops",
    "cancel": "cancelled: the edit stops",
    "refused": "a bad value: its own exception, with `param`",
    "unknown": "a field that nobody knows: likewise",
    "key_unknown": "an API key, known or not",
    "busy": "429: comes back after `Retry-After`",
    "unready": "503: comes back",
    "lost": "502, the edit lost: does not come back",
    "models": "the list of models, and one of them",
}
_AI = "The AI SDK has no such thing."
_OPENAI_ONLY = "`@ai-sdk/openai` sends OpenAI's own fields only."
CANNOT = {
    ("node", "extra_body"): "Any field goes straight into `client.post`.",
    **{
        (client, scenario): _AI
        for client in ("ai", "ai-compatible")
        for scenario in ("dialect", "extra_body", "stream", "broken", "hang_up", "models")
    },
    **{
        (client, "lost"): "The AI SDK does not read `x-should-retry`: it sends the edit again."
        for client in ("ai", "ai-compatible")
    },
    **{("ai", scenario): _OPENAI_ONLY for scenario in ("url", "inline", "fields", "unknown")},
    ("curl", "extra_body"): "The JSON body is what it sends anyway.",
    ("curl", "lost"): "curl comes back only when told to, and then it does.",
}
REMARKS = {
    ("node", scenario): "Of an image given as a file or buffer; it sends a stream once."
    for scenario in ("busy", "unready")
}
CELLS = [
    (client, scenario)
    for client in CLIENTS
    for scenario in SCENARIOS
    if (client, scenario) not in CANNOT
]


def of(client: str) -> list[str]:
    """The scenarios that a client can do."""
    return [scenario for name, scenario in CELLS if name == client]


def table() -> str:
    """The matrix in Markdown: every tick is a test that has passed."""
    notes: list[str] = []

    def cell(at: tuple[str, str]) -> str:
        note, shown = CANNOT.get(at) or REMARKS.get(at), "n/a" if at in CANNOT else "✓"
        if not note:
            return shown
        if note not in notes:
            notes.append(note)
        return f"{shown} ({notes.index(note) + 1})"

    titles = [client.title for client in CLIENTS.values()]
    rows = [["", *titles], ["---"] * (len(titles) + 1)]
    for scenario, told in SCENARIOS.items():
        rows.append([told, *(cell((client, scenario)) for client in CLIENTS)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1)), ""])
