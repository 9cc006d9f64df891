"""Ten permuted MNIST tasks in turn: how much of the gap between forgetting and joint learning EWC closes.

    python -m benchmarks.methods.ewc_permuted [--seeds 0-2] [--modes sgd,ewc] [--runs DIR]

Trains what is missing (a run that was cut goes on, a finished one is kept), and writes the result once every seed of every mode is there.
The settings were chosen on seeds from 100 on. The bars below were set before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import flatirons as fi
from benchmarks.learning.run import seed_list
from benchmarks.learning.summary import bootstrap
from benchmarks.record import RESULTS, ROOT, header, versions, write

NAME = "ewc_permuted"
TASK = "data:mnist"
REACH, AIM, ONLINE_WITHIN = 0.80, 0.95, 0.01
"""Share of the gap from sgd to joint that ewc closes (mean over seeds, and by the interval's lower end), and how near online must be to it
in mean accuracy."""
SEEDS = range(3)
COMMON: dict[str, Any] = {"total_steps": 5_000, "task_steps": 500, "turn_steps": 500, "num_tasks": 10}
MODES: dict[str, dict[str, Any]] = {
    "sgd": {"mode": "sgd"},
    "joint": {"mode": "joint"},
    "ewc": {"mode": "ewc"},
    "online": {"mode": "online"},
    "l2": {"mode": "l2", "strength": 0.01},
}


def finished(mode: str, seed: int, home: Path, common: dict[str, Any] = COMMON, settings: dict[str, Any] | None = None) -> Any:
    """The run of one mode and seed, trained as far as it is not; evaluated on all test images at every task's end."""
    folder = home / f"{mode}-{seed}"
    if (folder / "checkpoints").exists():
        return fi.resume(folder, quiet=True)
    chosen = {**common, **(MODES[mode] if settings is None else settings)}
    return fi.train("ewc", TASK, seed=seed, out=folder, overwrite=True, quiet=True, eval_every=common["task_steps"], **chosen)


def matrix(evaluations: list[dict[str, Any]], num_tasks: int) -> list[list[float | None]]:
    """Accuracy on each task (column; None before it began) at the end of each (row)."""
    return [[row.get(f"accuracy_{j}") for j in range(num_tasks)] for row in evaluations]


def collect(head: dict[str, Any], scores: dict[str, dict[str, list[list[float | None]]]], more: dict[str, Any]) -> dict[str, Any]:
    """The result from the matrices of every mode and seed: mean accuracy at the end, share of the gap closed, forgetting, verdicts."""
    seeds = list(scores["sgd"])

    def final(mode: str, seed: str) -> float:
        return statistics.fmean(x for x in scores[mode][seed][-1] if x is not None)

    def forgotten(mode: str, seed: str) -> float:
        rows = scores[mode][seed]
        earlier = range(len(rows) - 1)
        return statistics.fmean(max(row[j] for row in rows[j:-1]) - rows[-1][j] for j in earlier)  # type: ignore[type-var,operator]

    modes = {}
    for mode in scores:
        means = [final(mode, seed) for seed in seeds]
        closed = [
            (final(mode, seed) - final("sgd", seed)) / (final("joint", seed) - final("sgd", seed))
            for seed in seeds
        ]  # fmt: skip
        modes[mode] = {
            "accuracy": statistics.fmean(means),
            "accuracy_ci95": bootstrap(means),
            "gap_closed": statistics.fmean(closed),
            "gap_closed_ci95": bootstrap(closed),
            "forgetting": statistics.fmean(forgotten(mode, seed) for seed in seeds),
        }
    ewc, online, l2 = modes["ewc"], modes["online"], modes["l2"]
    verdicts = {
        "gap_closed_reached": ewc["gap_closed_ci95"][0] >= REACH,
        "gap_closed_aim": ewc["gap_closed_ci95"][0] >= AIM,
        "online_within_a_point": abs(online["accuracy"] - ewc["accuracy"]) <= ONLINE_WITHIN,
        "ewc_above_l2": ewc["accuracy"] > l2["accuracy"],
    }
    low, high = ewc["gap_closed_ci95"]
    rows = [
        {
            "what": f"share of the gap between forgetting and joint learning that EWC closes (interval over {len(seeds)} seeds)",
            "reach": f"≥ {REACH:.0%} at its lower end (aim {AIM:.0%})",
            "measured": f"{ewc['gap_closed']:.1%} ({low:.1%} to {high:.1%})",
            "reached": verdicts["gap_closed_reached"],
        },
        {
            "what": "mean accuracy after all tasks: online against separate penalties",
            "reach": f"within {ONLINE_WITHIN:.0%}",
            "measured": f"{online['accuracy']:.1%} / {ewc['accuracy']:.1%}",
            "reached": verdicts["online_within_a_point"],
        },
        {
            "what": "mean accuracy after all tasks: EWC / L2 / no penalty / joint",
            "reach": "EWC above L2",
            "measured": " / ".join(f"{modes[mode]['accuracy']:.1%}" for mode in ("ewc", "l2", "sgd", "joint")),
            "reached": verdicts["ewc_above_l2"],
        },
    ]
    return head | more | {
        "seeds": seeds,
        "modes": modes,
        "scores": scores,
        "reach": REACH,
        "aim": AIM,
        "rows": rows,
        "verdicts": verdicts,
    }  # fmt: skip


def main() -> None:
    """Train what is missing, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_list, default=list(SEEDS), help="which seeds to train now, as 0,1 or 0-2")
    parser.add_argument("--modes", default=",".join(MODES), help="which modes to train now")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks" / NAME, help="where the run folders go")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods", help="folder of the result file")
    args = parser.parse_args()
    head = header(NAME, "benchmarks.methods.ewc_permuted")
    for seed in args.seeds:
        for mode in args.modes.split(","):
            began = time.perf_counter()
            run = finished(mode, seed, args.runs)
            print(f"{mode} seed {seed}: {run.evaluations[-1]['mean']:.4f} ({time.perf_counter() - began:.0f} s)", flush=True)
    missing = [f"{mode}-{seed}" for mode in MODES for seed in SEEDS if not (args.runs / f"{mode}-{seed}" / "summary.json").exists()]
    if missing:
        print(f"no result yet: {', '.join(missing)} are missing")
        return
    runs = {mode: {str(seed): finished(mode, seed, args.runs) for seed in SEEDS} for mode in MODES}
    scores = {mode: {seed: matrix(run.evaluations, COMMON["num_tasks"]) for seed, run in of.items()} for mode, of in runs.items()}
    seconds = {mode: [json.loads((run.path / "summary.json").read_text())["seconds"] for run in of.values()] for mode, of in runs.items()}
    some = next(iter(runs["ewc"].values()))
    settings = {mode: {**COMMON, **chosen} for mode, chosen in MODES.items()}
    more = {"versions": versions(["jax", "jaxlib", "numpy", "optax", "flatirons"]), "settings": settings, "seconds": seconds}
    result = collect(head, scores, more | {"config": {k: v for k, v in vars(some.config).items()}})
    write(args.out / f"{NAME}.json", result)
    for mode, found in result["modes"].items():
        low, high = found["gap_closed_ci95"]
        print(f"{mode}: accuracy {found['accuracy']:.4f}, gap closed {found['gap_closed']:.3f} ({low:.3f} to {high:.3f})")
    print(result["verdicts"])


if __name__ == "__main__":
    main()
