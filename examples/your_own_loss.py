"""A loss of one's own around a system's: PPO whose policy is held near an anchor, without touching ppo.py.

`update` takes the loss as an argument, so anything that adds to a loss works for every system: here a quadratic pull towards the
parameters before the second task. Run: `python examples/your_own_loss.py [decisions]`.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from flatirons import envs
from flatirons.systems import ppo
from flatirons.types import Metrics


def anchored_loss(anchor: Any, strength: Any, config: Any, task: Any, params: Any, batch: Any) -> tuple[jax.Array, Metrics]:
    """PPO's loss plus strength/2 times the squared distance from the anchor."""
    loss, metrics = ppo.loss(config, task, params, batch)
    distances = jax.tree.map(lambda p, a: jnp.sum(jnp.square(p - a)), params, anchor)
    pull = 0.5 * strength * sum(jax.tree.leaves(distances))
    return loss + pull, metrics | {"pull": pull}


@functools.partial(jax.jit, static_argnames="task")
def turn(config: Any, task: Any, state: Any, anchor: Any, strength: Any) -> tuple[Any, Metrics]:
    """One turn of PPO with the anchored loss. Anchor and strength are arguments, never constants: one compilation serves every value."""
    update = functools.partial(ppo.update, loss=functools.partial(anchored_loss, anchor, strength))
    return ppo.step(config, task, state, update=update)


def main(total_steps: int = 16_384) -> None:
    config = ppo.Config(total_steps=total_steps, num_envs=8, num_steps=32, num_epochs=4, num_minibatches=4)
    task = envs.make("jax:CartPole-v1", num_envs=config.num_envs)
    start = ppo.init(config, task, jax.random.key(0))
    for strength in (0.0, 10.0):
        state = start
        for _ in range(total_steps // ppo.steps_per_turn(config)):
            state, metrics = turn(config, task, state, start.params, strength)
        distance = jnp.sqrt(sum(jnp.sum(jnp.square(p - a)) for p, a in zip(jax.tree.leaves(state.params), jax.tree.leaves(start.params))))
        print(f"strength {strength:4.1f}: moved {float(distance):.2f}, entropy {float(metrics['entropy']):.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
