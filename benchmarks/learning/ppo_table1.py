"""Table 1 of the PPO paper at our scale: the surrogates compared, with the paper's plain settings and normalised score.

`python -m benchmarks.learning.ppo_table1 [--seeds 0-4] [--budget 300_000] [--tasks ...] [--settings ...] [--workers 2]`

Four MuJoCo tasks x 5 seeds x 11 settings, `ppo-paper` each (T 2048, 10 epochs, minibatches of 64, no gradient clipping, nothing
normalised), for 300,000 decisions instead of a million. A run's score is the mean return of its last 100 training episodes; on each task
the random policy's score is 0 and the best run's is 1, and a setting's score is the mean over its runs. Every run is a process of its own
on one core, and what is finished is kept in `--runs`: it may be interrupted at any time, and a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import queue
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.one_seed import continued, largest_budget
from benchmarks.learning.run import ONE_THREAD, seed_list
from benchmarks.record import OURS, RESULTS, ROOT, clean_environment, code_hash, header, versions, write

TASKS = ("InvertedPendulum-v5", "Reacher-v5", "Swimmer-v5", "HalfCheetah-v5")
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"objective": "bare"},
    "clip 0.1": {"clip_eps": 0.1},
    "clip 0.2": {"clip_eps": 0.2},
    "clip 0.3": {"clip_eps": 0.3},
    "adaptive KL 0.003": {"objective": "penalty", "kl_target": 0.003},
    "adaptive KL 0.01": {"objective": "penalty", "kl_target": 0.01},
    "adaptive KL 0.03": {"objective": "penalty", "kl_target": 0.03},
    "fixed KL 0.3": {"objective": "penalty", "kl_coef": 0.3},
    "fixed KL 1": {"objective": "penalty", "kl_coef": 1.0},
    "fixed KL 3": {"objective": "penalty", "kl_coef": 3.0},
    "fixed KL 10": {"objective": "penalty", "kl_coef": 10.0},
}
PAPER = {
    "none": -0.39, "clip 0.1": 0.76, "clip 0.2": 0.82, "clip 0.3": 0.70, "adaptive KL 0.003": 0.68, "adaptive KL 0.01": 0.74,
    "adaptive KL 0.03": 0.71, "fixed KL 0.3": 0.62, "fixed KL 1": 0.71, "fixed KL 3": 0.72, "fixed KL 10": 0.69,
}  # fmt: skip
"""The paper's: seven tasks (v1), a million decisions, three seeds."""
LAST = 100
RANDOM_EPISODES = 100


def last_episodes(metrics: Sequence[Mapping[str, Any]], count: int = LAST) -> float | None:
    """The mean return of the last `count` training episodes (of the reports that hold them: up to a report more); None where none ended."""
    episodes, total = 0, 0.0
    for row in reversed(metrics):
        if row.get("episodes"):
            episodes += row["episodes"]
            total += row["episodes"] * row["episode_return"]
            if episodes >= count:
                break
    return total / episodes if episodes else None


