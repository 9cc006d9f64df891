"""Tasks whose velocities are hidden: `no-velocity:CartPole-v1`, or in-graph `no-velocity:jax:CartPole-v1`. What was seen before is then
needed to know how things move: tasks for a policy with a memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.wrappers import TimeLimit

from flatirons.envs.host import quiet_mujoco, unwrap
from flatirons.types import ActionSpec, ArraySpec, FlatironsError, Key, PyTree

POSITIONS = MappingProxyType(
    {
        "CartPole": (0, 2),
        "Acrobot": (0, 1, 2, 3),
        "MountainCar": (0,),
        "MountainCarContinuous": (0,),
        "Pendulum": (0, 1),
        "Hopper": tuple(range(5)),
        "Walker2d": tuple(range(8)),
        "HalfCheetah": tuple(range(8)),
        "Swimmer": tuple(range(3)),
        "InvertedPendulum": (0, 1),
    }
)
"""Which numbers of an observation are no velocities, by the task's name without its version."""


def positions(name: str) -> tuple[int, ...]:
    """Those of a task. Raises FlatironsError for one that is not known here."""
    bare = name.rpartition("-v")[0] or name
    if bare not in POSITIONS:
        raise FlatironsError(
            f"which numbers of {name}'s observation are velocities is not known; no-velocity: knows {', '.join(POSITIONS)}"
        )
    return POSITIONS[bare]


@dataclasses.dataclass(frozen=True)
class NoVelocityOptions:
    """None of its own."""


class Seen(gymnasium.ObservationWrapper):
    """A Gymnasium environment of whose observation only some numbers are seen."""

    def __init__(self, env: gymnasium.Env, kept: tuple[int, ...]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
        self._kept = list(kept)
        self.observation_space = gymnasium.spaces.Box(space.low[self._kept], space.high[self._kept], dtype=space.dtype.type)

    def observation(self, observation: Any) -> np.ndarray:
        """Those numbers."""
        return observation[self._kept]


def factory(name: str, options: NoVelocityOptions, kwargs: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    """What makes `no-velocity:name`. Raises FlatironsError for a task whose velocities are not known."""
    kept = positions(name)
    if not kwargs.get("exclude_current_positions_from_observation", True):
        raise FlatironsError(
            f"no-velocity:{name}: exclude_current_positions_from_observation=false moves the numbers of an observation, and which are "
            "velocities is known only without it; leave it out"
        )

    def make() -> gymnasium.Env:
        with quiet_mujoco(gymnasium.spec(name)):
            env = gymnasium.make(name, disable_env_checker=True, **kwargs)
        core, limit = unwrap(env)
        seen = Seen(core, kept)
        return seen if limit is None else TimeLimit(seen, limit)

    return make


@dataclasses.dataclass(frozen=True)
class InGraphSeen:
    """An in-graph environment of whose observation only some numbers are seen."""

    env: Any
    kept: tuple[int, ...]

    @property
    def obs_spec(self) -> ArraySpec:
        """Float32 `[numbers kept]`, within the bounds of all."""
        return dataclasses.replace(self.env.obs_spec, shape=(len(self.kept),))

    @property
    def action_spec(self) -> ActionSpec:
        """The environment's."""
        return self.env.action_spec

    @property
    def max_episode_steps(self) -> int | None:
        """The environment's."""
        return self.env.max_episode_steps

    def init(self, key: Key) -> PyTree:
        """The environment's."""
        return self.env.init(key)

    def init_batch(self, key: Key, num_envs: int) -> PyTree:
        """The environment's."""
        return self.env.init_batch(key, num_envs)

    def step(self, key: Key, state: PyTree, action: Any) -> tuple[PyTree, Any, Any]:
        """The environment's."""
        return self.env.step(key, state, action)

    def observe(self, state: PyTree) -> jax.Array:
        """The numbers kept."""
        return self.env.observe(state)[jnp.asarray(self.kept)]

    def legal(self, state: PyTree) -> Any:
        """The environment's."""
        return self.env.legal(state)
