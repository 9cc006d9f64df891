"""The curve of Mnih et al. 2013, figure 2: the average over held-out states of max_a Q(s, a) while a network learns.

`python -m benchmarks.learning.max_q [--presets dqn-2013-minatar dqn-minatar] [--task pgx:minatar-breakout] [--budget 1000000]`

The states are those a random policy visits before training begins. Beside the curve stands the mean return of the training episodes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

import flatirons as fi
from benchmarks.record import RESULTS, ROOT, header, versions, write
from flatirons import envs
from flatirons.types import InGraphTask

STATES = 500
"""Held-out states."""


def held_out(task: InGraphTask, key: Any) -> Any:
    """TimeSteps `[STATES]` that a random policy visits, one in ten of what it sees."""
    actions = cast(Any, task.spec.action).n

    def one(env: Any, key: Any) -> tuple[Any, Any]:
        key_action, key_env = jax.random.split(key)
        env, _ = task.step(key_env, env, jax.random.randint(key_action, (1,), 0, actions))
        return env, task.observe(env)

    key, key_reset = jax.random.split(key)
    _, seen = jax.lax.scan(one, task.reset(key_reset), jax.random.split(key, 10 * STATES))
    return jax.tree.map(lambda x: x[::10, 0], seen)


def curve(preset: str, task_name: str, budget: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Train and look at the held-out states fifty times on the way; the run's folder is kept and gone on with."""
    task = cast(InGraphTask, envs.make(task_name, 1))
    states: Any = jax.jit(lambda key: held_out(task, key))(jax.random.key(10_000 + seed))
    estimate: Any = None
    points_file = folder.parent / f"{folder.name}.points.jsonl"
    points = [json.loads(line) for line in points_file.read_text().splitlines()] if points_file.exists() else []

    def look(run: Any, row: dict[str, Any]) -> None:
        nonlocal estimate
        if points and row["step"] < points[-1]["step"] + budget // 50:
            return
        if estimate is None:
            config, system = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), run.config), run.system
            estimate = jax.jit(lambda actor: jnp.mean(system.estimate(config, task, actor, states)))
        value = estimate(run.actor)
        points.append({"step": row["step"], "held_out_max_q": float(value), "episode_return": row["episode_return"]})
        with points_file.open("a") as file:
            file.write(json.dumps(points[-1]) + "\n")

    if (folder / "config.json").exists():
        fi.resume(folder, quiet=True, callbacks=[look])
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fi.train(preset, task_name, seed=seed, out=folder, quiet=True, total_steps=budget, callbacks=[look])
    return points


def main() -> None:
    """Train each preset, write the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["dqn-2013-minatar", "dqn-minatar"], help="what to train")
    parser.add_argument("--task", default="pgx:minatar-breakout")
    parser.add_argument("--budget", type=int, default=1_000_000, help="decisions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "max_q", help="where the run folders go")
    parser.add_argument("--out", type=Path, default=RESULTS / "curves", help="folder of the result file")
    args = parser.parse_args()
    result = header("max_q", "benchmarks.learning.max_q")
    result |= {"versions": versions(("flatirons", "jax", "jaxlib", "pgx", "pgx-minatar"))}
    result |= {"task": args.task, "total_steps": args.budget, "seed": args.seed, "states": STATES}
    result["curves"] = {
        name: curve(name, args.task, args.budget, args.seed, args.runs.resolve() / f"{name}-{args.budget}-{args.seed}")
        for name in args.presets
    }
    write(args.out / "max_q.json", result)


if __name__ == "__main__":
    main()
