"""What every result file says about where and how it was measured. Standard library only: the peers' environments read it too."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS = ROOT / ".venv" / "bin" / "python"
PEER_TORCH = ROOT / ".venv-peers-torch" / "bin" / "python"
PEER_JAX = ROOT / ".venv-peers-jax" / "bin" / "python"


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, system, and the load average of the last minute (a busy machine shows here)."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those named distributions that are installed here."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit checked out, with `+changes` where tracked files differ from it; `unknown` outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "src", "benchmarks/*.py"], cwd=ROOT, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if dirty.strip() else "")


def code_hash() -> str:
    """Hash of the library's source files: two runs with equal hashes ran the same code, committed or not."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src" / "flatirons").rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def header(name: str, module: str) -> dict[str, Any]:
    """The fields that open every result file."""
    return {
        "name": name,
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Write JSON in one go: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    scratch.replace(path)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings that would steer JAX, XLA or thread counts; `more` on top. CPU only."""
    steering = ("XLA_", "JAX_", "OMP_", "MKL_", "OPENBLAS_", "PYTHONPATH")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    # PYTHONHASHSEED fixed: two runs of one measurement iterate over sets alike. PYTHONPATH: they run outside the repository's root, where
    # MuJoCo would leave its log file.
    return kept | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"} | more
