"""A network of one's own: a residual MLP in place of the built-in one, for PPO on CartPole.

A `Network` is a pair of functions. `init(key, obs_spec)` makes a pytree of arrays, `apply(params, obs)` turns observations with any leading
axes into features. The system puts its own heads (policy, value, Q) on top. Run: `python examples/your_own_network.py [decisions]`.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp

import flatirons as fi
from flatirons.types import ArraySpec, Network

WIDTH, BLOCKS = 64, 2


def init(key: jax.Array, obs_spec: ArraySpec) -> dict[str, Any]:
    key_in, *keys = jax.random.split(key, 1 + BLOCKS)
    scaled = jax.nn.initializers.lecun_normal()
    return {
        "in": scaled(key_in, (obs_spec.shape[0], WIDTH), jnp.float32),
        "blocks": [scaled(k, (WIDTH, WIDTH), jnp.float32) for k in keys],
    }


def apply(params: dict[str, Any], obs: jax.Array) -> jax.Array:
    x = jax.nn.relu(obs @ params["in"])
    for weight in params["blocks"]:
        x = x + jax.nn.relu(x @ weight)
    return x


def main(total_steps: int = 51_200) -> None:
    run = fi.train(
        "ppo", "jax:CartPole-v1", network=Network(init, apply), out="runs/example-network", overwrite=True, quiet=True,
        total_steps=total_steps, num_envs=8, num_steps=32,
    )  # fmt: skip
    print(f"return {run.evaluate(episodes=20, seed=1)['mean']:.1f} of 500")
    # A run with a network of one's own is loaded with that network: its code is not in the folder.
    again = fi.load("runs/example-network", network=Network(init, apply))
    print("action for an upright pole:", again.policy(jnp.zeros(4)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
