"""What the MAML benchmarks share: training through the runner, scoring test tasks, rows, one result file each."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flatirons as fi
from benchmarks.record import RESULTS, ROOT, code_hash, header, versions, write
from flatirons import envs
from flatirons.run import folder
from flatirons.systems import maml

Row = dict[str, Any]
OUT = RESULTS / "methods"


def at_most(what: str, bar: float, measured: float) -> Row:
    return {"what": what, "reach": f"at most {bar:g}", "measured": float(measured), "reached": bool(measured <= bar)}


def at_least(what: str, bar: float, measured: float, every: Sequence[float] = ()) -> Row:
    """The verdict on `measured`; where the seeds are few, `every` one of them must hold."""
    return {"what": what, "reach": f"at least {bar:g}", "measured": float(measured), "reached": bool(min(measured, *every) >= bar)}


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with what all of these benchmarks take."""
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks" / "maml", help="where the run folders go")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the result file; give another to try something out")
    return parser.parse_args()


def trained(runs: Path, preset: str, task: str, seed: int, **settings: Any) -> tuple[Any, float]:
    """A run of a preset, and the seconds it took, compiling included. What was cut goes on, as long as the library's files are the same."""
    mark = hashlib.sha256(json.dumps([code_hash(), task, settings], sort_keys=True).encode()).hexdigest()[:12]
    path = runs / f"{preset}-seed{seed}-{mark}"
    if (path / folder.CONFIG).exists():
        run = fi.resume(path, quiet=True)
    else:
        run = fi.train(preset, task, seed=seed, out=path, quiet=True, **settings)
    return run, float(run.metrics[-1]["seconds"])


def scored(run: Any, task: str, tasks: int, seed: int, env_options: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """`maml.score` on test tasks, with some settings of the run's Config in their test values."""
    config = dataclasses.replace(run.config, **settings)
    made = envs.make(task, config.num_envs, seed=seed, training=False, **(env_options or {}))
    try:
        return maml.score(config, made, run.actor, tasks, seed)
    finally:
        made.close()


def over_seeds(scores: list[dict[str, Any]], name: str) -> dict[str, float]:
    """The mean over seeds of `mse_after`, `accuracy_after` or `return_after`, by number of steps."""
    return {steps: float(np.mean([score[name][steps] for score in scores])) for steps in scores[0][name]}


def save(out: Path, name: str, began: dict[str, Any], rows: list[Row], **more: Any) -> None:
    """Write and print one result file; `began` is its header, made before anything ran."""
    known = versions(("flatirons", "jax", "jaxlib", "numpy", "optax", "gymnasium", "mujoco"))
    write(out / f"{name}.json", began | {"rows": rows, "versions": known, "code": code_hash()} | more)
    for row in rows:
        print(f"{name}: {row['what']}: {row['measured']:.4g} ({row['reach']}) {'reached' if row['reached'] else 'NOT REACHED'}", flush=True)


__all__ = ["OUT", "Row", "arguments", "at_least", "at_most", "header", "over_seeds", "save", "scored", "trained"]
