"""Log lines of the server, and of the libraries that would write their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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


# Decoding, and a word of Pillow's own at each level.
DECODES = """
import io, logging, sys
from pathlib import Path
from retouch_server import images, logs
logs.configure(sys.argv[1], "text")
images.decode(Path(sys.argv[2]).read_bytes(), "image", images.InputLimits())
for level in ("debug", "info", "warning", "error"):
    getattr(logging.getLogger("PIL.Image"), level)(level)
    getattr(logging.getLogger("ours"), level)(level)
"""

# What a pipeline says of a prompt, what torch says of sizes, and of a device.
FAILS = """
import logging, sys
from retouch_server import logs
logs.configure("INFO", sys.argv[1])
import torch
sys.path.insert(0, sys.argv[3])
from ours import prompt
log = logging.getLogger("ours")
def sizes(words):
    torch.nn.Linear(3, 4)(torch.zeros(2, 5))
def device(words):
    raise torch.OutOfMemoryError("no room on the device")
for fail in (prompt, sizes, device):
    try:
        fail(sys.argv[2])
    except Exception:
        log.exception(fail.__name__)
"""


def written(script: str, *arguments: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == ""
    return run.stderr.splitlines()


def test_everybodys_records_are_json_once_each() -> None:
    own, *theirs = [json.loads(line) for line in written(WRITES, "json")]
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
    own, *theirs = written(WRITES, "text")
    assert own.endswith(' INFO retouch_server.access: call code="OK" queue_ms=0')
    assert len(theirs) == 5
    assert theirs[0].endswith(" ERROR diffusers.x: theirs")


@pytest.mark.parametrize(
    ("level", "theirs"),
    [("DEBUG", ["info", "warning", "error"]), ("WARNING", ["warning", "error"])],
)
def test_what_a_pictures_exif_says_is_not_logged(
    tmp_path: Path, level: str, theirs: list[str]
) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = "my secret place", "my secret name"
    picture = tmp_path / "picture.jpg"
    Image.new("RGB", (16, 16)).save(picture, exif=exif)
    lines = written(DECODES, level, str(picture))
    assert "secret" not in "".join(lines)
    assert [line.split()[-1] for line in lines if " PIL." in line] == theirs
    ours = [line.split()[-1] for line in lines if " ours: " in line]
    assert ours == (["debug", *theirs] if level == "DEBUG" else theirs)


@pytest.mark.parametrize("style", ["json", "text"])
def test_of_an_error_only_torchs_own_words_are_told(tmp_path: Path, style: str) -> None:
    # An environment may be in a folder of that name; what is in it is not torch for that.
    folder = tmp_path / "torch/lib"
    folder.mkdir(parents=True)
    (folder / "ours.py").write_text("def prompt(words):\n    raise RuntimeError(words)\n")
    lines = written(FAILS, style, "my-words", str(folder))
    told = [json.loads(line)["exc_info"] for line in lines] if style == "json" else lines
    text = "\n".join(told)
    assert "my-words" not in "\n".join(lines)
    assert "\nRuntimeError\n" in text
    assert "\nRuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 3x4)" in text
    assert text.endswith("\nOutOfMemoryError: no room on the device")
