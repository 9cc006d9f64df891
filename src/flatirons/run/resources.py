"""Memory and disk asked for before a run starts, so that it does not die of them in the night."""

from __future__ import annotations

import shutil
from pathlib import Path

from flatirons.core.resources import human_bytes, memory_available, require_memory
from flatirons.types import FlatironsError

__all__ = ["disk_free", "human_bytes", "memory_available", "require_disk", "require_memory"]


def disk_free(path: Path | str) -> int:
    """Bytes this user can still write where `path` is or, while it does not exist, where it would be."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def require_disk(needed: int, path: Path | str, what: str) -> None:
    """Refuse `what` (a noun: "3 checkpoints with their replay") when `needed` bytes are more than is free at `path`.

    Raises `FlatironsError` with both numbers.
    """
    free = disk_free(path)
    if needed > free:
        raise FlatironsError(
            f"Not enough disk for {what}: it needs {human_bytes(needed)} ({needed:,} bytes) and {human_bytes(free)} ({free:,} bytes) "
            f"are free at {path}; free some space or choose another folder."
        )
