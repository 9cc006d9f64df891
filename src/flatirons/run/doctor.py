"""`flatirons doctor`: what this machine and installation can do, and the line that installs what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

EXTRAS = {
    "atari": ("ale-py", "opencv-python-headless"),
    "mujoco": ("mujoco", "imageio"),
    "box2d": ("Box2D", "pygame"),
    "games": ("pgx", "pgx-minatar", "mctx"),
    "robotics": ("gymnasium-robotics",),
    "envpool": ("envpool",),
    "video": ("imageio-ffmpeg", "pygame"),
    "tensorboard": ("tensorboard",),
}
CORE = ("jax", "jaxlib", "optax", "gymnasium", "safetensors", "tyro", "rich", "numpy", "matplotlib")


def lines() -> Iterator[str]:
    """One finding per line, as it is found. Nothing is changed, except that a probe file comes and goes in the cache folder."""
    yield f"python      {platform.python_version()} at {sys.executable}"
    yield f"flatirons   {_version('flatirons') or 'not installed: pip install -e . in the repository'}"
    yield "packages    " + ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in CORE)
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        present = ", ".join(f"{name} {_version(name)}" for name in packages if name not in missing)
        yield f"extra       {extra:<12}" + (f"missing {', '.join(missing)}: pip install 'flatirons[{extra}]'" if missing else present)
    yield "ffmpeg      " + (ffmpeg() or "none, so videos are GIFs: pip install 'flatirons[video]'")
    yield f"display     {display() or 'none: flatirons play writes a video file instead'}"
    yield f"cores       {_cores()} usable of {os.cpu_count()}"
    yield f"memory      {_memory()}"
    yield f"disk        {_gigabytes(shutil.disk_usage(Path.cwd()).free)} free here"
    yield f"cache       {_cache()}"
    yield from _jax()


def display() -> str | None:
    """The display a window can open on, or None on a machine without one."""
    if sys.platform in ("darwin", "win32"):
        return "the desktop"
    return os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or None


def cache_folder() -> Path:
    """Where compiled programs are kept: FLATIRONS_CACHE, or ~/.cache/flatirons."""
    return Path(os.environ.get("FLATIRONS_CACHE") or Path.home() / ".cache" / "flatirons")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def ffmpeg() -> str | None:
    """The ffmpeg of imageio-ffmpeg, or the system's, or None."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return shutil.which("ffmpeg")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    from flatirons.core.resources import memory_available

    return f"{_gigabytes(memory_available())} available"


def _cache() -> str:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror}): every run compiles again; set FLATIRONS_CACHE to another folder"
    return f"{folder} (writable)"


def _jax() -> Iterator[str]:
    import jax
    import jax.numpy as jnp

    yield f"devices     {', '.join(f'{d.platform} {d.device_kind}' for d in jax.devices())}"
    size = 2048
    matrix = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 1.0:
        multiply(matrix, matrix).block_until_ready()
        count += 1
    rate = 2 * size**3 * count / (time.perf_counter() - start) / 1e9
    yield f"speed       {rate:.0f} GFLOP/s (matrix product, float32, one second; other work on the machine lowers it)"
