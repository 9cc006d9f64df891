"""A random maze in-graph, made anew for every episode: what was found once in it pays again, to whom remembers.

In the manner of the random mazes of Mnih et al. 2016 (arXiv:1602.01783, section 5.3): a goal stands somewhere, who reaches it is set down
at random again, the maze and its goal stay for the episode. Here it is small and seen from above: the walls around one's own cell, where
one is, and whether this is the goal.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.types import ArraySpec, Discrete, Key


class MazeState(NamedTuple):
    """`open_north`, `open_west` bool `[size, size]`: whether one can go from a cell to the one above it, to the left of it. `place`,
    `goal`: int32 `[2]`, row and column."""

    open_north: Any
    open_west: Any
    place: Any
    goal: Any


@dataclasses.dataclass(frozen=True)
class RandomMaze:
    """RandomMaze-v0: size² cells, every one reached from every other by one way alone; 1 for reaching the goal, then a random cell.

    A maze of the "binary tree" kind: each cell is opened to the north or to the west, by the toss of a coin where it has both. The goal is
    the same until the episode ends; the step after it was reached leads to a random cell, whatever the action.
    """

    max_episode_steps: int | None = 100
    size: int = 5

    @property
    def obs_spec(self) -> ArraySpec:
        """Float32: four flags for ways that are open (north, south, west, east), row and column one-hot, a flag for the goal."""
        return ArraySpec((4 + 2 * self.size + 1,), low=0.0, high=1.0)

    @property
    def action_spec(self) -> Discrete:
        """North, south, west, east; into a wall one stays."""
        return Discrete(4)

    def init(self, key: Key) -> MazeState:
        """Another maze, goal and start."""
        key_walls, key_goal, key_place = jax.random.split(key, 3)
        north = jax.random.bernoulli(key_walls, 0.5, (self.size, self.size))
        # The first row has no north, the first column no west, and the corner neither.
        north = north.at[:, 0].set(True).at[0, :].set(False)
        west = ~north
        west = west.at[0, 0].set(False)
        return MazeState(north, west, self._cell(key_place), self._cell(key_goal))

    def _cell(self, key: Key) -> jax.Array:
        return jax.random.randint(key, (2,), 0, self.size)

    def _open(self, state: MazeState) -> jax.Array:
        """Whether one can go north, south, west, east, bool `[4]`."""
        row, column = state.place[0], state.place[1]
        south = (row + 1 < self.size) & state.open_north[(row + 1) % self.size, column]
        east = (column + 1 < self.size) & state.open_west[row, (column + 1) % self.size]
        return jnp.stack([state.open_north[row, column], south, state.open_west[row, column], east])

    def step(self, key: Key, state: MazeState, action: Any) -> tuple[MazeState, jax.Array, jax.Array]:
        """One cell further, or from the goal to a random cell."""
        moves = jnp.array([[-1, 0], [1, 0], [0, -1], [0, 1]], jnp.int32)
        walked = state.place + moves[action] * self._open(state)[action]
        was_there = jnp.all(state.place == state.goal)
        place = jnp.where(was_there, self._cell(key), walked)
        found = jnp.all(place == state.goal) & ~was_there
        return state._replace(place=place), found.astype(jnp.float32), jnp.zeros((), bool)

    def observe(self, state: MazeState) -> jax.Array:
        """What is seen of one's own cell."""
        row, column = (jax.nn.one_hot(state.place[i], self.size) for i in (0, 1))
        flags = jnp.append(self._open(state), jnp.all(state.place == state.goal)).astype(jnp.float32)
        return jnp.concatenate([flags[:4], row, column, flags[4:]])

    def legal(self, state: MazeState) -> tuple[()]:
        """All actions are."""
        del state
        return ()


ENVS = MappingProxyType({"RandomMaze-v0": RandomMaze()})
"""The environments behind `jax:NAME` that are not Gymnasium's."""
