"""What a policy expects of the states it visits, and what it then gets: the overestimation of van Hasselt 2016, section 4.

Both are means over all states of greedy episodes: max_a Q(s, a), and the discounted return from s on, which is bootstrapped with the
estimate itself where an episode was truncated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.data.acting import Decider
from flatirons.run.evaluate import EPISODE_CAP
from flatirons.types import FlatironsError, HostTask, InGraphTask, Key, Outcome, Task, TimeStep


def demand_estimate(system: Any, name: str) -> None:
    """Raises FlatironsError for a system that does not say what it expects of a state."""
    if not hasattr(system, "estimate"):
        raise FlatironsError(f"{name} keeps no estimate of a state's value for its policy to be held to; dqn, ddpg and sac do")


def overestimation(system: Any, config: Any, task: Task, actor: Any, seed: int) -> dict[str, Any]:
    """`{"value_estimate", "discounted_return", "overestimation", "states"}` over one greedy episode of every environment of `task`, whose
    rewards are those that the estimate was learned of."""
    cap = task.spec.max_episode_steps or EPISODE_CAP
    measure: Callable = _in_graph if task.in_graph else _on_host
    value, got, states = (float(x) for x in measure(system, config, task, actor, seed, cap))
    return {
        "value_estimate": value / states,
        "discounted_return": got / states,
        "overestimation": (value - got) / states,
        "states": int(states),
    }


def _weight(gamma: Any, steps: Any) -> Any:
    """1 + gamma + ... over `steps` terms: how often a reward after `steps - 1` others counts in the sum of all states' returns."""
    undiscounted = gamma == 1.0
    return jnp.where(undiscounted, steps, (1.0 - gamma**steps) / (1.0 - gamma + undiscounted))


def _successor(timestep: TimeStep, outcome: Outcome) -> TimeStep:
    """The state that was cut, whose mask nobody knows: that of the one before it says nothing of it."""
    return timestep._replace(obs=outcome.next_obs, legal=())


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _first_episodes(system: Any, task: InGraphTask, cap: int, config: Any, actor: Any, key: Key) -> tuple[Any, Any, Any]:
    acting = system.policy(config, task, actor, greedy=True)
    key, key_reset = jax.random.split(key)
    start = (jnp.int32(0), key, task.reset(key_reset), acting.reset(task.num_envs), jnp.zeros(task.num_envs, bool), jnp.zeros(3))

    def one_step(c: tuple[Any, ...]) -> tuple[Any, ...]:
        t, key, env, carry, done, sums = c
        key, key_act, key_env = jax.random.split(key, 3)
        timestep = task.observe(env)
        value = system.estimate(config, task, actor, timestep)
        action, carry, _ = acting.act(key_act, timestep, carry)
        env, outcome = task.step(key_env, env, action)
        after = system.estimate(config, task, actor, _successor(timestep, outcome))
        cut = ~outcome.terminated & (outcome.truncated | (t + 1 >= cap))
        got = _weight(config.gamma, t + 1.0) * (outcome.reward + jnp.where(cut, config.gamma * after, 0.0))
        alive = ~done
        sums = sums + jnp.stack([jnp.sum(jnp.where(alive, x, 0.0)) for x in (value, got, jnp.ones_like(value))])
        return t + 1, key, env, carry, done | outcome.terminated | outcome.truncated, sums

    *_, sums = jax.lax.while_loop(lambda c: (c[0] < cap) & ~jnp.all(c[4]), one_step, start)
    return sums


def _in_graph(system: Any, config: Any, task: InGraphTask, actor: Any, seed: int, cap: int) -> Any:
    return jax.device_get(_first_episodes(system, task, cap, config, actor, jax.random.key(seed)))


def _on_host(system: Any, config: Any, task: HostTask, actor: Any, seed: int, cap: int) -> Any:
    decide = Decider(system.policy, task, config, greedy=True)
    decide.set_actor(actor)
    decide.set_key(jax.random.key(seed))
    estimate = jax.jit(lambda actor, timestep: system.estimate(config, task, actor, timestep))
    carry = system.policy(config, task, actor, greedy=True).reset(task.num_envs)
    timestep: TimeStep = task.reset(seed)
    gamma = float(config.gamma)
    sums, done = np.zeros(3), np.zeros(task.num_envs, bool)
    for t in range(cap):
        value = np.asarray(estimate(actor, timestep))
        action, carry, _ = decide(timestep, carry)
        outcome, following = task.step(action)
        cut = ~outcome.terminated & (outcome.truncated | (t + 1 >= cap))
        tail = np.where(cut, gamma * np.asarray(estimate(actor, _successor(timestep, outcome))), 0.0) if cut.any() else 0.0
        got = _weight(gamma, t + 1.0) * (outcome.reward + tail)
        sums += [value[~done].sum(), got[~done].sum(), (~done).sum()]
        done |= outcome.terminated | outcome.truncated
        if done.all():
            break
        timestep = following
    return sums
