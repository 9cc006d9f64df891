"""Scoring a policy: greedy episodes of raw reward on an environment of their own, the same for a given seed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.data import rollout
from flatirons.envs.host import HostBatch
from flatirons.run import folder
from flatirons.systems import system_name
from flatirons.types import FlatironsError, HostTask, InGraphTask, Key, Task

EPISODE_CAP = 27_000
"""Decisions after which an episode of a task without a time limit is cut: 30 minutes of Atari at 60 frames and 4 a decision."""
HOST_ENVS = 8


class Stopped(Exception):
    """An evaluation given up because its `stopped` said so."""


def envs_for(episodes: int, *, in_graph: bool) -> int:
    """How many environments to score that many episodes on: one each in-graph (at most 1024), at most 8 on a host."""
    return min(episodes, 1024 if in_graph else HOST_ENVS)


def evaluate(
    system: Any, config: Any, task: Task, actor: Any, episodes: int, seed: int, stopped: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Score `actor` on `episodes` greedy episodes of `task`, an evaluation twin (`envs.make(..., training=False)`).

    Every environment gives a number of episodes fixed beforehand, so that short episodes do not count for more. Observation moments are
    part of the actor and stay as they are. Returns {"system", "task", "episodes", "mean", "std", "min", "max", "returns", "lengths"}:
    undiscounted returns, lengths in decisions, std over episodes (population); and "success", the share of episodes that ended with their
    goal reached, where that is known (`_success` says how). Deterministic for a seed, as far as the environment is.
    A system whose quality is not a return has `score(config, task, actor, episodes, seed) -> {"mean": higher is better, ...}`, and what it
    gives stands in the place of mean, std, ..., lengths.
    Raises FlatironsError when episodes < 1, or when the task is a host's that faults or whose episodes do not end; Stopped as soon as
    `stopped` is True, which a host's task asks before every decision, an in-graph one between two lots of environments.
    """
    if episodes < 1:
        raise FlatironsError(f"episodes is {episodes}: give at least 1")
    name = system_name(system)
    if "score" in vars(system):
        return {"system": name, "task": task.name, "episodes": episodes, **system.score(config, task, actor, episodes, seed)}
    cap = task.spec.max_episode_steps or EPISODE_CAP
    score: Callable = _in_graph if task.in_graph else _on_host
    returns, lengths, last, reached, cut = score(system.policy, config, task, actor, episodes, seed, cap, stopped)
    returns = np.asarray(returns, np.float64)
    if cut and task.spec.max_episode_steps is None:
        folder.warn(f"{task.name} has no time limit, so {cut} of {episodes} episodes were cut at {cap} decisions and count as they stood")
    return {
        "system": name,
        "task": task.name,
        "episodes": episodes,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "min": float(np.min(returns)),
        "max": float(np.max(returns)),
        "returns": [float(x) for x in returns],
        "lengths": [int(x) for x in lengths],
        **_success(task, last, reached),
    }


PROBES = (0.0, *(10.0**k for k in range(-4, 5)))
"""How far goals are off, in every coordinate, whose rewards tell whether a task has but two."""


def _success(task: Task, last_reward: np.ndarray, reached: np.ndarray) -> dict[str, float]:
    """The share of episodes with the goal reached at the end; empty where nobody knows.

    It is what the environment said (`reached` `[episodes]`), where it did of each of them. Else the last rewards tell, if they can be
    nothing but reached or not: where `goal_reward` has two values over `PROBES`, the larger one at the goal, and every episode ended on
    one of the two. With a dense reward, or a cost of actions beside a sparse one, no reward stands for a goal reached.
    """
    if not np.isnan(reached).any():
        return {"success": float(np.mean(reached))}
    # A wrapper that flattens observations hides which numbers are the goal.
    if task.spec.goal_reward is None or not (isinstance(task.spec.obs, dict) and "desired_goal" in task.spec.obs):
        return {}
    shape = (len(PROBES), *task.spec.obs["desired_goal"].shape)
    off = np.broadcast_to(np.reshape(np.array(PROBES, np.float32), (-1, *[1] * (len(shape) - 1))), shape)
    earned = np.asarray(task.spec.goal_reward(jnp.zeros(shape), jnp.asarray(off)), np.float32)
    values, last_reward = np.unique(earned), np.asarray(last_reward, np.float32)
    if len(values) != 2 or earned[0] != values[1] or not np.isin(last_reward, values).all():
        return {}
    return {"success": float(np.mean(last_reward == values[1]))}


