"""Run one row of the learning benchmarks: `python -m benchmarks.learning.run ppo-cartpole-host [--seeds 0,1,2] [--workers 2]`.

Every seed trains in its own process, pinned to one core with one XLA thread, two side by side; then 20 greedy episodes of the final policy
on an evaluation environment of its own seed. It may be interrupted: a seed that is finished is not repeated, a seed that was cut goes on
from its checkpoint, as long as the library's source files and the row are the same.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import queue
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.learning.rows import ROWS, Row
from benchmarks.learning.summary import bootstrap, held
from benchmarks.record import OURS, RESULTS, ROOT, clean_environment, code_hash, commit, header, write

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def seed_list(text: str) -> list[int]:
    """`0,1,5` or `0-9`, both forms mixed."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    return seeds


def fingerprint(row: Row, episodes: int) -> str:
    """Two seeds with equal fingerprints ran the same code for the same row."""
    spec = {"system": row.system, "task": row.task, "budget": row.budget, "config": dict(row.config), "episodes": episodes}
    return hashlib.sha256((code_hash() + json.dumps(spec, sort_keys=True)).encode()).hexdigest()[:16]


def finished(path: Path, mark: str | None) -> dict[str, Any] | None:
    """A seed's result if it is there and, where `mark` is given, of that code and row."""
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return result if mark is None or result["fingerprint"] == mark else None


