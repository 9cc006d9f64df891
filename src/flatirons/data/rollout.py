"""The only place where an environment meets a policy: one rollout with an in-graph and a host twin.

A system's module-level `policy(config, task, actor, *, greedy)` is handed over, never a closure, so that its compiled form is found again.
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.data.acting import Decider, PolicyFunction
from flatirons.types import Episodes, HostTask, InGraphTask, Key, MultiDiscrete, Task, Transition


class Collector(NamedTuple):
    """What a rollout goes on from. On a host `env`, `episode_return` and `episode_length` are `()`: there the task holds them.

    `drawn` counts a host's decisions from `key` (uint32); in-graph it is `()`.
    """

    key: Any
    drawn: Any
    env: Any
    carry: Any
    episode_return: Any
    episode_length: Any


def start(task: Task, carry: Any, key: Key) -> Collector:
    """The first Collector; in-graph it resets the environments. A host task is reset by its owner, and its sums begin anew here."""
    if not task.in_graph:
        task.__dict__.pop("host_run", None)
        return Collector(key, jnp.uint32(0), (), carry, (), ())
    key, key_reset = jax.random.split(key)
    zeros = jnp.zeros(task.num_envs)
    return Collector(key, (), task.reset(key_reset), carry, zeros, zeros.astype(jnp.int32))


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
        jnp.sum(ended, dtype=jnp.int32),
        jnp.sum(jnp.where(ended, so_far, 0.0)),
        jnp.sum(jnp.where(ended, length, 0), dtype=jnp.int32),
        _stuck(task, trajectory.legal),
        # An episode's last observation is no row's own, and what follows the last row would be in a checkpoint before a rollout sees it.
        _broken((trajectory.obs, trajectory.next_obs, trajectory.reward, task.observe(env).obs)),
    )
    return Collector(key, (), env, carry, returns, lengths), trajectory, episodes


def _stuck(task: Task, legal: Any) -> Any:
    """How many rows of masks `[T, B, n]` leave no choice, int32; `()` where there are no masks."""
    if isinstance(legal, tuple):
        return ()
    nvec = task.spec.action.nvec if isinstance(task.spec.action, MultiDiscrete) else (legal.shape[-1],)
    cuts = [sum(nvec[:i]) for i in range(1, len(nvec))]
    some = [jnp.any(part, axis=-1) for part in jnp.split(legal, cuts, axis=-1)]
    return jnp.sum(~functools.reduce(jnp.logical_and, some), dtype=jnp.int32)


def _broken(arrays: Any) -> jax.Array:
    """How many numbers are NaN or infinite, int32."""
    floats = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum((jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in floats), start=jnp.int32(0))


# --------------------------------------------------------------------------------------------------------------- on host


@runtime_checkable
class KeepsScore(Protocol):
    """A host task whose games go on behind the episodes and rewards that it hands out (Atari: lost lives, clipped rewards)."""

    def pop_games(self) -> list[tuple[float, int]]:
        """(raw score, decisions) of the whole games finished since the last call."""
        ...


@runtime_checkable
class LosesEpisodes(Protocol):
    """A host task whose environments may be made anew after a fault, which cuts episodes that then count nowhere."""

    @property
    def num_steps(self) -> int:
        """Batch steps so far."""
        ...

    def pop_void(self) -> list[tuple[int, int]]:
        """(batch step, environment) of the episodes that were cut so since the last call."""
        ...


class HostRun:
    """What the rollouts of one host task keep between them: episode sums so far, and where the time went (seconds)."""

    def __init__(self, task: HostTask) -> None:
        self.returns = np.zeros(task.num_envs)
        self.lengths = np.zeros(task.num_envs, np.int64)
        self.seconds = {"environment": 0.0, "inference": 0.0, "learning": 0.0}
        self._scorer = task if isinstance(task, KeepsScore) else None
        self._loser = task if isinstance(task, LosesEpisodes) else None
        self._counted = self._loser.num_steps if self._loser is not None else 0
        self._deciders: dict[bool, Decider] = {}
        self._waiting: list[tuple[int, int]] = []

    def decider(self, policy: PolicyFunction, task: HostTask, config: Any, *, greedy: bool) -> Decider:
        """The Decider of this task, so that what it traced and compiled serves every rollout and every evaluation; made again for another
        policy or Config object."""
        kept = self._deciders.get(greedy)
        if kept is None or not kept.serves(policy, config):
            kept = self._deciders[greedy] = Decider(policy, task, config, greedy=greedy)
        return kept

    def count_episodes(self, trajectory: Transition) -> Episodes:
        """The episodes that ended within a trajectory `[T, B, ...]`; what is left of it begins the sums of the next."""
        count, return_sum, length_sum = 0, 0.0, 0
        begin = 0
        void = self._void(len(trajectory.reward))
        for t in np.flatnonzero((trajectory.terminated | trajectory.truncated).any(axis=1)).tolist():
            self.returns += trajectory.reward[begin : t + 1].sum(axis=0, dtype=np.float64)
            self.lengths += t + 1 - begin
            ended = trajectory.terminated[t] | trajectory.truncated[t]
            counts = ended & ~np.isin(np.arange(len(ended)), [env for step, env in void if step == t]) if void else ended
            count += int(counts.sum())
            return_sum += float(self.returns[counts].sum())
            length_sum += int(self.lengths[counts].sum())
            self.returns[ended] = 0.0
            self.lengths[ended] = 0
            begin = t + 1
        self.returns += trajectory.reward[begin:].sum(axis=0, dtype=np.float64)
        self.lengths += len(trajectory.reward) - begin
        if self._scorer is not None:
            games = self._scorer.pop_games()
            count, return_sum, length_sum = len(games), sum(score for score, _ in games), sum(length for _, length in games)
        return Episodes(np.int32(count), np.float32(return_sum), np.int32(length_sum))

    def _void(self, num_steps: int) -> list[tuple[int, int]]:
        """(row of the next trajectory of `num_steps` rows, environment) of the episodes that count nowhere."""
        begin, self._counted = self._counted, self._counted + num_steps
        if self._loser is None:
            return []
        self._waiting = [*self._waiting, *self._loser.pop_void()]
        found = [(step - begin, env) for step, env in self._waiting]
        self._waiting = [(step, env) for step, env in self._waiting if step >= self._counted]
        return found


def host_run(task: HostTask) -> HostRun:
    """The HostRun of a task, made at its first use and kept on the task itself."""
    kept = task.__dict__.get("host_run")
    if kept is None:
        kept = task.__dict__["host_run"] = HostRun(task)
    return kept


def _on_host(
    config: Any, task: HostTask, policy: PolicyFunction, actor: Any, collector: Collector, num_steps: int
) -> tuple[Collector, Transition, Episodes]:
    kept = host_run(task)
    clock = time.perf_counter
    t0 = clock()
    decide = kept.decider(policy, task, config, greedy=False)
    decide.set_actor(actor)
    decide.set_key(collector.key, int(collector.drawn))
    # New parameters are there once the update that makes them is done: without waiting, the first decision would, and count as its own.
    jax.block_until_ready(actor)
    kept.seconds["learning"] += clock() - t0
    carry, timestep = collector.carry, task.current
    # What a compiled update reads is never written again (docs/determinism.md): every rollout has arrays of its own.
    columns: list[np.ndarray] = []
    structure: Any = None
    for t in range(num_steps):
        t0 = clock()
        action, carry, extras = decide(timestep, carry)
        t1 = clock()
        outcome, following = task.step(action)
        kept.seconds["inference"] += t1 - t0
        kept.seconds["environment"] += clock() - t1
        reward, next_obs, terminated, truncated = outcome
        leaves, structure = jax.tree.flatten(
            Transition(timestep.obs, action, reward, next_obs, terminated, truncated, timestep.first, timestep.legal, extras)
        )
        if t == 0:
            columns = [np.empty((num_steps, *np.shape(leaf)), leaf.dtype) for leaf in leaves]
        for column, leaf in zip(columns, leaves, strict=True):
            column[t] = leaf
        timestep = following
    trajectory: Transition = jax.tree.unflatten(structure, columns)
    episodes = kept.count_episodes(trajectory)
    return Collector(collector.key, np.uint32(decide.drawn), (), carry, (), ()), trajectory, episodes
