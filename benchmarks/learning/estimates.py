"""What a critic expects of each state of some greedy episodes, and what came: the points of Lillicrap et al. 2016, figure 3.

`python -m benchmarks.learning.estimates runs/a runs/b ... [--episodes 5] [--name estimates]`

Returns are discounted from each state to its episode's end, where a truncated one is bootstrapped with the estimate itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import flatirons as fi
from benchmarks.record import RESULTS, header, versions, write
from flatirons import envs
from flatirons.types import TimeStep


def points(run: Any, name: str, episodes: int, seed: int) -> dict[str, Any]:
    """`{"estimate": [...], "return": [...]}`, one entry for each state visited."""
    task: Any = envs.make(name, 1)
    env, gamma = gymnasium.make(name), float(run.config.gamma)
    estimate = jax.jit(lambda obs: run.system.estimate(run.config, task, run.actor, TimeStep(obs, (), jnp.ones(len(obs), bool), ())))
    expected: list[float] = []
    got: list[float] = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        seen, rewards, terminated, truncated = [obs], [], False, False
        while not (terminated or truncated):
            obs, reward, terminated, truncated, _ = env.step(run.policy(obs))
            seen.append(obs)
            rewards.append(float(reward))
        values = np.asarray(estimate(jnp.asarray(np.stack(seen), jnp.float32)), np.float64)
        total, sums = 0.0 if terminated else float(values[-1]), []
        for reward in reversed(rewards):
            total = reward + gamma * total
            sums.append(total)
        expected += values[:-1].tolist()
        got += sums[::-1]
    env.close()
    task.close()
    return {"estimate": [round(x, 4) for x in expected], "return": [round(x, 4) for x in got]}


def main() -> None:
    """Every run's points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, trained on Gymnasium's tasks")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--name", default="estimates", help="of the result file")
    parser.add_argument("--out", type=Path, default=RESULTS / "curves", help="folder of the result file")
    args = parser.parse_args()
    result = header(args.name, "benchmarks.learning.estimates") | {
        "versions": versions(("flatirons", "jax", "jaxlib", "gymnasium", "mujoco"))
    }
    result["runs"] = []
    for path in args.runs:
        run = fi.load(path)
        record = json.loads((path / "config.json").read_text())
        task, title = record["task"], f"{record['preset'] or record['system']} on {record['task']}"
        result["runs"].append({"title": title, "steps": run.step} | points(run, task, args.episodes, args.seed))
    write(args.out / f"{args.name}.json", result)


if __name__ == "__main__":
    main()
