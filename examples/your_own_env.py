"""Two environments of one's own, and PPO on each: one of Gymnasium's kind, and the same one in-graph.

In both, a number is shown and the action must say whether it is positive. Run: `python examples/your_own_env.py [decisions]`.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import flatirons as fi
from flatirons.types import ArraySpec, Discrete

EPISODE = 10


class Sign(gymnasium.Env):
    """Any Gymnasium environment will do. `flatirons check` finds the usual faults in one."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float((self.number > 0) == bool(action))
        self.steps += 1
        # A time limit is a truncation: the task itself did not end, so the value of what follows still counts.
        return self._show(), reward, False, self.steps == EPISODE, {}

    def _show(self) -> np.ndarray:
        self.number = self.np_random.uniform(-1.0, 1.0)
        return np.array([self.number], np.float32)


@dataclasses.dataclass(frozen=True)
class InGraphSign:
    """The same for one stream, in JAX: pure functions of a state. Batches, resets and the time limit are added around it."""

    obs_spec: ArraySpec = ArraySpec((1,), "float32", -1.0, 1.0)
    action_spec: Discrete = Discrete(2)
    max_episode_steps: int | None = EPISODE

    def init(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (), minval=-1.0, maxval=1.0)

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        reward = ((state > 0) == (action == 1)).astype(jnp.float32)
        return self.init(key), reward, jnp.bool_(False)

    def observe(self, state: jax.Array) -> jax.Array:
        return state[None]

    def legal(self, state: jax.Array) -> tuple[()]:
        return ()


def main(total_steps: int = 16_384) -> None:
    settings: dict[str, Any] = {"total_steps": total_steps, "num_envs": 4, "num_steps": 64, "num_minibatches": 4, "learning_rate": 1e-3}
    for name, env in {"gymnasium": Sign, "in-graph": InGraphSign()}.items():
        run = fi.train("ppo", env, out=f"runs/example-env-{name}", overwrite=True, quiet=True, **settings)
        score = run.evaluate(episodes=20, seed=1)
        print(f"{name}: return {score['mean']:.1f} of {EPISODE}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
