"""MAML on sinusoids (meta-batches of 25 tasks, K = 10, one inner step): Flatirons against a plain torch.func loop of the same thing.

`python -m benchmarks.speed.maml_sinusoid`. A step is a meta-iteration; the time of the paper's 70,000 follows from it.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.record import OURS, PEER_TORCH, header, write
from benchmarks.speed.versus import arguments, measurement

SETTINGS: dict[str, Any] = {
    "num_envs": 25,
    "shots": 10,
    "queries": 10,
    "inner_rate": 0.01,
    "learning_rate": 1e-3,
    "hidden": [40, 40],
}
ITERATIONS = 70_000
REACH_MINUTES, AIM_MINUTES = 6.0, 2.0
REACH_RATIO, AIM_RATIO = 5.0, 15.0


def main() -> None:
    """Each of the peer's thread counts once, then ours and the peer's better one in turn."""
    args = arguments(__doc__)
    name = "maml_sinusoid_torch"
    result = header(name, "benchmarks.speed.maml_sinusoid")
    job = {"system": "maml", "task": "meta:sinusoid", "settings": SETTINGS, "seconds": args.seconds, "seed": 0, "threads": None}
    peer = (PEER_TORCH, "benchmarks.speed.peer_maml")
    trials = {threads: measurement(*peer, job | {"threads": threads})["steps_per_second"] for threads in (1, None)}
    peer_job = job | {"threads": max(trials, key=lambda threads: trials[threads])}
    ours_runs, peer_runs = [], []
    for index in range(args.pairs):
        ours_runs.append(measurement(OURS, "benchmarks.speed.ours", job | {"seed": index}))
        peer_runs.append(measurement(*peer, peer_job | {"seed": index}))
        a, b = ours_runs[-1]["steps_per_second"], peer_runs[-1]["steps_per_second"]
        print(f"{name}: pair {index + 1}: ours {a:,.0f} meta-iterations/s, torch {b:,.0f}, ratio {a / b:.1f}", flush=True)
    pairs = [
        {"ours": a["steps_per_second"], "peer": b["steps_per_second"], "ratio": a["steps_per_second"] / b["steps_per_second"]}
        for a, b in zip(ours_runs, peer_runs, strict=True)
    ]
    ratio = statistics.median(pair["ratio"] for pair in pairs)
    minutes = ITERATIONS / statistics.median(pair["ours"] for pair in pairs) / 60
    result |= {
        "peer_name": "torch.func",
        "versions": {"ours": ours_runs[0]["versions"], "peer": peer_runs[0]["versions"]},
        "settings": SETTINGS,
        "notes": ["A step is a meta-iteration.", "torch: vmap and grad of torch.func, torch.optim.Adam; the better thread count."],
        "pairs": pairs,
        "ratio_median": ratio,
        "ratio_min": min(pair["ratio"] for pair in pairs),
        "ratio_max": max(pair["ratio"] for pair in pairs),
        "ours_compile_s": statistics.median(run["compile_s"] for run in ours_runs),
        "peer_compile_s": statistics.median(run["compile_s"] for run in peer_runs),
        "peer_threads": peer_job["threads"] or "default",
        "peer_thread_trials": {str(threads or "default"): found for threads, found in trials.items()},
        "minutes_for_70000": minutes,
        "reach": {"minutes": REACH_MINUTES, "ratio": REACH_RATIO},
        "aim": {"minutes": AIM_MINUTES, "ratio": AIM_RATIO},
        "reached": minutes < REACH_MINUTES and ratio >= REACH_RATIO,
    }
    write(args.out / f"{name}.json", result)
    print(f"{name}: median ratio {ratio:.1f}, {ITERATIONS:,} meta-iterations in {minutes:.2f} min, {args.out / f'{name}.json'}", flush=True)


if __name__ == "__main__":
    main()
