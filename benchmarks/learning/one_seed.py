"""One seed of a learning benchmark through the public API: `python -m benchmarks.learning.one_seed JSON`.

The JSON names system, task, budget, config, seed, episodes, the run's folder and the file to write the result to.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import flatirons as fi
from benchmarks.record import versions, write
from flatirons import systems


def largest_budget(system: str, task: str, budget: int, config: dict[str, Any]) -> int:
    """The largest whole number of turns within `budget`, in decisions, for the preset this task gets."""
    module, _, preset = systems.find(system)
    _, _, settings = systems.preset_for(module, preset, task)
    turn = module.steps_per_turn(module.Config(**{**settings, **config}))
    return budget // turn * turn


def recent_return(metrics: list[dict[str, Any]], total_steps: int) -> float | None:
    """Mean return of the training episodes that ended in the last tenth of the run, exploration and all; None if none did."""
    rows = [m for m in metrics if m.get("episodes") and m["step"] > 0.9 * total_steps]
    count = sum(m["episodes"] for m in rows)
    return sum(m["episode_return"] * m["episodes"] for m in rows) / count if count else None


def continued(folder: Path) -> fi.Run | None:
    """The run in the folder, gone on with to its end; None where no checkpoint was finished before it was cut."""
    if not (folder / "config.json").exists():
        return None
    try:
        return fi.resume(folder, quiet=True)
    except fi.FlatironsError as error:
        print(f"starting over: {error}", flush=True)
        return None


def main() -> None:
    """Train or go on, evaluate the final policy, write the result."""
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    config: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in job["config"].items()}
    total_steps = largest_budget(job["system"], job["task"], job["budget"], config)
    begin = time.perf_counter()
    run = continued(folder) or fi.train(
        job["system"], job["task"], seed=job["seed"], out=folder, quiet=True, overwrite=True, total_steps=total_steps, **config
    )
    trained = time.perf_counter() - begin
    score = run.evaluate(episodes=job["episodes"], seed=10_000 + job["seed"])
    values = run.overestimation(job["episodes"], 10_000 + job["seed"]) if hasattr(run.system, "estimate") else None
    result = {
        "values": values,
        "seed": job["seed"],
        "fingerprint": job["fingerprint"],
        "commit": job["commit"],
        "total_steps": total_steps,
        "returns": score["returns"],
        "lengths": score["lengths"],
        "success": score.get("success"),
        "training_return": recent_return(list(run.metrics), total_steps),
        # A run that was interrupted and resumed counts its earlier time too: the run's own clock goes on.
        "seconds": max(trained, float(run.metrics[-1].get("seconds", 0.0)) if run.metrics else 0.0),
        "config": json.loads((folder / "config.json").read_text()),
        "versions": versions(
            ("flatirons", "jax", "jaxlib", "numpy", "optax", "gymnasium", "gymnasium-robotics", "mujoco", "pgx", "pgx-minatar")
        ),
    }
    write(Path(job["result"]), result)


if __name__ == "__main__":
    main()
