"""One seed of ours for `sac_and_sb3`: `python -m benchmarks.learning.sac_ours JSON` in our environment."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import flatirons as fi
from benchmarks.learning.score import greedy_returns
from benchmarks.record import versions, write


def main() -> None:
    """Train to each budget, score there."""
    job = json.loads(sys.argv[1])
    settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in job["settings"].items()}
    settings |= {"random_steps": settings["learning_starts"], "total_steps": max(job["budgets"])}
    returns, begin, run = {}, time.perf_counter(), None
    for budget in job["budgets"]:
        if run is None:
            run = fi.train("sac", job["task"], seed=job["seed"], out=job["folder"], quiet=True, stop_at=budget, **settings)
        else:
            run = fi.resume(job["folder"], quiet=True, stop_at=budget if budget < max(job["budgets"]) else None)
        returns[str(budget)] = greedy_returns(job["task"], run.policy, job["episodes"], 10_000 + job["seed"])
    write(
        Path(job["result"]),
        {
            "mark": job["mark"],
            "returns": returns,
            "seconds": time.perf_counter() - begin,
            "versions": versions(("flatirons", "jax", "jaxlib", "numpy", "gymnasium", "mujoco")),
        },
    )


main()
