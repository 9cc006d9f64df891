"""Box actions as a Discrete choice: `discrete:Pusher-v5`, each dimension cut into `bins` values.

What Lillicrap et al. 2016 (arXiv:1509.02971, section 1) argue against: seven joints of three values each are 3^7 = 2187 actions, and finer
ones are out of reach. It lets a system for Discrete actions, such as dqn, stand beside ddpg on the same task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from flatirons.core.bounds import LARGEST
from flatirons.envs.host import quiet_mujoco, unwrap
from flatirons.types import FlatironsError

MOST_ACTIONS = 10_000
"""Actions beyond which a network with one output for each is no longer sensible."""


@dataclasses.dataclass(frozen=True)
class DiscreteOptions:
    """`--env.bins`."""

    bins: int = 3
    """Values of each dimension, the bounds among them, evenly apart."""


class Discretised(gymnasium.ActionWrapper):
    """Action number a, written in base `bins` with the first dimension's digit foremost, chooses a value of each dimension."""

    def __init__(self, env: gymnasium.Env, bins: int) -> None:
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise FlatironsError(f"there is nothing to discretise: the action space is {space}, not a Box")
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
            raise FlatironsError(f"bins is {bins!r}; it is a whole number from 2 up")
        if not (np.abs([space.low, space.high]) <= LARGEST).all():
            raise FlatironsError(f"cannot discretise {space}: it has no bounds")
        dimensions = int(np.prod(space.shape))
        if bins**dimensions > MOST_ACTIONS:
            raise FlatironsError(
                f"{bins} values of each of {dimensions} dimensions are {bins**dimensions:,} actions, more than {MOST_ACTIONS:,}: "
                "take fewer bins, or a system for Box actions (ddpg, sac, ppo)"
            )
        self._shape, self._dtype = (bins,) * dimensions, space.dtype
        self._values = np.linspace(space.low, space.high, bins).reshape(bins, dimensions)
        self._box = space
        self.action_space = gymnasium.spaces.Discrete(bins**dimensions)

    def action(self, action: Any) -> np.ndarray:
        """The Box action of a number."""
        digits = np.unravel_index(int(action), self._shape)
        return self._values[digits, np.arange(len(self._shape))].reshape(self._box.shape).astype(self._dtype)


def discretise(env: gymnasium.Env, bins: int) -> gymnasium.Env:
    """`env` with `bins`^d Discrete actions instead of its d-dimensional Box. Raises FlatironsError where that cannot be or is too many."""
    core, limit = unwrap(env)
    cut = Discretised(core, bins)
    return cut if limit is None else TimeLimit(cut, limit)


def factory(name: str, options: DiscreteOptions, kwargs: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    """What makes `discrete:name`."""

    def make() -> gymnasium.Env:
        with quiet_mujoco(gymnasium.spec(name)):
            env = gymnasium.make(name, disable_env_checker=True, **kwargs)
        return discretise(env, options.bins)

    return make
