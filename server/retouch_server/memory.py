"""How much memory a device has free, and whether a model fits into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .checkpoint import LoadError

GIB = 1024**3

# Beside the weights and 5 % for their fragments: latents, conditions, activations.
RESERVE = {"cuda": GIB, "cpu": GIB // 4}
MARGIN = 1.05
# How a CPU's allocator says that there is none left, CUDA's libraries, and CUDA (or HIP) itself.
EXHAUSTION = ("can't allocate memory", "STATUS_ALLOC_FAILED", "error: out of memory")

FreeBytes = Callable[[str], int | None]
"""Bytes that are free on a device (a torch device name); None where nobody can say."""


def needed_bytes(weights: int, device: str) -> int:
    """What a model with this many bytes of weights needs on a device to be loaded and to run."""
    return int(weights * MARGIN) + RESERVE.get(_kind(device), 0)


@contextmanager
def room(weights: int, device: str, free: FreeBytes) -> Iterator[None]:
    """Load a model with this many bytes of weights onto `device` inside.

    Raises LoadError if less is free than it needs, and for memory that runs out nevertheless.
    """
    found = free(device)
    needed = needed_bytes(weights, device)
    there = "" if found is None else f", {found / GIB:.1f} GiB are free"
    shortage = (
        f"needs about {needed / GIB:.1f} GiB on {device}{there}; "
        "lower its dtype, serve fewer models or take a larger device"
    )
    if found is not None and found < needed:
        raise LoadError(shortage)
    try:
        yield
    except Exception as error:
        if is_exhaustion(error):
            raise LoadError(f"out of memory: {shortage}") from error
        raise


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory has run out; torch has a class for its own allocator on a device alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in EXHAUSTION)
    )


def free_bytes(device: str) -> int | None:
    """Free now on `device`: CUDA by its driver, a CPU by the kernel and by the limits of its cgroups."""
    if _kind(device) == "cuda":
        torch.cuda.empty_cache()  # what torch holds unused is free to the next model
        return torch.cuda.mem_get_info(device)[0]
    if _kind(device) == "cpu":
        found = [available_bytes(), *cgroup_bytes()]
        return min((n for n in found if n is not None), default=None)
    return None


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """MemAvailable; None where the system has no such file."""
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def cgroup_bytes(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """What each limit on this process, its own cgroup's and those above, still allows.

    Cached files count as used there until somebody needs the room, so they are free here: a checkpoint that was just
    downloaded would otherwise leave no room for itself.
    """
    if not membership.is_file():
        return []
    found = []
    for line in membership.read_text().splitlines():
        _, controller, own = line.split(":", 2)
        if controller in ("", "memory"):  # v2 has one tree; v1 a tree for each controller
            top = root / controller
            here = top / own.lstrip("/")
            groups = [group for group in (here, *here.parents) if group.is_relative_to(top)]
            found += [_allowed(group, v1=bool(controller)) for group in groups]
    return [free for free in found if free is not None]


def _allowed(group: Path, v1: bool) -> int | None:
    names = ("limit_in_bytes", "usage_in_bytes") if v1 else ("max", "current")
    try:
        limit, used = [(group / f"memory.{name}").read_text().strip() for name in names]
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    inclusive = "total_" if v1 else ""  # of the groups below too, as v2 always counts
    cached = sum(int(stat.get(f"{inclusive}{kind}_file", 0)) for kind in ("inactive", "active"))
    return max(0, int(limit) - int(used) + cached)


def _kind(device: str) -> str:
    return torch.device(device).type
