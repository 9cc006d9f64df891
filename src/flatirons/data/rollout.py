"""The only place where an environment meets a policy: one rollout with an in-graph and a host twin.

A system's module-level `policy(config, task, actor, *, greedy)` is handed over, never a closure, so that its compiled form is found again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.types import Episodes, HostTask, InGraphTask, Key, Policy, Task, TimeStep, Transition

PolicyFunction = Callable[..., Policy]


class Collector(NamedTuple):
    """What a rollout goes on from. On a host `env`, `episode_return` and `episode_length` are `()`: there the task holds them."""

    key: Any
    env: Any
    carry: Any
    episode_return: Any
    episode_length: Any


def start(task: Task, carry: Any, key: Key) -> Collector:
    """The first Collector; in-graph it resets the environments. A host task is reset by its owner, and its sums begin anew here."""
    if not task.in_graph:
        task.__dict__.pop("host_run", None)
        return Collector(key, (), carry, (), ())
    key, key_reset = jax.random.split(key)
    zeros = jnp.zeros(task.num_envs)
    return Collector(key, task.reset(key_reset), carry, zeros, zeros.astype(jnp.int32))


def rollout(
    config: Any, task: Task, policy: PolicyFunction, actor: Any, collector: Collector, num_steps: int
) -> tuple[Collector, Transition, Episodes]:
    """num_steps decisions of every environment, exploring: the Collector to go on from, a trajectory `[T, B, ...]`, the ended episodes."""
    if task.in_graph:
        return _in_graph(config, cast(InGraphTask, task), policy, actor, collector, num_steps)
    return _on_host(config, cast(HostTask, task), policy, actor, collector, num_steps)


# ------------------------------------------------------------------------------------------------------------- in-graph


def _in_graph(
    config: Any, task: InGraphTask, policy: PolicyFunction, actor: Any, collector: Collector, num_steps: int
) -> tuple[Collector, Transition, Episodes]:
    acting = policy(config, task, actor, greedy=False)
    key, key_act, key_env = jax.random.split(collector.key, 3)
    # All keys of the rollout in two draws: deriving them step by step costs more than CartPole's dynamics.
    keys = jax.random.split(key_act, num_steps), jax.random.split(key_env, num_steps)

    def one_step(c: tuple[Any, ...], step_keys: tuple[Key, Key]) -> tuple[tuple[Any, ...], tuple[Transition, Any]]:
        env, carry, returns, lengths = c
        timestep = task.observe(env)
        action, carry, extras = acting.act(step_keys[0], timestep, carry)
        env, outcome = task.step(step_keys[1], env, action)
        returns, lengths = returns + outcome.reward, lengths + 1
        ended = outcome.terminated | outcome.truncated
        row = Transition(
            obs=timestep.obs,
            action=action,
            reward=outcome.reward,
            next_obs=outcome.next_obs,
            terminated=outcome.terminated,
            truncated=outcome.truncated,
            first=timestep.first,
            legal=timestep.legal,
            extras=extras,
        )
        going_on = (env, carry, jnp.where(ended, 0.0, returns), jnp.where(ended, 0, lengths))
        return going_on, (row, (returns, lengths))

    begin = (collector.env, collector.carry, collector.episode_return, collector.episode_length)
    (env, carry, returns, lengths), (trajectory, (so_far, length)) = jax.lax.scan(one_step, begin, keys)
    ended = trajectory.terminated | trajectory.truncated
    episodes = Episodes(
        jnp.sum(ended, dtype=jnp.int32), jnp.sum(jnp.where(ended, so_far, 0.0)), jnp.sum(jnp.where(ended, length, 0), dtype=jnp.int32)
    )
    return Collector(key, env, carry, returns, lengths), trajectory, episodes


# --------------------------------------------------------------------------------------------------------------- on host


def _decide(
    policy: PolicyFunction, task: Task, greedy: bool, config: Any, actor: Any, key: Key, timestep: TimeStep, carry: Any
) -> tuple[Key, Any, Any, Any]:
    """One compiled decision for a batch on the host: (next key, action, carry, extras). `task` is compared by identity."""
    key, key_act = jax.random.split(key)
    action, carry, extras = policy(config, task, actor, greedy=greedy).act(key_act, timestep, carry)
    return key, action, carry, extras


act = jax.jit(_decide, static_argnums=(0, 1, 2))


@runtime_checkable
class KeepsScore(Protocol):
    """A host task whose games go on behind the episodes and rewards that it hands out (Atari: lost lives, clipped rewards)."""

    def pop_games(self) -> list[tuple[float, int]]:
        """(raw score, decisions) of the whole games finished since the last call."""
        ...


class HostRun:
    """What the rollouts of one host task keep between them: episode sums so far, and where the time went (seconds)."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        self.seconds = {"environment": 0.0, "inference": 0.0}
        self._acting_for: tuple[Any, PolicyFunction] | None = None
        self._acting: Callable[..., Any] = act

    def acting(self, policy: PolicyFunction, task: HostTask, config: Any) -> Callable[..., tuple[Key, Any, Any, Any]]:
        """`(actor, key, timestep, carry) -> (next key, action, carry, extras)`, compiled once for one Config object, whose numbers are
        constants in it: handing a dozen of them over costs a fifth of a small network's decision."""
        if self._acting_for is None or self._acting_for[0] is not config or self._acting_for[1] is not policy:
            self._acting_for = (config, policy)
            self._acting = jax.jit(functools.partial(_decide, policy, task, False, config))
        return self._acting


def host_run(task: HostTask) -> HostRun:
    """The HostRun of a task, made at its first use and kept on the task itself."""
    kept = task.__dict__.get("host_run")
    if kept is None:
        kept = task.__dict__["host_run"] = HostRun(task.num_envs)
    return kept


def _on_host(
    config: Any, task: HostTask, policy: PolicyFunction, actor: Any, collector: Collector, num_steps: int
) -> tuple[Collector, Transition, Episodes]:
    kept = host_run(task)
    key, carry = collector.key, collector.carry
    rows: list[Transition] = []
    count, return_sum, length_sum = 0, 0.0, 0
    timestep = task.current
    clock = time.perf_counter
    acting = kept.acting(policy, task, config)
    for _ in range(num_steps):
        t0 = clock()
        key, action, carry, extras = acting(actor, key, timestep, carry)
        action = np.asarray(action)  # waits for the device
        t1 = clock()
        outcome, following = task.step(action)
        kept.seconds["inference"] += t1 - t0
        kept.seconds["environment"] += clock() - t1
        rows.append(
            Transition(
                timestep.obs,
                action,
                outcome.reward,
                outcome.next_obs,
                outcome.terminated,
                outcome.truncated,
                timestep.first,
                timestep.legal,
                extras,
            )
        )
        kept.returns += outcome.reward
        kept.lengths += 1
        ended = outcome.terminated | outcome.truncated
        if ended.any():
            count += int(ended.sum())
            return_sum += float(kept.returns[ended].sum())
            length_sum += int(kept.lengths[ended].sum())
            kept.returns[ended] = 0.0
            kept.lengths[ended] = 0
        timestep = following
    if isinstance(task, KeepsScore):
        games = task.pop_games()
        count, return_sum, length_sum = len(games), sum(score for score, _ in games), sum(length for _, length in games)
    # np.stack copies into fresh memory: what a compiled update reads is never written again (docs/determinism.md).
    trajectory = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *rows)
    return Collector(key, (), carry, (), ()), trajectory, Episodes(np.int32(count), np.float32(return_sum), np.int32(length_sum))
