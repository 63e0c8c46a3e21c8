"""`retouch verify` of pictures whose manifests are made to harm who looks, or are none."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retouch_cli import credentials
from retouch_cli.commands import main
from tests.cli.test_verify import EDITED, MANIFEST, packet, picture
from tests.signing import Studio, signed
from tests.stores import app11, png_of, store_of, superbox

# What `retouch` does, and then the most memory in KiB that a process of it had.
MEASURED = """\
import resource, sys
from retouch_cli.commands import main
status = main(sys.argv[1:])
print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
sys.exit(status)
"""


@pytest.fixture
def signed_png(tmp_path: Path) -> bytes:
    note = {"label": "org.example.note", "data": {"a": "MARK" * 1000}}
    told = MANIFEST | {"assertions": [*MANIFEST["assertions"], note]}
    return signed(picture("png", packet()), Studio(tmp_path).issue(), told)


@pytest.mark.parametrize(
    "head",
    [
        b"\x7a\xc0\0\0\0",
        b"\x5a\xc0\0\0\0",
        b"\x7b\x7f" + b"\xff" * 7,
        b"\x9b\x3f" + b"\xff" * 7,
    ],
    ids=["3 GiB of text", "3 GiB", "2^63 of text", "2^62 things"],
)
def test_what_claims_to_be_gigabytes_takes_none(
    head: bytes, signed_png: bytes, tmp_path: Path
) -> None:
    store = bytearray(store_of(signed_png))
    at = store.index(b"MARK") - 3
    store[at : at + len(head)] = head
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(bytes(store)))
    looked = subprocess.run(
        [sys.executable, "-c", MEASURED, "verify", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert looked.returncode == 8
    assert "does not hold" in looked.stdout
    assert int(looked.stdout.split()[-1]) < 1536 * 1024


def test_where_memory_does_not_do_that_is_said_and_the_next_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library ends a process that gets no memory."""
    pair, first, second = Studio(tmp_path).issue(), tmp_path / "first.png", tmp_path / "second.png"
    first.write_bytes(signed(picture(), pair, MANIFEST, thumbnail=bytes(2**24)))
    second.write_bytes(picture("png", packet()))
    monkeypatch.setattr(credentials, "MEMORY", -8 * first.stat().st_size)
    assert main(["verify", str(first), str(second)]) == 8
    out, err = capfd.readouterr()
    assert "  problem     its manifests cannot be read within 0 MiB of memory" in out
    assert "second.png" in out
    assert err == ""
    monkeypatch.undo()
    assert main(["verify", str(first)]) == 0


def test_this_process_has_no_less_than_before(signed_png: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(signed_png)
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert main(["verify", str(path)]) == 0
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(("type_", "status"), [(b"xml ", 0), (b"c2pa", 8)])
def test_other_boxes_of_a_jpeg_are_no_manifest(
    type_: bytes, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = picture("jpeg", packet())
    at = data.index(b"\xff\xdb")
    path = tmp_path / "a.jpeg"
    path.write_bytes(data[:at] + app11(7, 1, superbox(type_, b"c2pa")) + data[at:])
    assert main(["verify", str(path)]) == status
    assert ("  signature   none\n" in capsys.readouterr().out) == (status == 0)


@pytest.mark.parametrize(
    ("state", "trusting", "judged"),
    [
        ("Valid", False, credentials.VALID),
        ("Trusted", False, credentials.VALID),
        ("Trusted", True, credentials.TRUSTED),
        ("Valid", True, credentials.UNTRUSTED),
        *[
            (state, trusting, credentials.INVALID)
            for state in ("Invalid", None, "New")
            for trusting in (False, True)
        ],
    ],
)
def test_only_what_the_library_calls_valid_is(
    state: str | None, trusting: bool, judged: str
) -> None:
    action = {"action": "c2pa.created", "digitalSourceType": EDITED}
    manifest = {"assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}]}
    told: dict[str, Any] = {"manifests": {"a": manifest}, "active_manifest": "a"}
    assert credentials._judged(told, state, trusting).state == judged
