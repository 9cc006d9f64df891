"""EWC around PPO: two tasks in turn on one network, without touching ppo.py.

A number is shown together with the task's sign, +1 or -1; in the first task the right action says whether the number is positive, in the
second whether it is negative. With `core.fisher.anchored` around PPO's loss, lambda says how firmly the first is held: a small one lets
the second be learned in its place, a large one leaves no room for the second.

Run: `python examples/ewc_around_ppo.py [decisions of each task]`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.core import fisher, trees
from flatirons.data import rollout as data
from flatirons.envs.ingraph import InGraph
from flatirons.run.evaluate import evaluate
from flatirons.systems import ppo
from flatirons.types import ArraySpec, Discrete

EPISODE = 10


@dataclasses.dataclass(frozen=True)
class Sign:
    """One stream: reward 1 where action 1 was taken for a number of the task's sign, or action 0 for another."""

    sign: float
    obs_spec: ArraySpec = ArraySpec((2,), "float32", -1.0, 1.0)
    action_spec: Discrete = Discrete(2)
    max_episode_steps: int | None = EPISODE

    def init(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (), minval=-1.0, maxval=1.0)

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        reward = ((state * self.sign > 0) == (action == 1)).astype(jnp.float32)
        return self.init(key), reward, jnp.bool_(False)

    def observe(self, state: jax.Array) -> jax.Array:
        return jnp.stack([state, jnp.float32(self.sign)])

    def legal(self, state: jax.Array) -> tuple[()]:
        return ()


@functools.partial(jax.jit, static_argnames="task")
def train(config: Any, task: Any, state: Any, anchor: Any, importance: Any, strength: Any, turns: Any) -> Any:
    """So many turns of PPO with the anchored loss. What anchors is an argument, never a constant: both tasks share one program."""
    loss = fisher.anchored(ppo.loss, [anchor], [importance], strength)
    update = functools.partial(ppo.update, loss=loss)
    return jax.lax.fori_loop(0, turns, lambda _, state: ppo.step(config, task, state, update=update)[0], state)


@functools.partial(jax.jit, static_argnames="task")
def information(config: Any, task: Any, state: Any) -> Any:
    """F of policy and value function: over the observations of one trajectory and the actions that the policy drew there (its own labels),
    and of V as the mean of a Gaussian of variance 1, whose expected squared score is (dV / d theta)²."""
    _, seen, _ = data.rollout(config, task, ppo.policy, ppo.actor(state), state.collector, 64)
    obs, action = trees.as_rows((seen.obs, seen.action))

    def log_pi(params: Any, example: Any) -> jax.Array:
        return ppo.distribution(config, task, params, example[0][None], ()).log_prob(example[1][None])[0]

    def value(params: Any, obs: Any) -> jax.Array:
        return ppo.value(config, task, params, obs[None])[0]

    of_policy = fisher.fisher_diagonal(log_pi, state.params, (obs, action))
    of_value = fisher.fisher_diagonal(value, state.params, obs)
    return jax.tree.map(jnp.add, of_policy, of_value)


def main(steps: int = 8_192) -> None:
    config = ppo.Config(
        num_envs=16, num_steps=16, num_epochs=4, num_minibatches=4, hidden=(32,), learning_rate=3e-3, anneal_learning_rate=False
    )
    first, second = (InGraph(Sign(sign), config.num_envs) for sign in (1.0, -1.0))
    turns = max(1, steps // ppo.steps_per_turn(config))

    def scores(state: Any) -> str:
        found = [evaluate(ppo, config, task.resized(20), ppo.actor(state), 20, 1)["mean"] for task in (first, second)]
        return f"first task {found[0]:4.1f}, second task {found[1]:4.1f} of {EPISODE}"

    state = jax.jit(ppo.init, static_argnums=1)(config, first, jax.random.key(0))
    nothing = jax.tree.map(jnp.zeros_like, state.params)
    state = train(config, first, state, nothing, nothing, 0.0, turns)
    print(f"after the first task:      {scores(state)}")
    importance = information(config, first, state)
    after = state._replace(collector=data.start(second, (), jax.random.key(1)))
    for name, strength in (("without a penalty", 0.0), ("lambda 100", 100.0), ("lambda 1,000", 1_000.0)):
        end = train(config, second, after, state.params, importance, strength, turns)
        print(f"then the second, {name}: {scores(end)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
