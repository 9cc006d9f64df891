"""What the benchmarks share that train one game for so long and then play matches: the command line, training in pieces, verdicts."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import flatirons as fi
from benchmarks.record import RESULTS, ROOT, versions
from flatirons.run import folder

KEEP_MINUTES = 5
"""A policy is kept for `elo` about so often."""


def parser(description: str | None, minutes: float) -> argparse.ArgumentParser:
    """`train` or `test`, and what both take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("what", choices=("train", "test"))
    made.add_argument("--minutes", type=float, default=minutes, help="length of this piece")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="where the run folder is")
    made.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    return made


def snapshots(path: Path) -> Path:
    """Where a run's policies of all times are kept: folders that can be loaded as a run is."""
    return path.with_name(f"{path.name}-snapshots")


def minutes_at(path: Path, step: float) -> float:
    """Minutes that the run's own clock showed at that step, compiling included."""
    rows = [json.loads(line) for line in (path / folder.METRICS).read_text().splitlines()]
    return max((row["seconds"] / 60 for row in rows if row["step"] <= step), default=0.0)


def train(game: str, args: argparse.Namespace, path: Path, minutes: float) -> None:
    """One piece of the training, which stops for good where its own clock passes `minutes`."""
    began = time.perf_counter()
    kept = int(minutes_at(path, math.inf) / KEEP_MINUTES) if (path / folder.METRICS).exists() else 0

    def enough(run: Any, metrics: Any) -> bool:
        nonlocal kept
        if metrics["seconds"] / 60 >= (kept + 1) * KEEP_MINUTES and (path / folder.POLICY).exists():
            kept = int(metrics["seconds"] / 60 / KEEP_MINUTES)
            place = snapshots(path) / f"{run.step:012d}"
            shutil.copytree(path / folder.POLICY, place / folder.POLICY, dirs_exist_ok=True)
            shutil.copy(path / folder.CONFIG, place)
        return metrics["seconds"] < 60 * minutes and time.perf_counter() - began < 60 * args.minutes

    if (path / folder.CONFIG).exists():
        run = fi.resume(path, callbacks=[enough])
    else:
        run = fi.train("alphazero", f"pgx:{game}", seed=args.seed, out=path, callbacks=[enough])
    print(f"{run.step:_} moves, {run.metrics[-1]['seconds'] / 60:.1f} minutes in all")


def verdict(points: float | None, bars: tuple[float, float]) -> dict[str, Any]:
    """Whether a share of points (None where no game was finished) holds the two bars."""
    reach, aim = bars
    known = -1.0 if points is None else points
    return {"reach": reach, "reached": known >= reach, "aim": aim, "aim_reached": known >= aim}


def result(run: Any, path: Path, seed: int, simulations: int, matches: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A result file's fields behind its header; `reached` is None where no match has a bar."""
    verdicts = [row["reached"] for row in matches.values() if "reached" in row]
    return {
        "versions": versions(["jax", "jaxlib", "numpy", "pgx", "mctx"]), "seed": seed, "moves": run.step,
        "minutes": round(run.metrics[-1]["seconds"] / 60, 1), "simulations": simulations,
        "config": folder.read_json(path / folder.CONFIG)["config"],
        "matches": matches, "reached": all(verdicts) if verdicts else None,
    }  # fmt: skip
