"""Whole episodes of several tasks at once, each task with a policy of its own, as rows to learn from (Finn et al. 2017, Algorithm 3).

A task here is a draw of a distribution (`flatirons.envs.meta`): in-graph the environment is `placed` in it, on a host the batch has a
method `place`. Episodes have a fixed greatest length H, `spec.max_episode_steps`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from flatirons.core import baseline, returns, trees
from flatirons.data import rollout as data
from flatirons.types import Key, Task, Transition


class Batch(NamedTuple):
    """Rows `[M, ...]` of one task: obs, and `answer`, that is what was to be said or, where a policy acts, the action. Then also the
    advantage, the log-probability that the action was drawn with, and weight, 0 for rows after an episode's end; else these are `()`."""

    obs: Any
    answer: Any
    advantage: Any = ()
    old_log_prob: Any = ()
    weight: Any = ()


class Sampled(NamedTuple):
    """Batches `[tasks, rows, ...]` of episodes; their undiscounted returns and their lengths `[tasks, episodes]`."""

    batch: Any
    returns: Any
    lengths: Any


def trajectories(
    config: Any,
    task: Task,
    policies: Callable,
    distribution: Callable,
    params: Any,
    tasks: Any,
    collector: Any,
    key: Key,
    count: int,
) -> tuple[Sampled, Any]:
    """`count` whole episodes of each of `tasks`, drawn with its own `params [tasks, ...]`, and the Collector after them.

    `policies` and `distribution` are module-level functions of a system: a Policy over streams that come task by task, and
    `distribution(config, task, params, obs [M, ...])` of one task. In-graph all episodes run side by side from `key`, and the Collector is
    `()`; on a host an environment plays the episodes of its task one after the other. Advantages are those over a linear value function,
    fitted to each task's returns; each task's are standardised."""
    num, horizon = jax.tree.leaves(tasks)[0].shape[0], cast(int, task.spec.max_episode_steps)
    if task.in_graph:
        wide, begin = _start(task, tasks, count, key)
        _, flat, _ = data.rollout(config, wide, policies, params, begin, horizon)
        shaped = jax.tree.map(lambda x: x.reshape((horizon, num, count, *x.shape[2:])).swapaxes(0, 1), flat)
    else:
        cast(Any, task).place(tasks)
        collector, flat, _ = data.rollout(config, task, policies, params, collector, count * horizon)

        def by_task(x: Any) -> Any:
            x = x.reshape((count, horizon, num, *x.shape[2:]))
            return x.transpose((2, 1, 0, *range(3, x.ndim)))

        shaped = jax.tree.map(by_task, flat)
    return _as_batches(config, task, distribution, params, shaped._replace(next_obs=(), first=())), collector


def _start(task: Any, tasks: Any, streams: int, key: Key) -> tuple[Any, data.Collector]:
    """`streams` environments of each task next to one another, at the start of an episode."""
    key_reset, key_run = jax.random.split(key)
    wide = task.resized(jax.tree.leaves(tasks)[0].shape[0] * streams)
    env = wide.reset(key_reset)
    each = jax.tree.map(lambda x: jnp.repeat(x, streams, axis=0), tasks)
    env = env._replace(inner=wide.env.placed(each, env.inner))
    zeros = jnp.zeros(wide.num_envs)
    return wide, data.Collector(key_run, (), env, (), zeros, zeros.astype(jnp.int32))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _as_batches(config: Any, task: Task, distribution: Callable, params: Any, episodes: Transition) -> Sampled:
    """Episodes `[tasks, H, K, ...]` and the parameters that drew them, as rows."""

    def one(params: Any, t: Transition) -> Sampled:
        ended = (t.terminated | t.truncated).astype(jnp.float32)
        # Where an episode ended early another began; its rows do not count.
        weight = (jnp.cumsum(ended, axis=0) - ended == 0).astype(jnp.float32)
        advantage = advantages(t, weight, config.gamma, config.gae_lambda)
        rows = trees.as_rows(Batch(t.obs, t.action, advantage, (), weight))
        rows = rows._replace(old_log_prob=distribution(config, task, params, rows.obs).log_prob(rows.answer))
        return Sampled(rows, jnp.sum(weight * t.reward, axis=0), jnp.sum(weight, axis=0))

    return jax.vmap(one)(params, episodes)


def advantages(episodes: Transition, weight: Any, gamma: Any, gae_lambda: Any) -> jax.Array:
    """Of one task's episodes `[H, K, ...]` over a linear value function fitted to their discounted returns; weighted mean 0, deviation 1.

    The horizon belongs to the task: the value after an episode's end is 0, whether a limit cut it or not, as in the paper."""
    t = episodes
    ended = t.terminated | t.truncated
    never, none = jnp.zeros_like(ended), jnp.zeros_like(t.reward)
    target = returns.gae(t.reward, none, none, ended, never, gamma, 1.0)
    time = jnp.broadcast_to(jnp.arange(ended.shape[0], dtype=jnp.float32)[:, None], ended.shape)
    inputs = baseline.features(t.obs, time)
    flat = inputs.reshape((-1, inputs.shape[-1]))
    value = (flat @ baseline.linear_fit(flat, target.reshape(-1), weight.reshape(-1))).reshape(target.shape)
    following = jnp.concatenate([value[1:], none[:1]])
    advantage = returns.gae(t.reward, value, following, ended, never, gamma, gae_lambda)
    mean = jnp.average(advantage, weights=weight)
    deviation = jnp.sqrt(jnp.average(jnp.square(advantage - mean), weights=weight))
    return (advantage - mean) / (deviation + 1e-8)
