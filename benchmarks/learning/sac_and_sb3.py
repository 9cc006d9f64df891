"""SAC's return at some budgets, ours and Stable-Baselines3's: the same settings, environment and evaluation, one seed after the other.

`python -m benchmarks.learning.sac_and_sb3 [--task HalfCheetah-v5] [--seeds 0-4] [--budgets 50_000 100_000] [--core 0]`

Each seed of each side is a process of its own with one thread on one core; what is finished is kept in `--runs`, so it may be interrupted
between seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.learning.run import ONE_THREAD, seed_list
from benchmarks.learning.summary import bootstrap
from benchmarks.record import OURS, PEER_TORCH, RESULTS, ROOT, clean_environment, code_hash, header, write

SETTINGS: dict[str, Any] = {
    "batch_size": 128,
    "buffer_size": 1_000_000,
    "learning_starts": 5_000,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "tau": 0.01,
    "train_every": 1,
    "gradient_steps": 1,
    "hidden": [256, 256],
}
"""Ours and theirs: our preset for HalfCheetah, but that learning does not begin before the random actions end, as theirs cannot. Both tune
the temperature."""
SIDES = {"ours": (OURS, "benchmarks.learning.sac_ours"), "stable-baselines3": (PEER_TORCH, "benchmarks.learning.sac_sb3")}


def one(side: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One seed's `{"returns": {budget: [...]}, "seconds", "versions"}`, trained where it is not there yet."""
    python, module = SIDES[side]
    home = args.runs.resolve() / side / f"seed_{seed}"
    job = {"task": args.task, "seed": seed, "budgets": args.budgets, "settings": SETTINGS, "folder": str(home / "run"), "episodes": 20}
    mark = json.dumps(job | ({"code": code_hash()} if side == "ours" else {}), sort_keys=True)
    path = home / "result.json"
    if path.exists() and (kept := json.loads(path.read_text()))["mark"] == mark:
        return kept
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    command = ["taskset", "-c", str(args.core), str(python), "-m", module, json.dumps(job | {"result": str(path), "mark": mark})]
    with (home / "log.txt").open("w") as log:
        environment = clean_environment(XLA_FLAGS=ONE_THREAD, OMP_NUM_THREADS="1")
        if subprocess.run(command, cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{side} seed {seed} failed: see {home / 'log.txt'}")
    return json.loads(path.read_text())


def main() -> None:
    """Both sides, every seed, the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="HalfCheetah-v5")
    parser.add_argument("--seeds", type=seed_list, default=list(range(5)))
    parser.add_argument("--budgets", type=int, nargs="+", default=[50_000, 100_000])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "sac_and_sb3")
    parser.add_argument("--out", type=Path, default=RESULTS / "curves", help="folder of the result file")
    args = parser.parse_args()
    result = header("sac_and_sb3", "benchmarks.learning.sac_and_sb3") | {"task": args.task, "settings": SETTINGS, "seeds": args.seeds}
    sides: dict[str, Any] = {side: [] for side in SIDES}
    for seed in args.seeds:
        for side in SIDES:
            sides[side].append(one(side, seed, args))
            print(side, seed, {k: round(statistics.fmean(v)) for k, v in sides[side][-1]["returns"].items()}, flush=True)
    result["sides"] = {}
    for side, found in sides.items():
        at = {}
        for budget in map(str, args.budgets):
            means = [statistics.fmean(seed["returns"][budget]) for seed in found]
            at[budget] = {"means": means, "mean": statistics.fmean(means), "ci95": bootstrap(means)}
        result["sides"][side] = {"at": at, "seconds": [seed["seconds"] for seed in found], "versions": found[0]["versions"]}
    write(args.out / "sac_and_sb3.json", result)


if __name__ == "__main__":
    main()
