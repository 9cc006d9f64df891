"""Hindsight experience replay (Andrychowicz et al. 2017, arXiv:1707.01495), Algorithm 1, strategy "future" (section 4.5): a transition is
replayed as if a goal that its episode reached later had been the desired one.

Goals are chosen when a minibatch is read, so that the replay holds every transition once and each reading chooses anew.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flatirons.data.replay import Replay, Sample
from flatirons.types import FlatironsError, Key, Spec, Task

GOALS = ("achieved_goal", "desired_goal")


def check(task: Task) -> None:
    """Raises FlatironsError where goals cannot be exchanged."""
    obs = task.spec.obs
    if not (isinstance(obs, dict) and set(GOALS) <= set(obs)):
        raise FlatironsError(f"her_goals needs observations with {' and '.join(GOALS)}, and those of {task.name} have none: set it to 0")
    if task.spec.goal_reward is None:
        raise FlatironsError(
            f"her_goals needs to know what reward of {task.name} another goal would have earned: give the environment a method "
            "goal_reward(achieved, desired) of jax.numpy operations on arrays [n, d], or set her_goals to 0"
        )
    if task.spec.max_episode_steps is None:
        raise FlatironsError(f"her_goals looks ahead to an episode's end, and {task.name} has no time limit: give it max_episode_steps")


def relabelled(replay: Replay, spec: Spec, key: Key, sampled: Sample, start: jax.Array, env: jax.Array, num_goals: int) -> Sample:
    """`sampled` (over one step, from places `[n]`), of which `num_goals` in `num_goals` + 1 rows on average pursue another goal: what was
    achieved after this transition or a later one of its episode, each with equal chance. Their rewards are those of that goal."""
    assert spec.max_episode_steps is not None and spec.goal_reward is not None
    num_starts = replay.row.shape[0]
    num_rows = replay.frames["achieved_goal"].shape[0]
    ahead = jnp.arange(spec.max_episode_steps)[None]
    at = (start[:, None] + ahead) % num_starts
    ended = replay.terminated[at, env[:, None]] | replay.truncated[at, env[:, None]]
    newer = (replay.next - 1 - start) % num_starts
    # How many transitions of the episode are there from this one on: up to the first end, or the newest.
    last = jnp.minimum(jnp.where(jnp.any(ended, axis=1), jnp.argmax(ended, axis=1), spec.max_episode_steps - 1), newer)
    chosen, pursued = jax.random.uniform(key, (2, start.shape[0]))
    later = (start + jnp.minimum((chosen * (last + 1)).astype(jnp.int32), last)) % num_starts
    goal = replay.frames["achieved_goal"][(replay.row[later, env] + 1) % num_rows, env]
    other = pursued < num_goals / (num_goals + 1)
    desired = jnp.where(other[:, None], goal, sampled.obs["desired_goal"])
    reward = jnp.where(other, spec.goal_reward(sampled.next_obs["achieved_goal"], desired), sampled.reward)

    def pursuing(obs: Any) -> Any:
        return obs | {"desired_goal": desired}

    return sampled._replace(obs=pursuing(sampled.obs), next_obs=pursuing(sampled.next_obs), reward=reward)
