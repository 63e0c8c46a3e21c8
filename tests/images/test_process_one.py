"""Each tier as process 1, which in a container it is: the kernel drops a signal to it that nobody handles, so that
without a handler in place a stop that comes while it still imports would be waited for until SIGKILL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
# A library whose mapping tells that the imports are under way, and far from done.
EARLY = {"server": "libtorch_cpu", "gateway": "uvloop"}
ANY_PORT = {
    f"RETOUCH_{tier}_{port}": "0"
    for tier in ("SERVER", "GATEWAY")
    for port in ("PORT", "METRICS_PORT")
}


def alone() -> list[str]:
    """A command that runs another as process 1 of its own; skips where that is not allowed."""
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"]).returncode:
        pytest.skip("process namespaces need Linux and root")
    return command


@pytest.mark.timeout(240)
@pytest.mark.parametrize("tier", EARLY)
def test_a_stop_while_it_imports_is_heard(tier: str, tmp_path: Path) -> None:
    environment = {**os.environ, **ANY_PORT, "HOME": str(tmp_path)}
    outer = subprocess.Popen([*alone(), BIN / f"retouch-{tier}"], env=environment)
    try:
        deadline = time.monotonic() + 120
        inner = 0
        while not inner or EARLY[tier] not in Path(f"/proc/{inner}/maps").read_text():
            assert outer.poll() is None
            assert time.monotonic() < deadline
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            inner = int(children[0]) if children else 0
            time.sleep(0.005)
        os.kill(inner, signal.SIGTERM)
        assert outer.wait(60) == 0
    finally:
        outer.kill()
        outer.wait()
