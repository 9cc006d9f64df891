"""The outer loop of every system that learns from a replay: act for a while, store what happened, take some gradient steps.

A Config here has `total_steps`, `num_envs`, `train_every`, `gradient_steps`, `batch_size`, `buffer_size`, `learning_starts`, `tau` and
`overlap`; a State has `params`, `target`, `opt_state`, `replay`, `collector`, `updates` and `behind`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatirons.core import resources
from flatirons.data import replay as memory
from flatirons.data import rollout as data
from flatirons.types import ArraySpec, FlatironsError, Metrics, Task


def check(config: Any, task: Task, extra_bytes: int = 0) -> None:
    """Refuse settings that no replay can serve, or that the machine's memory cannot hold. Raises FlatironsError."""
    if min(config.num_envs, config.train_every, config.gradient_steps, config.batch_size) < 1:
        raise FlatironsError("num_envs, train_every, gradient_steps and batch_size must be at least 1")
    if config.tau is not None and config.tau > 1.0:
        raise FlatironsError(f"tau={config.tau:g} would move the target beyond the online network: give at most 1, which copies it")
    if config.train_every % config.num_envs:
        raise FlatironsError(f"num_envs={config.num_envs} does not divide train_every={config.train_every}: {_same_ratio(config)}")
    stack = max(s.stack for s in jax.tree.leaves(task.spec.obs, is_leaf=lambda x: isinstance(x, ArraySpec)))
    if config.buffer_size % config.num_envs or config.buffer_size < config.train_every * (stack + 1):
        raise FlatironsError(
            f"buffer_size={config.buffer_size} must be a multiple of num_envs={config.num_envs} and at least "
            f"{config.train_every * (stack + 1)}, the most rows that train_every={config.train_every} decisions can fill"
        )
    if config.batch_size > config.buffer_size:
        raise FlatironsError(f"buffer_size={config.buffer_size} is smaller than a batch: make it at least batch_size={config.batch_size}")
    needed = memory.num_bytes(task.spec, config.num_envs, config.buffer_size) + extra_bytes
    resources.require_memory(needed, f"a replay of {config.buffer_size:,} transitions (buffer_size)")


def notes(config: Any) -> tuple[str, ...]:
    """What a person should know before the start."""
    if config.learning_starts < config.total_steps:
        return ()
    return (f"learning_starts={config.learning_starts:_} is not below total_steps={config.total_steps:_}: nothing will be learned",)


def _same_ratio(config: Any) -> str:
    """The train_every nearest to the Config's own that num_envs divides, with the gradient_steps that keep the updates per decision.

    A multiple of num_envs alone would change that ratio without a word: the fewest decisions that keep it are those of the ratio in lowest
    terms, and any multiple of both will do."""
    common = math.gcd(config.gradient_steps, config.train_every)
    updates, decisions = config.gradient_steps // common, config.train_every // common
    smallest = math.lcm(config.num_envs, decisions)
    train_every = max(1, round(config.train_every / smallest)) * smallest
    ratio = f"{updates} update{'' if updates == 1 else 's'} {'a decision' if decisions == 1 else f'every {decisions} decisions'}"
    return f"train_every={train_every} and gradient_steps={train_every // decisions * updates} keep {ratio}"


def gradient_steps(one: Callable[[Any, Any], tuple[Any, Metrics]], carry: Any, num: int, learning: Any) -> tuple[Any, Metrics]:
    """`carry, metrics = one(i, carry)`, `num` times where `learning` (a scalar that may be traced) and not at all elsewhere: the carry, and
    the mean metrics, 0 where there were none."""
    like = jax.eval_shape(lambda c: one(0, c)[1], carry)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(like))

    def add(i: Any, c: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        carry, metrics = one(i, c[0])
        return carry, jax.tree.map(jnp.add, c[1], metrics)

    if num == 1:
        # Before JAX 0.10 matrix products inside a loop use one core of a CPU, inside a branch all of them.
        return jax.lax.cond(learning, lambda c: add(0, c), lambda c: c, (carry, zeros))
    # A loop of none before learning starts: under vmap a masked pass over the parameters, where a cond would run both branches.
    carry, sums = jax.lax.fori_loop(0, jnp.where(learning, num, 0), add, (carry, zeros))
    return carry, {name: total / num for name, total in sums.items()}


@jax.jit
def copied(actor: Any) -> Any:
    """The same values in arrays of their own, which no later update is given to write over."""
    return jax.tree.map(jnp.copy, actor)


def turn(
    config: Any, task: Task, policy: Callable, actor: Callable[[Any], Any], state: Any, update: Callable[..., Any]
) -> tuple[Any, Metrics]:
    """`train_every` decisions, then a training: the State and its metrics. With `overlap` the decisions are those of the parameters from
    before the last training (`state.behind`), so that on a host the environments step while the learner computes."""
    acting = state.behind if config.overlap else actor(state)
    collector, experience, episodes = data.rollout(config, task, policy, acting, state.collector, config.train_every // config.num_envs)
    # On a host this copy is ready once the training before is done, and the next decisions wait for it alone.
    behind = copied(actor(state)) if config.overlap else ()
    state, metrics = update(config, task, state._replace(collector=(), behind=()), experience)
    return state._replace(collector=collector, behind=behind), metrics | {"episodes": episodes}


def interrupted(state: Any) -> Any:
    """A State whose host environments were lost: the running episodes end as truncated in the replay."""
    return state._replace(replay=memory.interrupt(state.replay))
