"""Games between two players in-graph, a whole match in one compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flatirons.core import trees
from flatirons.types import Key

Chooser = Callable[[Key, Any], Any]
"""`choose(key, states [B, ...]) -> actions int32 [B]`."""


class Rules(Protocol):
    """What a match needs of a game (`envs.games.BoardGame` has it): players who move in turn, and a game that stays as it ended."""

    @property
    def longest(self) -> int:
        """No game has more plies."""
        ...

    def init(self, key: Key) -> Any:
        """The start."""
        ...

    def step(self, key: Key, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """(position, reward of the player who moved, terminated)."""
        ...

    def legal(self, state: Any) -> Any:
        """Bool `[A]`."""
        ...

    def outcome(self, state: Any) -> Any:
        """Player 0's result."""
        ...


class Score(NamedTuple):
    """Of the first player, int32: games won, drawn and lost."""

    wins: Any
    draws: Any
    losses: Any

    @property
    def points(self) -> Any:
        """Share of points, a draw counting half."""
        return (self.wins + 0.5 * self.draws) / (self.wins + self.draws + self.losses)


def random_move(game: Rules, key: Key, states: Any) -> jax.Array:
    """A legal move, each with equal chance; int32 `[B]`."""
    legal = jax.vmap(game.legal)(states)
    return jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf), axis=-1).astype(jnp.int32)


def compete(game: Rules, first: Chooser, second: Chooser, key: Key, num_games: int, *, opening_plies: int = 0) -> Score:
    """Play `num_games` (an even number) between two players; each moves first in half of them.

    `opening_plies` random moves begin each game, the same ones in the two games of a pair with colours swapped. Both halves are played in
    step, so that each player chooses for half of the games at each ply and nobody waits.
    """
    half = num_games // 2
    key_start, key_opening, key_play = jax.random.split(key, 3)
    starts = jax.vmap(game.init)(jax.random.split(key_start, half))

    def play(key: Key, states: Any, action: Any) -> tuple[Any, Any]:
        after, _, over = jax.vmap(game.step, in_axes=(None, 0, 0))(key, states, action)
        return after, jnp.all(over)

    def open_(i: Any, states: Any) -> Any:
        key_move, key_step = jax.random.split(jax.random.fold_in(key_opening, i))
        return play(key_step, states, random_move(game, key_move, states))[0]

    starts = jax.lax.fori_loop(0, opening_plies, open_, starts)

    def one_ply(c: tuple[Any, ...]) -> tuple[Any, ...]:
        ply, ours, theirs, _ = c  # in `ours` the first player made the first move after the opening
        even = ply % 2 == 0
        key_first, key_second, key_step = jax.random.split(jax.random.fold_in(key_play, ply), 3)
        of_first, of_second = trees.select(even, ours, theirs), trees.select(even, theirs, ours)
        of_first, over = play(key_step, of_first, first(key_first, of_first))
        of_second, over_too = play(key_step, of_second, second(key_second, of_second))
        ours, theirs = trees.select(even, of_first, of_second), trees.select(even, of_second, of_first)
        return ply + 1, ours, theirs, over & over_too

    start = (jnp.int32(0), starts, starts, jnp.array(False))
    _, ours, theirs, _ = jax.lax.while_loop(lambda c: (c[0] < game.longest) & ~c[3], one_ply, start)
    sign = 1.0 if opening_plies % 2 == 0 else -1.0
    results = sign * jnp.concatenate([jax.vmap(game.outcome)(ours), -jax.vmap(game.outcome)(theirs)])
    return Score(*(jnp.sum(results == value, dtype=jnp.int32) for value in (1.0, 0.0, -1.0)))