# ------------------------------------------------------------------------------------------------------------- in-graph


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _first_episodes(policy: Callable, task: InGraphTask, cap: int, config: Any, actor: Any, key: Key) -> tuple[Any, ...]:
    """The first episode of each environment: returns and last rewards float32 `[B]`, lengths int32 `[B]`, whether it ended before the
    cap `[B]`."""
    acting = policy(config, task, actor, greedy=True)
    key, key_reset = jax.random.split(key)
    start = (
        jnp.int32(0), key, task.reset(key_reset), acting.reset(task.num_envs),
        jnp.zeros(task.num_envs), jnp.zeros(task.num_envs), jnp.zeros(task.num_envs, jnp.int32), jnp.zeros(task.num_envs, bool),
    )  # fmt: skip

    def going(c: tuple[Any, ...]) -> Any:
        return (c[0] < cap) & ~jnp.all(c[-1])

    def one_step(c: tuple[Any, ...]) -> tuple[Any, ...]:
        t, key, env, carry, returns, last, lengths, done = c
        key, key_act, key_env = jax.random.split(key, 3)
        action, carry, _ = acting.act(key_act, task.observe(env), carry)
        env, outcome = task.step(key_env, env, action)
        returns, last = returns + jnp.where(done, 0.0, outcome.reward), jnp.where(done, last, outcome.reward)
        lengths = lengths + jnp.where(done, 0, 1)
        return t + 1, key, env, carry, returns, last, lengths, done | outcome.terminated | outcome.truncated

    *_, returns, last, lengths, done = jax.lax.while_loop(going, one_step, start)
    return returns, last, lengths, done


def _in_graph(
    policy: Callable, config: Any, task: InGraphTask, actor: Any, episodes: int, seed: int, cap: int, stopped: Callable[[], bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    parts = []
    for round_ in range(-(-episodes // task.num_envs)):
        if stopped():
            raise Stopped
        parts.append(jax.device_get(_first_episodes(policy, task, cap, config, actor, jax.random.fold_in(jax.random.key(seed), round_))))
    returns, last, lengths, done = (np.concatenate(xs)[:episodes] for xs in zip(*parts, strict=True))
    return returns, lengths, last, np.full(episodes, np.nan), int(np.sum(~done))


# --------------------------------------------------------------------------------------------------------------- on host


def _on_host(
    policy: Callable, config: Any, task: HostTask, actor: Any, episodes: int, seed: int, cap: int, stopped: Callable[[], bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    num_envs = task.num_envs
    wanted = [episodes // num_envs + (i < episodes % num_envs) for i in range(num_envs)]
    found: list[list[tuple[float, int, float, float]]] = [[] for _ in range(num_envs)]
    returns, lengths, cut = np.zeros(num_envs), np.zeros(num_envs, np.int64), 0
    # An episode cut at the cap goes on in its environment, which cannot be reset alone: what follows is not counted until it ends.
    counting = np.ones(num_envs, bool)
    decide = rollout.host_run(task).decider(policy, task, config, greedy=True)
    decide.set_actor(actor)
    decide.set_key(jax.random.key(seed))
    carry = policy(config, task, actor, greedy=True).reset(num_envs)
    timestep, resets, steps = task.reset(seed), 0, 0
    while True:
        missing = [len(found[i]) < wanted[i] for i in range(num_envs)]
        if not any(missing):
            break
        if stopped():
            raise Stopped
        if not any(counting[i] for i in range(num_envs) if missing[i]):
            resets += 1
            timestep = task.reset(seed + resets)
            counting[:], returns[:], lengths[:] = True, 0.0, 0
        # At least one episode that still counts grows with every step, and none grows past the cap.
        if steps >= episodes * cap:
            raise FlatironsError(
                f"{steps:_} decisions on {task.name} gave {sum(map(len, found))} of {episodes} episodes, though none lasts over {cap:_}; "
                "check the environment with `flatirons check`"
            )
        steps += 1
        action, carry, _ = decide(timestep, carry)
        outcome, timestep = task.step(action)
        returns += outcome.reward
        lengths += 1
        ended = np.asarray(outcome.terminated | outcome.truncated)
        capped = counting & ~ended & (lengths >= cap)
        void = task.void if isinstance(task, HostBatch) else ()
        for i in np.flatnonzero((counting & ended) | capped):
            if len(found[i]) < wanted[i] and i not in void:
                found[i].append(
                    (float(returns[i]), int(lengths[i]), float(outcome.reward[i]), _reached(task, int(i)) if ended[i] else np.nan)
                )
                cut += int(capped[i])
        counting = (counting & ~capped) | ended
        returns[ended], lengths[ended] = 0.0, 0
    returns, lengths, last, reached = (np.array(x) for x in zip(*(episode for of_one in found for episode in of_one), strict=True))
    return returns, lengths, last, reached, cut


def _reached(task: HostTask, env: int) -> float:
    """1.0 or 0.0 as this environment says that its goal was reached by the episode that ended in this step, NaN where nobody says."""
    return float(task.reached[env]) if isinstance(task, HostBatch) and task.reached is not None else np.nan
