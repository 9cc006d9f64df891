"""Probe environments: tiny worlds with exact answers, each of which one broken mechanism of a learner gets wrong.

`ENVS[name].solution(gamma)` gives the answers: for every observation, its optimal value and its best action. A learner that passes the
first and fails the second is broken in what lies between them:

| probe | a correct learner finds | what it tests |
|---|---|---|
| `one-step` | V = 1 | value loss, optimiser, no bootstrap past a terminal step |
| `obs-reward` | V(obs) = obs | the value sees the observation |
| `delay` | V(first) = gamma, V(second) = 1 | discounting, bootstrap |
| `constant-reward` | V = 1 / (1 - gamma), 100 at gamma 0.99 | truncation is not termination |
| `action` | action 1; Q = -1, 1 | the policy follows the reward |
| `obs-action` | action 0 at obs -1, action 1 at obs 1 | the policy sees the observation |
| `continuous` | action 0.5, V = 0 | the continuous policy, scaling to bounds other than ±1 |
| `corridor` | right everywhere, V(i) = gamma^(3 - i) | exploration, values over several steps |

All observations are float32 vectors.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.types import ArraySpec, Box, Discrete, Key


class Solution(NamedTuple):
    """The exact answer: obs float32 `[N, ...]`, every observation there is; value float32 `[N]`, optimal; action `[N]` or `[N, n]`,
    the best, or None where none matters."""

    obs: np.ndarray
    value: np.ndarray
    action: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ConstantReward:
    """Reward 1 for ever, seen in pieces of 10 steps: never terminated, only truncated. V = 1 / (1 - gamma), 100 at gamma 0.99.

    A learner that takes truncation for an end finds less than 10: 9.56 for an episode's first step, an average of less for the one
    observation that all steps share.
    """

    max_episode_steps: int | None = 10
    action_spec: Discrete | Box = Discrete(2)
    """Without effect."""

    @property
    def obs_spec(self) -> ArraySpec:
        """Always 0."""
        return ArraySpec((1,))

    def init(self, key: Key) -> jax.Array:
        """Nothing to draw."""
        return _zero(key)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reward 1."""
        del key, action
        return state, jnp.ones((), jnp.float32), jnp.zeros((), bool)

    def observe(self, state: jax.Array) -> jax.Array:
        """Float32 `[1]`."""
        return state[None]

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()

    def solution(self, gamma: float) -> Solution:
        """V = 1 / (1 - gamma)."""
        return Solution(_column(0.0), _row(1.0 / (1.0 - gamma)), None)


@dataclasses.dataclass(frozen=True)
class OneStep:
    """One step with reward 1. V = 1: a learner that bootstraps past the terminal step finds up to 1 / (1 - gamma)."""

    max_episode_steps: int | None = None
    action_spec: Discrete | Box = Discrete(2)
    """Without effect."""

    @property
    def obs_spec(self) -> ArraySpec:
        """Always 0."""
        return ArraySpec((1,))

    def init(self, key: Key) -> jax.Array:
        """Nothing to draw."""
        return _zero(key)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reward 1, terminated."""
        del key, action
        return state, jnp.ones((), jnp.float32), jnp.ones((), bool)

    def observe(self, state: jax.Array) -> jax.Array:
        """Float32 `[1]`."""
        return state[None]

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()

    def solution(self, gamma: float) -> Solution:
        """V = 1."""
        del gamma
        return Solution(_column(0.0), _row(1.0), None)


@dataclasses.dataclass(frozen=True)
class ObsReward:
    """One step; obs is -1 or 1 with equal chance, and so is the reward. V(obs) = obs: a value blind to the observation finds 0."""

    max_episode_steps: int | None = None
    action_spec: Discrete | Box = Discrete(2)
    """Without effect."""

    @property
    def obs_spec(self) -> ArraySpec:
        """-1 or 1."""
        return ArraySpec((1,), low=-1.0, high=1.0)

    def init(self, key: Key) -> jax.Array:
        """-1 or 1."""
        return jax.random.rademacher(key, (), jnp.float32)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The observation as reward, terminated."""
        del key, action
        return state, state, jnp.ones((), bool)

    def observe(self, state: jax.Array) -> jax.Array:
        """Float32 `[1]`."""
        return state[None]

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()

    def solution(self, gamma: float) -> Solution:
        """V(obs) = obs."""
        del gamma
        return Solution(_column(-1.0, 1.0), _row(-1.0, 1.0), None)


@dataclasses.dataclass(frozen=True)
class Delay:
    """Two steps, obs 0 then 1; reward 1 comes with the second, which terminates. V(0) = gamma, V(1) = 1."""

    max_episode_steps: int | None = None
    action_spec: Discrete | Box = Discrete(2)
    """Without effect."""

    @property
    def obs_spec(self) -> ArraySpec:
        """The step: 0, then 1 (2 after the end)."""
        return ArraySpec((1,), low=0.0, high=2.0)

    def init(self, key: Key) -> jax.Array:
        """Step 0."""
        return _zero(key)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reward 0, then 1."""
        del key, action
        return state + 1.0, jnp.where(state > 0.5, 1.0, 0.0), state > 0.5

    def observe(self, state: jax.Array) -> jax.Array:
        """Float32 `[1]`."""
        return state[None]

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()

    def solution(self, gamma: float) -> Solution:
        """V(0) = gamma, V(1) = 1."""
        return Solution(_column(0.0, 1.0), _row(gamma, 1.0), None)


@dataclasses.dataclass(frozen=True)
class Action:
    """One step; reward 1 for action 1, -1 for action 0. Best action 1, Q = (-1, 1): advantages of the wrong sign choose 0."""

    max_episode_steps: int | None = None

    @property
    def obs_spec(self) -> ArraySpec:
        """Always 0."""
        return ArraySpec((1,))

    @property
    def action_spec(self) -> Discrete:
        """The wrong one, the right one."""
        return Discrete(2)

    def init(self, key: Key) -> jax.Array:
        """Nothing to draw."""
        return _zero(key)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reward by action, terminated."""
        del key
        return state, jnp.where(action == 1, 1.0, -1.0), jnp.ones((), bool)

    def observe(self, state: jax.Array) -> jax.Array:
        """Float32 `[1]`."""
        return state[None]

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()

    def solution(self, gamma: float) -> Solution:
        """Action 1, V = 1."""
        del gamma
        return Solution(_column(0.0), _row(1.0), np.array([1], np.int32))


