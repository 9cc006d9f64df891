"""EWC around PPO: two tasks in turn on one policy, without touching ppo.py.

Four numbers are shown and four actions can be taken. In the first task the right one is the place of the largest number; the second shows
its numbers in inputs of its own, and only the first two actions are ever right. The policy is linear, so that all they share is a bias for
each action: PPO alone moves it away from the actions that the second task has no use for, and the first task suffers. With
`core.fisher.anchored` around PPO's loss the bias stays, and what the second task needs goes into weights that the first does not use.

Run: `python examples/ewc_around_ppo.py [decisions of each task] [seed]`.
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

EPISODE, NUMBERS = 10, 4
STRENGTH = 100.0
"""Lambda, for an F that is a mean over decisions as the loss is."""


@dataclasses.dataclass(frozen=True)
class Pick:
    """One stream: reward 1 for the right action, in the first task or the `second`. The last of a task's five inputs is always 1."""

    second: bool
    obs_spec: ArraySpec = ArraySpec((2 * NUMBERS + 2,), "float32", -1.0, 1.0)
    action_spec: Discrete = Discrete(NUMBERS)
    max_episode_steps: int | None = EPISODE

    def init(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (NUMBERS,), minval=-1.0, maxval=1.0)

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        right = jnp.where(state[0] > 0.0, 0, 1) if self.second else jnp.argmax(state)
        return self.init(key), (action == right).astype(jnp.float32), jnp.bool_(False)

    def observe(self, state: jax.Array) -> jax.Array:
        shown = jnp.append(state, 1.0)
        nothing = jnp.zeros_like(shown)
        return jnp.concatenate([nothing, shown] if self.second else [shown, nothing])

    def legal(self, state: jax.Array) -> tuple[()]:
        return ()


@functools.partial(jax.jit, static_argnames="task")
def train(config: Any, task: Any, state: Any, anchor: Any, importance: Any, strength: Any, turns: Any) -> Any:
    """So many turns of PPO with the anchored loss. What anchors is an argument, never a constant: with and without are one program."""
    loss = fisher.anchored(ppo.loss, [anchor], [importance], strength)
    update = functools.partial(ppo.update, loss=loss)
    return jax.lax.fori_loop(0, turns, lambda _, state: ppo.step(config, task, state, update=update)[0], state)


@functools.partial(jax.jit, static_argnames="task")
def information(config: Any, task: Any, state: Any) -> Any:
    """F of the policy: over the observations it meets and the actions it draws there (its own labels). That of the value function, which
    has a network of its own here and may be learned anew, is 0."""
    _, seen, _ = data.rollout(config, task, ppo.policy, ppo.actor(state), state.collector, 128)

    def log_pi(params: Any, example: Any) -> jax.Array:
        return ppo.distribution(config, task, params, example[0][None], ()).log_prob(example[1][None])[0]

    return fisher.fisher_diagonal(log_pi, state.params, trees.as_rows((seen.obs, seen.action)))


def main(steps: int = 32_768, seed: int = 0, strength: float = STRENGTH) -> dict[str, tuple[float, float]]:
    """Prints, and returns, the mean greedy return of both tasks after the first, and after the second without and with EWC."""
    settings: dict[str, Any] = {"num_envs": 16, "num_steps": 16, "num_epochs": 4, "num_minibatches": 4, "learning_rate": 3e-3}
    config = ppo.Config(hidden=(), ent_coef=0.01, anneal_learning_rate=False, **settings)
    first, second = (InGraph(Pick(which), config.num_envs) for which in (False, True))
    turns = max(1, steps // ppo.steps_per_turn(config))
    found = {}

    def score(name: str, state: Any) -> None:
        each = [evaluate(ppo, config, task.resized(20), ppo.actor(state), 20, 1)["mean"] for task in (first, second)]
        print(f"{name:24} first task {each[0]:5.2f}, second task {each[1]:5.2f} of {EPISODE}")
        found[name] = (each[0], each[1])

    state = jax.jit(ppo.init, static_argnums=1)(config, first, jax.random.key(seed))
    nothing = jax.tree.map(jnp.zeros_like, state.params)
    state = train(config, first, state, nothing, nothing, 0.0, turns)
    score("after the first", state)
    importance = information(config, first, state)
    after = state._replace(collector=data.start(second, (), jax.random.key(seed + 1)))
    for name, each in (("after both, without EWC", 0.0), ("after both, with EWC", strength)):
        score(name, train(config, second, after, state.params, importance, each, turns))
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
