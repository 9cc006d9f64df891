"""What systems share that learn from the newest trajectory alone: running moments, advantages, the outer loop.

A Config here has `num_envs`, `num_steps`, `total_steps`, `gamma`, `gae_lambda`, `normalise_obs` and `normalise_reward`; a State has
`params`, `normaliser`, `collector` and `updates`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.core import normalise, returns, trees
from flatirons.core.spread import spread
from flatirons.data import rollout as data
from flatirons.types import ArraySpec, FlatironsError, Metrics, Task, Transition


class Normaliser(NamedTuple):
    """Running moments of observations (one per array) and of the discounted return; `()` where not asked for."""

    obs: Any
    reward: Any
    discounted: Any


class Actor(NamedTuple):
    """What acting needs: the policy's parameters and the frozen observation moments."""

    params: Any
    obs: Any


class Batch(NamedTuple):
    """Rows `[M, ...]`: prepared obs, and all that theta_old says of them; `old` is its distribution where a system asks for it.

    For a policy with a memory they are whole sequences `[M, T, ...]`, `first` marks where episodes begin within them, and `memory`
    `[M, units]` is from before them; otherwise these two are `()`."""

    obs: Any
    legal: Any
    action: Any
    old_log_prob: Any
    old_value: Any
    advantage: Any
    target: Any
    old: Any = ()
    first: Any = ()
    memory: Any = ()


def steps_per_turn(config: Any) -> int:
    """Decisions in one iteration: N T."""
    return config.num_envs * config.num_steps


def check(config: Any, iteration: int) -> None:
    """Refuse counts that make no `iteration`, that being its decisions in all. Raises FlatironsError."""
    if min(config.num_envs, config.num_steps) < 1:
        raise FlatironsError("num_envs and num_steps must be at least 1")
    if config.total_steps < iteration:
        raise FlatironsError(f"total_steps={config.total_steps} is less than one iteration of {iteration} decisions: raise it")


def _is_spec(x: Any) -> bool:
    return isinstance(x, ArraySpec)


def _is_number(spec: ArraySpec) -> bool:
    return spec.dtype == "float32"


def _specs(task: Task) -> list[ArraySpec]:
    return jax.tree.leaves(task.spec.obs, is_leaf=_is_spec)


def start(config: Any, task: Task) -> Normaliser:
    """Nothing seen."""
    return Normaliser(
        obs=tuple(normalise.start(s.shape) if _is_number(s) else () for s in _specs(task)) if config.normalise_obs else (),
        reward=normalise.start(()) if config.normalise_reward else (),
        discounted=jnp.zeros(task.num_envs) if config.normalise_reward else (),
    )


def prepare(task: Task, moments: Any, obs: Any) -> Any:
    """Observations as the networks get them: float arrays standardised where there are moments, all else as it is."""
    if moments == ():
        return obs
    specs, shape = jax.tree.flatten(task.spec.obs, is_leaf=_is_spec)
    parts = [normalise.standardise(m, x) if _is_number(s) else x for s, m, x in zip(specs, moments, jax.tree.leaves(obs), strict=True)]
    return jax.tree.unflatten(shape, parts)


def advantages(
    config: Any, normaliser: Normaliser, experience: Transition, obs: Any, old: Any, old_value: Any, next_value: Any
) -> tuple[Batch, Normaliser]:
    """theta_old's view of a trajectory, `[T, B, ...]` as it is, and the reward moments after it.

    `obs` are prepared; `old` is theta_old's pi(. | s), `old_value` its V(s), `next_value` its V of the true successors. Advantages are
    GAE's (1506.02438)."""
    reward = experience.reward
    if config.normalise_reward:
        ended = experience.terminated | experience.truncated
        carry, sums = returns.discounted_sum(reward, ended, normaliser.discounted, config.gamma)
        normaliser = normaliser._replace(reward=normalise.observe(normaliser.reward, sums.reshape(-1)), discounted=carry)
        reward = normalise.rescale(normaliser.reward, reward)
    advantage = returns.gae(reward, old_value, next_value, experience.terminated, experience.truncated, config.gamma, config.gae_lambda)
    old_log_prob = old.log_prob(experience.action)
    return Batch(obs, experience.legal, experience.action, old_log_prob, old_value, advantage, advantage + old_value, old), normaliser