def train_seed(name: str, row: Row, seed: int, mark: str, args: argparse.Namespace, cores: queue.SimpleQueue[int]) -> Path:
    """Run one seed in its own process on a free core; the path of its result."""
    # Another budget has folders of its own: trying something out must not take the row's finished seeds away.
    folder = name if args.budget is None else f"{name}-{args.budget}"
    home = args.runs.resolve() / folder / f"seed_{seed}"
    path = home / "result.json"
    kept = finished(path, None if args.keep_seeds else mark)
    if kept is not None:
        print(f"{name} seed {seed}: kept, {statistics.fmean(kept['returns']):.1f}", flush=True)
        return path
    stamp = home / "fingerprint"
    if home.exists() and (not stamp.exists() or stamp.read_text() != mark):
        print(f"{name} seed {seed}: {home} is of other source files or settings, beginning anew", flush=True)
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    stamp.write_text(mark)
    job = {
        "system": row.system,
        "task": row.task,
        "budget": row.budget,
        "config": dict(row.config),
        "seed": seed,
        "episodes": args.episodes,
        "folder": str(home / "run"),
        "result": str(path),
        "fingerprint": mark,
        "commit": commit(),
    }
    core = cores.get()
    try:
        pin = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
        command = [*pin, str(OURS), "-m", "benchmarks.learning.one_seed", json.dumps(job)]
        environment = clean_environment(XLA_FLAGS=ONE_THREAD, OMP_NUM_THREADS="1")
        with (home / "log.txt").open("a") as log:
            status = subprocess.run(command, cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    finally:
        cores.put(core)
    if status:
        tail = "\n".join((home / "log.txt").read_text().splitlines()[-15:])
        raise SystemExit(f"{name} seed {seed} failed with status {status} (see {home / 'log.txt'}):\n{tail}")
    done = json.loads(path.read_text())
    print(f"{name} seed {seed}: {statistics.fmean(done['returns']):.1f} in {done['seconds']:.0f} s", flush=True)
    return path


def collect(head: dict[str, Any], row: Row, seeds: list[dict[str, Any]], curves: dict[str, Any] | None = None) -> dict[str, Any]:
    """The row's result from its seeds' results and their learning curves."""
    means = [s["success"] if row.success else statistics.fmean(s["returns"]) for s in seeds]
    low, high = bootstrap(means)
    reach_rule = row.reach_rule()
    aim_rule = row.aim_rule or reach_rule
    recorded = seeds[0]["config"]
    return head | {
        "system": row.system,
        "task": row.task,
        "total_steps": seeds[0]["total_steps"],
        "seeds": [s["seed"] for s in seeds],
        "seed_commits": sorted({s["commit"] for s in seeds}),
        "versions": seeds[0]["versions"],
        "preset": recorded["preset"],
        "env_options": recorded["env_options"],
        "config": recorded["config"],
        "protocol": "final policy, greedy, on an evaluation environment seeded 10000 + seed",
        "returns": {str(s["seed"]): s["returns"] for s in seeds},
        "training_returns": [s["training_return"] for s in seeds],
        "values": [s.get("values") for s in seeds],
        "measure": "success" if row.success else "return",
        "means": means,
        "mean": statistics.fmean(means),
        "ci95": [low, high],
        "reach": row.reach,
        "rule": reach_rule,
        "reached": None if row.reach is None else held(reach_rule, row.reach, means, low, row.seeds),
        "aim": row.aim,
        "aim_rule": aim_rule,
        "aim_reached": row.aim is not None and held(aim_rule, row.aim, means, low, row.seeds),
        "passed": None if row.reach is None else sum(mean >= row.reach for mean in means),
        "seconds_per_seed": [s["seconds"] for s in seeds],
        "curves": curves,
    }


def curve(folder: Path, total_steps: int, points: int = 50) -> list[dict[str, Any]]:
    """A run's training in `points` equal stretches of decisions: at each end, over it, the mean return of the episodes and the mean Q."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    stretches: list[list[dict[str, Any]]] = [[] for _ in range(points)]
    for row in rows:
        stretches[min(points - 1, row["step"] * points // total_steps)].append(row)
    found = []
    for index, stretch in enumerate(stretches):
        episodes = sum(row.get("episodes") or 0 for row in stretch)
        total = sum(row["episode_return"] * row["episodes"] for row in stretch if row.get("episodes"))
        q_values = [row["q_value"] for row in stretch if "q_value" in row]
        point: dict[str, Any] = {"step": (index + 1) * total_steps // points, "episode_return": total / episodes if episodes else None}
        found.append(point | ({"q_value": statistics.fmean(q_values)} if q_values else {}))
    return found


def main() -> None:
    """Train what is missing, then write the row's result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=sorted(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seeds", type=seed_list, default=None, help="which seeds, as 0,1,2 or 0-9 (default: all of the row)")
    parser.add_argument("--workers", type=int, default=2, help="seeds side by side, one core each")
    parser.add_argument("--episodes", type=int, default=20, help="greedy episodes per seed")
    parser.add_argument("--budget", type=int, default=None, help="another budget in decisions, to try things out")
    parser.add_argument("--keep-seeds", action="store_true", help="keep finished seeds of older source files (recorded)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="where the run folders go")
    parser.add_argument("--out", type=Path, default=RESULTS / "learning", help="folder of the result file")
    args = parser.parse_args()
    row = ROWS[args.row]
    if args.budget is not None:
        if args.out == RESULTS / "learning":
            parser.error("a --budget of your own needs an --out of your own, so that the row's result stays as it is")
        row = dataclasses.replace(row, budget=args.budget)
    seeds = args.seeds if args.seeds is not None else list(range(row.seeds))
    head = header(args.row, "benchmarks.learning.run")
    mark = fingerprint(row, args.episodes)
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    usable = sorted(os.sched_getaffinity(0))
    for index in range(args.workers):
        cores.put(usable[index % len(usable)])
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        jobs = [pool.submit(train_seed, args.row, row, seed, mark, args, cores) for seed in seeds]
        paths = [job.result() for job in jobs]
    found = [json.loads(path.read_text()) for path in paths]
    curves = {str(s["seed"]): curve(path.parent / "run", s["total_steps"]) for s, path in zip(found, paths, strict=True)}
    result = collect(head, row, found, curves)
    write(args.out / f"{args.row}.json", result)
    low, high = result["ci95"]
    verdict = "" if row.reach is None else f", {row.reach} {'reached' if result['reached'] else 'NOT reached'} ({result['rule']})"
    print(f"{args.row}: mean {result['mean']:.1f} ({low:.1f} to {high:.1f}){verdict}", flush=True)


if __name__ == "__main__":
    main()
