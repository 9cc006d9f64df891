"""What is to be had on Pendulum-v1: the best decisions, by backward induction, from the very starts that the learning rows are measured on.

`python -m benchmarks.learning.pendulum_best [--seeds 0-19]`

The dynamics are known and deterministic, so V_t, the most that can still be collected after t decisions, follows from V_{t+1} on
a grid of angles and speeds. The policy looks one decision ahead from the exact state and is then played in the environment itself,
through the evaluation of the rows (20 episodes, seeded 10,000 + seed): what it collects can be collected. How far learned policies are
from it is what learning leaves open; the spread of its means is what the starts alone do.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.learning.run import seed_list
from benchmarks.learning.summary import bootstrap
from benchmarks.record import RESULTS, header, versions, write
from flatirons import envs
from flatirons.envs import classic
from flatirons.run import evaluate
from flatirons.types import Key, Policy, Task, TimeStep

TASK, EPISODES, HORIZON = "Pendulum-v1", 20, 200
ANGLES, SPEEDS = 601, 401
PENDULUM, MAX_SPEED, MAX_TORQUE = classic.Pendulum(), 8.0, 2.0
COARSE, FINE = jnp.linspace(-MAX_TORQUE, MAX_TORQUE, 41), jnp.linspace(-MAX_TORQUE, MAX_TORQUE, 401)


def read(table: Any, angle: Any, speed: Any) -> Any:
    """V of states between the grid's, bilinear; `table [ANGLES, SPEEDS]`, the first angle is the last."""
    at_angle = jnp.mod(angle + jnp.pi, 2 * jnp.pi) / (2 * jnp.pi) * (ANGLES - 1)
    at_speed = (speed + MAX_SPEED) / (2 * MAX_SPEED) * (SPEEDS - 1)
    i, j = jnp.minimum(at_angle.astype(int), ANGLES - 2), jnp.minimum(at_speed.astype(int), SPEEDS - 2)
    a, b = at_angle - i, at_speed - j
    low, high = (table[i, k] * (1 - a) + table[i + 1, k] * a for k in (j, j + 1))
    return low * (1 - b) + high * b


def worth(table: Any, angle: Any, speed: Any, torque: Any) -> Any:
    """The reward of a decision and what is left after it."""
    (angle, speed), reward, _ = PENDULUM.step(jax.random.key(0), jnp.stack([angle, speed]), (torque,))
    return reward + read(table, angle, speed)


@jax.jit
def tables() -> jax.Array:
    """V_1 ... V_200 `[200, ANGLES, SPEEDS]`; entry t is what can be had after decision t."""
    angle, speed = jnp.meshgrid(jnp.linspace(-jnp.pi, jnp.pi, ANGLES), jnp.linspace(-MAX_SPEED, MAX_SPEED, SPEEDS), indexing="ij")

    def back(table: Any, _: Any) -> tuple[Any, Any]:
        best = jax.lax.fori_loop(
            0, len(COARSE), lambda k, m: jnp.maximum(m, worth(table, angle, speed, COARSE[k])), jnp.full_like(angle, -jnp.inf)
        )
        return best, table

    return jax.lax.scan(back, jnp.zeros_like(angle), None, length=HORIZON)[1][::-1]


def policy(config: Any, task: Task, actor: Any, *, greedy: bool) -> Policy:
    """The best torque of `FINE` by the table of the decision that is due; carry: decisions since the episode began, int32 `[B]`."""
    del config, task, greedy

    def best(t: Any, obs: Any) -> Any:
        angle, speed = jnp.arctan2(obs[1], obs[0]), obs[2]
        return FINE[jnp.argmax(worth(actor[jnp.minimum(t, HORIZON - 1)], angle, speed, FINE))]

    def act(key: Key, timestep: TimeStep, carry: Any) -> tuple[jax.Array, Any, Any]:
        t = jnp.where(timestep.first, 0, carry)
        return jax.vmap(best)(t, timestep.obs)[:, None], t + 1, ()

    return Policy(lambda num_envs: jnp.zeros(num_envs, jnp.int32), act)


def main() -> None:
    """Solve, play, and hold the rows against it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seed_list, default=list(range(20)))
    parser.add_argument("--out", type=Path, default=RESULTS / "curves", help="folder of the result file")
    args = parser.parse_args()
    result = header("pendulum_best", "benchmarks.learning.pendulum_best")
    solved, returns = tables(), {}
    system = argparse.Namespace(__name__="pendulum_best", policy=policy)
    for seed in args.seeds:
        task = envs.make(TASK, evaluate.envs_for(EPISODES, in_graph=False), seed=10_000 + seed, training=False)
        found = evaluate.evaluate(system, (), task, solved, EPISODES, 10_000 + seed)
        task.close()
        returns[seed] = found["returns"]
        print(f"seed {seed}: {found['mean']:.1f}", flush=True)
    means = [float(np.mean(x)) for x in returns.values()]
    result |= {
        "versions": versions(["gymnasium", "jax", "numpy"]), "task": TASK, "seeds": args.seeds, "returns": returns, "means": means,
        "mean": float(np.mean(means)), "ci95": list(bootstrap(means)),
    }  # fmt: skip
    write(args.out / "pendulum_best.json", result)
    print(f"{result['mean']:.1f}, {result['ci95']}")


if __name__ == "__main__":
    main()
