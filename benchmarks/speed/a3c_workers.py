"""A3C with one and with two actor-learners on real ALE, each with one XLA thread: throughput, and the time to a reference score (the
paper's Table 2, whose numbers for two threads are 2.1 for A3C, 2.7 for n-step and 3.0 for one-step Q-learning).

`python -m benchmarks.speed.a3c_workers [--methods a3c async-nstep-q async-q] [--score-task ALE/Seaquest-v5] [--score 300]`

Throughput: `--pairs` runs of `--seconds` after the start, one and two actor-learners in turn, in threads and in processes, with the paper's
one environment for each learner and with more (`--envs`). Time to the score: until the mean of the last 30 training episodes passes it,
the same seeds with one and with two learners of `--score-envs` environments each. Every run is a process of its own and what is finished
is kept in `--runs`, so it may be interrupted between runs. One actor-learner is pinned to one core, two to two.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.learning.run import ONE_THREAD, seed_list
from benchmarks.record import OURS, RESULTS, ROOT, clean_environment, code_hash, header, versions, write

PAPER = {"a3c": 2.1, "async-nstep-q": 2.7, "async-q": 3.0}
"""Two threads' speed-up to the reference score, over seven Atari games (Mnih 2016, Table 2)."""
PRESETS = {"a3c": "a3c-paper", "async-nstep-q": "async-nstep-q", "async-q": "async-q"}
LAST = 30
"""Episodes whose mean return is held against the score."""
SCORE_SETTINGS = {"rmsprop_eps": 1e-5, "max_grad_norm": 0.5, "learning_rate": 1e-3, "anneal_learning_rate": False}
"""How a learner of several environments learns within an hour; with the paper's epsilon of 0.1 its steps are too small."""
EPSILON_STEPS = 200_000
"""Decisions over which the methods that learn Q come to their last exploration rates: the paper's million is longer than these runs."""


def one(job: dict[str, Any]) -> None:
    """Train in this process until the clock or the score says stop; write what came."""
    import flatirons as fi

    recent: collections.deque[tuple[int, float]] = collections.deque()
    found: dict[str, Any] = {"reached_s": None, "reached_step": None}
    # The first report comes after compiling; from it the clock runs.
    begin: list[float] = []
    curve: list[tuple[int, float, float]] = []

    def watch(_: Any, row: dict[str, Any]) -> bool:
        now = time.perf_counter()
        if not begin:
            begin.append(now)
            found["first_step"] = row["step"]
            return True
        if row.get("episodes"):
            recent.append((row["episodes"], row["episode_return"]))
            while sum(n for n, _ in recent) - recent[0][0] >= LAST:
                recent.popleft()
        count = sum(n for n, _ in recent)
        spent = now - begin[0]
        found["seconds"], found["step"] = spent, row["step"]
        if count >= LAST:
            mean = sum(n * r for n, r in recent) / count
            curve.append((row["step"], round(spent, 2), round(mean, 3)))
            if job["score"] is not None and mean >= job["score"]:
                found["reached_s"], found["reached_step"] = spent, row["step"]
                return False
        return job["seconds"] is None or spent < job["seconds"]

    workers = job["workers"]
    settings: dict[str, Any] = {"num_envs": job["envs"] * workers, "actor_learners": workers, "mode": job["mode"]}
    settings["trajectories"] = 200 if job["envs"] == 1 else 50
    if job["score"] is not None:
        settings |= SCORE_SETTINGS
    if job["method"] != "a3c":
        settings["epsilon_steps"] = EPSILON_STEPS
    fi.train(
        PRESETS[job["method"]], job["task"], seed=job["seed"], out=job["folder"], quiet=True, overwrite=True, callbacks=(watch,),
        total_steps=job["budget"], **settings,
    )  # fmt: skip
    found["steps_per_second"] = (found["step"] - found["first_step"]) / found["seconds"]
    names = ("flatirons", "jax", "jaxlib", "numpy", "ale-py")
    write(Path(job["result"]), found | {"mark": job["mark"], "curve": curve, "versions": versions(names)})


