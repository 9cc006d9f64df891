"""Vine sampling (Schulman 2015, section 5.2): from states of a trajectory several actions each are tried, all under the same chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.types import InGraphTask, Key, Policy


def q_estimates(
    task: InGraphTask, policy: Policy, value: Callable[[Any], jax.Array], key: Key, states: Any, actions: Any, num_steps: int, gamma: Any
) -> jax.Array:
    """Discounted returns `[K, N]` of taking `actions [K, N, ...]` in the environment states `states [N, ...]` and following `policy`.

    A branch has `num_steps` decisions; beyond them, and beyond a time limit, `value(next_obs)` stands for the rest, in units of the
    environment's own rewards, which are what a branch adds up. The K branches of a state draw the same random numbers, in the environment
    and in the policy, so that their differences are the actions'."""
    num_states = actions.shape[1]
    world = task.resized(num_states)
    keys = jax.vmap(jax.random.split)(jax.random.split(key, num_steps))

    def branch(first_actions: Any) -> jax.Array:
        def one_step(c: tuple[Any, ...], xs: tuple[Any, Any]) -> tuple[tuple[Any, ...], None]:
            env, carry, total, weight = c
            i, (key_act, key_env) = xs
            action, carry, _ = policy.act(key_act, world.observe(env), carry)
            action = jax.tree.map(lambda a, b: jnp.where(i == 0, a, b), first_actions, action)
            env, outcome = world.step(key_env, env, action)
            cut = outcome.truncated | (i == num_steps - 1)
            rest = jnp.where(cut & ~outcome.terminated, gamma * value(outcome.next_obs), 0.0)
            total = total + weight * (outcome.reward + rest)
            going_on = ~(outcome.terminated | outcome.truncated)
            return (env, carry, total, jnp.where(going_on, gamma * weight, 0.0)), None

        begin = (states, policy.reset(num_states), jnp.zeros(num_states), jnp.ones(num_states))
        (_, _, total, _), _ = jax.lax.scan(one_step, begin, (jnp.arange(num_steps), (keys[:, 0], keys[:, 1])))
        return total

    return jax.vmap(branch)(actions)
