"""How much memory this process may still take, and the one sentence said when something needs more."""

from __future__ import annotations

import os
from pathlib import Path

from flatirons.types import FlatironsError


def human_bytes(count: int) -> str:
    """`count` bytes in the largest binary unit that leaves at least 1, such as "1.4 GiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def memory_available(root: Path = Path("/")) -> int:
    """Bytes this process can still allocate before the machine or its control group (version 1 or 2) refuses.

    Page cache counts as available. `root` is where `proc` and `sys` are mounted.
    """
    return max(0, min([_machine_available(root), *_groups_available(root)]))


def require_memory(needed: int, what: str) -> None:
    """Refuse `what` (a noun: "a replay buffer of 1,000,000 transitions") when `needed` bytes are more than is available.

    Raises `FlatironsError` with both numbers.
    """
    available = memory_available()
    if needed > available:
        raise FlatironsError(
            f"Not enough memory for {what}: it needs {human_bytes(needed)} ({needed:,} bytes) and {human_bytes(available)} "
            f"({available:,} bytes) are available; make it smaller or free some memory."
        )


def _machine_available(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups_available(root: Path) -> list[int]:
    """What each control group this process is in, and each group around it, has left."""
    available = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup/memory"]
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A container often sees its own group mounted as the top, so the path that /proc names may not exist there: the top is asked too.
        inner = Path(path.strip("/"))
        for mount in mounts:
            available += [left for group in [inner, *inner.parents] if (left := _left(mount / group, *names)) is not None]
    return available


def _left(group: Path, limit_name: str, used_name: str, cache_name: str) -> int | None:
    limit, used = _text(group / limit_name).strip(), _text(group / used_name).strip()
    if not limit.isdigit() or not used.isdigit():  # "max", or no such group
        return None
    cache = [line.split()[1] for line in _text(group / "memory.stat").splitlines() if line.startswith(cache_name + " ")]
    return int(limit) - int(used) + (int(cache[0]) if cache else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
