"""How sure a SAC critic is: dropout in its layers while it learns, without touching sac.py, and many stochastic passes afterwards.

`bayes.with_dropout` is a function of a loss, as every thing here that cuts across systems. The deviation over passes should be larger where
the replay has nothing: here at speeds that a pendulum never reaches. Run: `python examples/uncertainty_of_a_critic.py [decisions]`.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from flatirons import envs
from flatirons.core import bayes
from flatirons.systems import sac

RATE = 0.1


def of_critics(path: tuple[Any, ...], leaf: Any) -> bool:
    """Only the critics have dropout; the policy and the temperature are as they were."""
    return path[0].key == "critics" and bayes.is_weight(path, leaf)


@functools.partial(jax.jit, static_argnames="task", donate_argnames="state")
def turn(config: Any, task: Any, state: Any, key: jax.Array) -> Any:
    """One turn of SAC whose critics learn with dropout: a new mask each turn."""
    loss = bayes.with_dropout(sac.loss, key, RATE, where=of_critics)
    return sac.step(config, task, state, update=functools.partial(sac.update, loss=loss))[0]


def main(total_steps: int = 8_192) -> None:
    config: Any = sac.Config(
        total_steps=total_steps, num_envs=4, train_every=4, gradient_steps=1, batch_size=64, buffer_size=16_384, learning_starts=256,
        random_steps=256, learning_rate=1e-3, hidden=(64, 64),
    )  # fmt: skip
    task: Any = envs.make("jax:Pendulum-v1", config.num_envs)
    state = jax.jit(sac.init, static_argnums=1)(config, task, jax.random.key(0))
    for i in range(total_steps // sac.steps_per_turn(config)):
        state = turn(config, task, state, jax.random.key(i))

    def q_value(critics: Any, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return sac.q_values(config, task, critics, *pair)[0]

    angle = jnp.linspace(-jnp.pi, jnp.pi, 9)
    for name, speed in (("as in the replay", 2.0), ("never seen", 40.0)):
        obs = jnp.stack([jnp.cos(angle), jnp.sin(angle), jnp.full_like(angle, speed)], axis=-1)
        pair = (obs, jnp.zeros((len(angle), 1)))
        found = bayes.moments(bayes.predictive(q_value, state.params["critics"], pair, jax.random.key(1), 400, rate=RATE))
        print(f"speed {speed:4.1f} rad/s, {name}: Q {float(found.mean.mean()):8.2f} ± {float(jnp.sqrt(found.variance).mean()):.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