def one(job: dict[str, Any]) -> None:
    """Train one run in this process, or go on with it."""
    import flatirons as fi

    folder = Path(job["folder"])
    budget = largest_budget("ppo-paper", job["task"], job["budget"], job["config"])
    try:
        run = continued(folder) or fi.train(
            "ppo-paper", job["task"], seed=job["seed"], out=folder, quiet=True, overwrite=True, total_steps=budget, **job["config"]
        )
        metrics, ruined = list(run.metrics), None
    except fi.FlatironsError as error:
        # Without clipping or penalty the parameters may be ruined: the run's last episodes before it count.
        if "NaN or infinite" not in str(error):
            raise
        ruined, metrics = str(error), [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    score = last_episodes(metrics)
    names = ("flatirons", "jax", "jaxlib", "numpy", "gymnasium", "mujoco")
    found = {"mark": job["mark"], "score": score, "steps": metrics[-1]["step"], "ruined": ruined, "versions": versions(names)}
    write(Path(job["result"]), found | {"seconds": metrics[-1]["seconds"]})


def random_score(task: str) -> float:
    """The mean return of the policy that chooses uniformly."""
    import gymnasium

    env, returns = gymnasium.make(task), []
    env.action_space.seed(0)
    for episode in range(RANDOM_EPISODES):
        env.reset(seed=episode)
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return statistics.fmean(returns)


def place(args: argparse.Namespace, task: str, setting: str, seed: int) -> Path:
    """Where a run's result is."""
    return args.runs.resolve() / task / setting.replace(" ", "-") / f"seed_{seed}" / "result.json"


def recorded(args: argparse.Namespace) -> None:
    """Give the runs that an earlier result file has, and `--runs` has not, a place there: with `--keep` they are not trained again."""
    path = args.out / "ppo_table1.json"
    if not path.exists():
        return
    earlier = json.loads(path.read_text())
    if earlier["budget"] != args.budget:
        return
    for setting, tasks in earlier["scores"].items():
        for task, scores in tasks.items():
            for seed, score in zip(earlier["seeds"], scores, strict=True):
                run = place(args, task, setting, seed)
                if not run.exists():
                    run.parent.mkdir(parents=True, exist_ok=True)
                    write(run, {"mark": "recorded", "score": score, "versions": earlier["versions"]})


def kept(args: argparse.Namespace, task: str, setting: str, seed: int, cores: queue.SimpleQueue[int]) -> float:
    """A run's score, trained where it is not there yet."""
    path = place(args, task, setting, seed)
    home = path.parent
    job = {"task": task, "seed": seed, "budget": args.budget, "config": SETTINGS[setting], "folder": str(home / "run"), "result": str(path)}
    mark = json.dumps(job | {"code": code_hash()}, sort_keys=True)
    old = json.loads(path.read_text()) if path.exists() else None
    if old is not None and (args.keep or old["mark"] == mark):
        return old["score"]
    stamp = home / "mark"
    if home.exists() and (not stamp.exists() or stamp.read_text() != mark):
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    stamp.write_text(mark)
    core = cores.get()
    try:
        command = ["taskset", "-c", str(core), str(OURS), "-m", "benchmarks.learning.ppo_table1", json.dumps(job | {"mark": mark})]
        with (home / "log.txt").open("a") as log:
            environment = clean_environment(XLA_FLAGS=ONE_THREAD, OMP_NUM_THREADS="1")
            if subprocess.run(command, cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise SystemExit(f"{task}, {setting}, seed {seed} failed: see {home / 'log.txt'}")
    finally:
        cores.put(core)
    done = json.loads(path.read_text())
    print(f"{task}, {setting}, seed {seed}: {done['score']:.1f} in {done['seconds']:.0f} s", flush=True)
    return done["score"]


def table(scores: Mapping[str, Mapping[str, Sequence[float]]], zero: Mapping[str, float]) -> dict[str, dict[str, list[float]]]:
    """`{setting: {task: normalised scores}}` from `{setting: {task: scores}}`: on each task random play is 0, the best run of all is 1."""
    best = {task: max(max(runs[task]) for runs in scores.values()) for task in zero}
    return {
        setting: {task: [(x - zero[task]) / (best[task] - zero[task]) for x in runs[task]] for task in zero}
        for setting, runs in scores.items()
    }


def interval(runs: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]] | None = None) -> tuple[float, float]:
    """95 % percentile interval of the mean over tasks, or of what it is above another setting's; seeds are resampled within each task."""
    draw = random.Random(0)

    def mean(of: Mapping[str, Sequence[float]]) -> float:
        return statistics.fmean(statistics.fmean(draw.choices(xs, k=len(xs))) for xs in of.values())

    found = sorted(mean(runs) - (mean(other) if other is not None else 0.0) for _ in range(10_000))
    return found[250], found[9_749]


def main() -> None:
    """Train what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_list, default=list(range(5)))
    parser.add_argument("--budget", type=int, default=300_000)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--keep", action="store_true", help="keep finished runs of older source files, and the result file's")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ppo_table1")
    parser.add_argument("--out", type=Path, default=RESULTS / "curves", help="folder of the result file")
    args = parser.parse_args()
    result = header("ppo_table1", "benchmarks.learning.ppo_table1")
    if args.keep:
        recorded(args)
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    usable = sorted(os.sched_getaffinity(0))
    for index in range(args.workers):
        cores.put(usable[index % len(usable)])
    # Seed by seed, so that an interrupted table has whole columns.
    order = [(task, setting, seed) for seed in args.seeds for task in args.tasks for setting in args.settings]
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        found = dict(zip(order, pool.map(lambda key: kept(args, *key, cores), order), strict=True))
    made_with = [json.loads(place(args, *key).read_text())["versions"] for key in order]
    zero = {task: random_score(task) for task in args.tasks}
    scores = {s: {t: [found[t, s, seed] for seed in args.seeds] for t in args.tasks} for s in args.settings}
    normalised = table(scores, zero)
    rows = []
    for setting, runs in normalised.items():
        mean, (low, high) = statistics.fmean(x for xs in runs.values() for x in xs), interval(runs)
        by_task = {task: statistics.fmean(xs) for task, xs in runs.items()}
        rows.append({"setting": setting, "score": mean, "ci95": [low, high], "by_task": by_task, "paper": PAPER[setting]})
        print(f"{setting:<18} {mean:6.2f} ({low:.2f} to {high:.2f}), the paper {PAPER[setting]:.2f}", flush=True)
    reached = None
    if {"clip 0.2", "none"} <= set(normalised):
        low, high = interval(normalised["clip 0.2"], normalised["none"])
        reached = {"what": "clip 0.2 above no clipping or penalty", "difference_ci95": [low, high], "reached": low > 0}
        print(f"clip 0.2 less none: {low:.2f} to {high:.2f}", flush=True)
    result |= {
        "versions": {name: ", ".join(sorted({run[name] for run in made_with})) for name in made_with[0]},
        "tasks": args.tasks,
        "seeds": args.seeds,
        "budget": args.budget,
        "random": zero,
        "scores": scores,
        "rows": rows,
        "reached": reached,
    }
    write(args.out / "ppo_table1.json", result)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        one(json.loads(sys.argv[1]))
    else:
        main()