def kept(args: argparse.Namespace, label: str, **job: Any) -> dict[str, Any]:
    """One run's result, made where it is not there yet."""
    home = args.runs.resolve() / label
    job |= {"folder": str(home / "run"), "result": str(home / "result.json")}
    mark = json.dumps(job | {"code": code_hash()}, sort_keys=True)
    path = home / "result.json"
    if path.exists() and (old := json.loads(path.read_text()))["mark"] == mark:
        return old
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    cores = sorted(os.sched_getaffinity(0))[: job["workers"]]
    command = [
        "taskset",
        "-c",
        ",".join(map(str, cores)),
        str(OURS),
        "-m",
        "benchmarks.speed.a3c_workers",
        json.dumps(job | {"mark": mark}),
    ]
    with (home / "log.txt").open("w") as log:
        environment = clean_environment(XLA_FLAGS=ONE_THREAD, OMP_NUM_THREADS="1")
        if subprocess.run(command, cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{label} failed: see {home / 'log.txt'}")
    return json.loads(path.read_text())


def main() -> None:
    """Every method and mode, one and two actor-learners in turn, then the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--modes", nargs="+", default=["threads", "processes"], choices=["threads", "processes"])
    parser.add_argument("--task", default="ALE/Pong-v5", help="where throughput is measured")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 16], help="environments of each learner, where throughput is measured")
    parser.add_argument("--score-envs", type=int, default=16, help="and in the runs to the score")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of throughput with one and with two")
    parser.add_argument("--seconds", type=float, default=40.0, help="how long one of them runs")
    parser.add_argument("--score-task", default="ALE/Seaquest-v5", help="where the time to the score is")
    parser.add_argument("--score", type=float, default=300.0, help="the reference score; chance has 70")
    parser.add_argument("--budget", type=int, default=500_000, help="decisions after which a run to the score gives up")
    parser.add_argument(
        "--seeds", type=lambda text: seed_list(text) if text else [], default=[0, 1], help="of the runs to the score; none: ''"
    )
    parser.add_argument("--score-mode", default="processes", choices=["threads", "processes"], help="how the runs to the score race")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "a3c_workers")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed", help="folder of the result file")
    args = parser.parse_args()
    result = header("a3c_workers", "benchmarks.speed.a3c_workers")
    result |= {
        "task": args.task,
        "cores": len(os.sched_getaffinity(0)),
        "score": args.score,
        "score_task": args.score_task,
        "score_envs": args.score_envs,
        "budget": args.budget,
    }
    throughput, times, found = [], [], {}
    for method, envs, mode in itertools.product(args.methods, args.envs, args.modes):
        pairs = []
        for pair in range(args.pairs):
            both = []
            for workers in (1, 2):
                label = f"throughput/{method}-{envs}-{mode}-{workers}-{pair}"
                job = {"method": method, "mode": mode, "workers": workers, "envs": envs, "seed": pair, "score": None}
                found = kept(args, label, task=args.task, budget=80_000_000, seconds=args.seconds, **job)
                both.append(found["steps_per_second"])
            pairs.append({"one": both[0], "two": both[1], "ratio": both[1] / both[0]})
            print(f"{method} {mode}, {envs}: {both[0]:,.0f} and {both[1]:,.0f} steps/s, {both[1] / both[0]:.2f}x", flush=True)
        ratio = statistics.median(pair["ratio"] for pair in pairs)
        bars = {"threads": 1.3, "processes": 1.6}
        row = {"method": method, "mode": mode, "envs": envs, "pairs": pairs, "ratio_median": ratio}
        throughput.append(row | ({"reach": bars[mode], "reached": ratio >= bars[mode]} if method == "a3c" else {}))
    for method in args.methods:
        for seed in args.seeds:
            both = []
            for workers in (1, 2):
                job = {"method": method, "mode": args.score_mode, "workers": workers, "envs": args.score_envs, "seed": seed}
                found = kept(
                    args,
                    f"score/{method}-{workers}-{seed}",
                    task=args.score_task,
                    budget=args.budget,
                    seconds=None,
                    score=args.score,
                    **job,
                )
                both.append({name: found[name] for name in ("reached_s", "reached_step", "seconds", "step", "curve")})
                print(f"{method} seed {seed}, {workers}: {both[-1]['reached_s']} s at {both[-1]['reached_step']}", flush=True)
            done = all(side["reached_s"] is not None for side in both)
            speedup = both[0]["reached_s"] / both[1]["reached_s"] if done else None
            times.append({"method": method, "seed": seed, "one": both[0], "two": both[1], "speedup": speedup, "paper": PAPER[method]})
    result |= {"versions": {"ours": found["versions"]}, "throughput": throughput, "time_to_score": times}
    write(args.out / "a3c_workers.json", result)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        one(json.loads(sys.argv[1]))
    else:
        main()
