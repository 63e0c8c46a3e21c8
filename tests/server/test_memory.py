"""How much memory is free, and what is said when it is not enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retouch_server.checkpoint import LoadError
from retouch_server.memory import (
    GIB,
    available_bytes,
    cgroup_bytes,
    free_bytes,
    is_exhaustion,
    needed_bytes,
    room,
)


def test_the_sentence_says_what_is_needed_and_what_there_is() -> None:
    weights = int(21.7 * GIB)
    assert needed_bytes(weights, "cuda:1") == pytest.approx(23.785 * GIB)
    words = "^needs about 23.8 GiB on cuda, 15.2 GiB are free; lower its dtype, "
    with pytest.raises(LoadError, match=words), room(weights, "cuda", lambda _: int(15.2 * GIB)):
        pytest.fail("there is no room")
    words = "^out of memory: needs about 22.8 GiB on mps; lower its dtype, "
    with pytest.raises(LoadError, match=words), room(weights, "mps", lambda _: None):
        raise MemoryError
    with pytest.raises(ValueError, match="another"), room(weights, "cuda", lambda _: 99 * GIB):
        raise ValueError("another")


def test_what_the_kernel_says(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  99 kB\nMemAvailable:    2048 kB\nHugePages_Total: 0\n")
    assert available_bytes(meminfo) == 2 * 1024**2
    assert available_bytes(tmp_path / "none") is None


def group(folder: Path, limit: str, used: int = 0, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 1\n")


def test_every_cgroup_above_limits(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("1:cpu:/elsewhere\n0::/pods/mine\n")
    group(root / "pods/mine", "max", 70)
    group(root / "pods", "100", 60, cached=20)
    group(root / "others", "1")
    assert cgroup_bytes(membership, root) == [100 - 60 + 20 + 1]
    group(root / "pods/mine", "30", 70)
    assert cgroup_bytes(membership, root) == [0, 61]


def test_in_a_container_the_own_group_is_the_root(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("0::/\n")
    group(root, "50", 20)
    assert cgroup_bytes(membership, root) == [31]


def test_the_first_version_has_a_tree_of_its_own_for_memory(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("5:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/a\n0::/\n")
    for name, limit in (("", 9223372036854771712), ("a", 100)):
        folder = root / "memory" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text("60\n")
        stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 9\ntotal_active_file 8\n"
        (folder / "memory.stat").write_text(stat)
    own, top = cgroup_bytes(membership, root)
    assert own == 100 - 60 + 9 + 8
    assert top > 2**62


def test_without_cgroups_nothing_limits(tmp_path: Path) -> None:
    assert cgroup_bytes(tmp_path / "none", tmp_path) == []
    (tmp_path / "cgroup").write_text("0::/\n")
    assert cgroup_bytes(tmp_path / "cgroup", tmp_path / "none") == []


def test_devices() -> None:
    assert free_bytes("mps") is None
    here = free_bytes("cpu")
    assert here is None or here > 0


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("sizes differ"), False),
        (OSError("can't allocate memory"), False),
    ],
)
def test_errors_that_say_memory_ran_out(error: Exception, wanted: bool) -> None:
    assert is_exhaustion(error) is wanted