def next_values(value: Callable[[Any], jax.Array], old_value: jax.Array, next_obs: Any, truncated: jax.Array) -> jax.Array:
    """V of the true successors, `[T, B]`, for `advantages`; `value(obs [t, B, ...])` is theta_old's, `old_value [T, B]` its V(s).

    A successor is the next row's state, or the end of an episode, whose value nobody reads; only where an episode was cut it is neither,
    and then all are judged."""

    def of_the_next_row() -> jax.Array:
        return jnp.concatenate([old_value[1:], value(jax.tree.map(lambda x: x[-1:], next_obs))])

    return jax.lax.cond(jnp.any(truncated), lambda: value(next_obs), of_the_next_row)


def rows(batch: Batch) -> Batch:
    """A trajectory `[T, B, ...]` as rows `[T B, ...]`."""
    return spread(trees.as_rows(batch))


def sequences(batch: Batch, first: Any, before: Any, after: Any, length: int | None) -> Batch:
    """A trajectory `[T, B, ...]` as sequences of `length` decisions (None: T), `[B T / length, length, ...]`.

    `before` `[B, units]` is the memory that it began with and `after` `[T, B, units]` the one after each of its steps: a sequence begins
    with what theta_old remembered there."""
    row = first.shape[0] if length is None else length

    def cut(x: Any) -> Any:
        x = jnp.swapaxes(x, 0, 1)
        return x.reshape((-1, row, *x.shape[2:]))

    def begin(before: Any, after: Any) -> Any:
        x = jnp.swapaxes(jnp.concatenate([before[None], after[row - 1 : -1 : row]]), 0, 1)
        return x.reshape((-1, *x.shape[2:]))

    return spread(jax.tree.map(cut, batch._replace(first=first))._replace(memory=jax.tree.map(begin, before, after)))


def over_time(tree: Any) -> Any:
    """`[B, T, ...]` as `[T, B, ...]`, and the other way round."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def value_metrics(batch: Batch) -> Metrics:
    """How well the value function that the advantages came from told the returns."""
    residual = jnp.var(batch.target - batch.old_value)
    return {
        "explained_variance": 1.0 - residual / jnp.maximum(jnp.var(batch.target), 1e-8),
        "value": jnp.mean(batch.old_value),
    }


def seen(config: Any, task: Task, normaliser: Normaliser, obs: Any) -> Normaliser:
    """The moments with a trajectory's observations `[T, B, *obs]` added. Called after learning, so that theta_old and theta see
    observations alike and the first ratio is 1."""
    if not config.normalise_obs:
        return normaliser
    parts = zip(_specs(task), normaliser.obs, jax.tree.leaves(obs), strict=True)
    added = tuple(normalise.observe(m, jnp.asarray(x).reshape((-1, *s.shape))) if _is_number(s) else m for s, m, x in parts)
    return normaliser._replace(obs=added)


def turn(
    config: Any, task: Task, policy: Callable, actor: Callable[[Any], Any], state: Any, update: Callable[..., Any]
) -> tuple[Any, Metrics]:
    """`num_steps` decisions of every environment, then an update: the State and its metrics."""
    collector, experience, episodes = data.rollout(config, task, policy, actor(state), state.collector, config.num_steps)
    state, metrics = update(config, task, state._replace(collector=()), experience)
    return state._replace(collector=collector), metrics | {"episodes": episodes}


def interrupted(state: Any) -> Any:
    """A State whose host environments were lost: the discounted sums of their episodes begin anew."""
    normaliser = state.normaliser
    return state._replace(normaliser=normaliser._replace(discounted=jax.tree.map(jnp.zeros_like, normaliser.discounted)))
