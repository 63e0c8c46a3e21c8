"""Log lines of the server, and of the libraries that would write their own."""

from __future__ import annotations

import json
import subprocess
import sys

WRITES = """
import logging, sys
from retouch_server import logs
logs.configure("INFO", sys.argv[1])
import diffusers, torch, transformers
logs.adopt()
logging.getLogger("retouch_server.access").info("call", extra={"code": "OK", "queue_ms": 0})
for name in ("diffusers.x", "transformers.x", "torch.export", "torch._dynamo", "grpc._cython"):
    logging.getLogger(name).error("theirs")
"""


def written(style: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRITES, style],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == ""
    return run.stderr.splitlines()


def test_everybodys_records_are_json_once_each() -> None:
    own, *theirs = [json.loads(line) for line in written("json")]
    del own["time"]
    assert own == {
        "level": "INFO",
        "logger": "retouch_server.access",
        "message": "call",
        "code": "OK",
        "queue_ms": 0,
    }
    assert [(line["logger"], line["message"]) for line in theirs] == [
        (name, "theirs")
        for name in (
            "diffusers.x",
            "transformers.x",
            "torch.export",
            "torch._dynamo",
            "grpc._cython",
        )
    ]


def test_or_text() -> None:
    own, *theirs = written("text")
    assert own.endswith(' INFO retouch_server.access: call code="OK" queue_ms=0')
    assert len(theirs) == 5
    assert theirs[0].endswith(" ERROR diffusers.x: theirs")