@dataclasses.dataclass(frozen=True)
class ObsAction:
    """One step; obs is -1 or 1, and reward 1 goes to action 0 at -1 and to action 1 at 1, -1 to the others.

    A policy blind to the observation, or one whose actions and observations were shuffled apart, earns 0 on average.
    """

    max_episode_steps: int | None = None

    @property
    def obs_spec(self) -> ArraySpec:
        """-1 or 1."""
        return ArraySpec((1,), low=-1.0, high=1.0)

    @property
    def action_spec(self) -> Discrete:
        """Right at -1, right at 1."""
        return Discrete(2)

    def init(self, key: Key) -> jax.Array:
        """-1 or 1."""
        return jax.random.rademacher(key, (), jnp.float32)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reward by observation and action, terminated."""
        del key
        return state, jnp.where((state > 0) == (action == 1), 1.0, -1.0), jnp.ones((), bool)

    def observe(self, state: jax.Array) -> jax.Array:
        """Float32 `[1]`."""
        return state[None]

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()

    def solution(self, gamma: float) -> Solution:
        """Actions 0 and 1, V = 1."""
        del gamma
        return Solution(_column(-1.0, 1.0), _row(1.0, 1.0), np.array([0, 1], np.int32))


@dataclasses.dataclass(frozen=True)
class Continuous:
    """One step; reward -(action - 0.5)², action in [-2, 2]. Best action 0.5, V = 0.

    A policy that forgets to scale from ±1 to the bounds, in playing or in learning, settles on 0.25 or 1.
    """

    max_episode_steps: int | None = None

    @property
    def obs_spec(self) -> ArraySpec:
        """Always 0."""
        return ArraySpec((1,))

    @property
    def action_spec(self) -> Box:
        """One number."""
        return Box((-2.0,), (2.0,))

    def init(self, key: Key) -> jax.Array:
        """Nothing to draw."""
        return _zero(key)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reward by distance from 0.5, terminated."""
        del key
        return state, -((action[0] - 0.5) ** 2), jnp.ones((), bool)

    def observe(self, state: jax.Array) -> jax.Array:
        """Float32 `[1]`."""
        return state[None]

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()

    def solution(self, gamma: float) -> Solution:
        """Action 0.5, V = 0."""
        del gamma
        return Solution(_column(0.0), _row(0.0), np.array([[0.5]], np.float32))


@dataclasses.dataclass(frozen=True)
class Corridor:
    """Five cells from left to right; action 1 goes right, 0 left, starting in cell 0. Entering cell 4 pays 1 and terminates; nothing else
    pays. V(cell i) = gamma^(3 - i), by going right: a learner that never explores stays at 0. Truncated after 20 steps."""

    max_episode_steps: int | None = 20

    @property
    def obs_spec(self) -> ArraySpec:
        """The cell, one-hot."""
        return ArraySpec((5,), low=0.0, high=1.0)

    @property
    def action_spec(self) -> Discrete:
        """Left, right."""
        return Discrete(2)

    def init(self, key: Key) -> jax.Array:
        """Cell 0."""
        del key
        return jnp.zeros((), jnp.int32)

    def step(self, key: Key, state: jax.Array, action: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One cell to the left (the wall holds) or right."""
        del key
        state = jnp.clip(state + jnp.where(action == 1, 1, -1), 0, 4)
        return state, jnp.where(state == 4, 1.0, 0.0), state == 4

    def observe(self, state: jax.Array) -> jax.Array:
        """Float32 `[5]`."""
        return jax.nn.one_hot(state, 5)

    def legal(self, state: jax.Array) -> tuple[()]:
        """All actions are."""
        del state
        return ()

    def solution(self, gamma: float) -> Solution:
        """Right in cells 0 to 3, V(i) = gamma^(3 - i)."""
        return Solution(np.eye(5, dtype=np.float32)[:4], _row(*(gamma ** (3 - i) for i in range(4))), np.ones(4, np.int32))


ENVS = MappingProxyType(
    {
        "one-step": OneStep(),
        "obs-reward": ObsReward(),
        "delay": Delay(),
        "constant-reward": ConstantReward(),
        "action": Action(),
        "obs-action": ObsAction(),
        "continuous": Continuous(),
        "corridor": Corridor(),
    }
)
"""The environments behind `probe:NAME`, from the simplest on."""


def _zero(key: Key) -> jax.Array:
    del key
    return jnp.zeros((), jnp.float32)


def _column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def _row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)
