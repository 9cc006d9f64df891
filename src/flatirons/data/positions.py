"""The replay of positions of games: what was seen, the search's policy and value, and, once the game is over, how it ended.

`num_envs` games run side by side and never wait for each other, so a stretch of moves holds ends, beginnings and middles. Rows are a
ring in time, `[rows, num_envs, ...]`; when a game ends its result goes back along its moves, however many stretches ago they were made,
and only positions of finished games are drawn. All functions are in-graph with fixed shapes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatirons.types import ArraySpec, FlatironsError, Key


class Positions(NamedTuple):
    """obs `[R, B, *obs]`; policy float32 `[R, B, A]`; legal bool `[R, B, A]`; value float32 `[R, B]`, the search's for the player to move;
    player int32 `[R, B]`; end bool `[R, B]`: the game ended with this move; result float32 `[R, B]`: for player 0, where it did; outcome
    float32 `[R, B]`: z, for the player to move, known where the game is finished. written int32: rows ever written. finished int32 `[B]`:
    rows ever written up to each stream's last end. settled bool `[R, B]`: nothing but play decided the game from here, so that z judges the
    position."""

    obs: Any
    policy: Any
    legal: Any
    value: Any
    player: Any
    end: Any
    result: Any
    settled: Any
    outcome: Any
    written: Any
    finished: Any


class Rows(NamedTuple):
    """What a stretch of T moves adds: the first eight fields of `Positions`, `[T, B, ...]`."""

    obs: Any
    policy: Any
    legal: Any
    value: Any
    player: Any
    end: Any
    result: Any
    settled: Any


class Sample(NamedTuple):
    """A minibatch `[n, ...]`: z is `outcome`."""

    obs: Any
    policy: Any
    legal: Any
    value: Any
    settled: Any
    outcome: Any


def create(spec: ArraySpec, num_actions: int, num_envs: int, capacity: int) -> Positions:
    """An empty replay of `capacity` positions in all; num_envs must divide it."""
    lead = (capacity // num_envs, num_envs)
    zeros = jnp.zeros(lead)
    return Positions(
        obs=jnp.zeros((*lead, *spec.shape), spec.dtype),
        policy=jnp.zeros((*lead, num_actions)),
        legal=jnp.zeros((*lead, num_actions), bool),
        value=zeros,
        player=zeros.astype(jnp.int32),
        end=zeros.astype(bool),
        result=zeros,
        settled=zeros.astype(bool),
        outcome=zeros,
        written=jnp.int32(0),
        finished=jnp.zeros(num_envs, jnp.int32),
    )


def check(num_envs: int, capacity: int, num_steps: int, longest: int) -> None:
    """Raises FlatironsError for a capacity that cannot hold the longest game beside a stretch of `num_steps` moves."""
    least = num_envs * (longest + num_steps)
    if capacity % num_envs or capacity < least:
        raise FlatironsError(
            f"buffer_size={capacity} must be a multiple of num_envs={num_envs} and at least {least}: the longest game's {longest} "
            f"moves and a turn's {num_steps}, in every stream"
        )


def add(replay: Positions, rows: Rows, longest: int) -> Positions:
    """Write a stretch `[T, B, ...]`, and carry the results of the games that ended in it back along their moves; no game has more than
    `longest` moves."""
    capacity, steps = replay.end.shape[0], rows.end.shape[0]
    slots = (replay.written + jnp.arange(steps)) % capacity
    new = {name: getattr(replay, name).at[slots].set(getattr(rows, name)) for name in Rows._fields}
    written = replay.written + steps
    replay = replay._replace(**new, written=written)
    # All rows that a game which ended now can have, oldest first. At the start some of them lie before the first; nothing ended there.
    window = steps + longest
    past = written - window + jnp.arange(window)
    slots = past % capacity
    end = replay.end[slots] & (past >= 0)[:, None]
    where = jnp.where(end, jnp.arange(window)[:, None], window)
    following = jax.lax.cummin(where, axis=0, reverse=True)
    known = following < window
    result = jnp.take_along_axis(replay.result[slots], jnp.minimum(following, window - 1), axis=0)
    z = jnp.where(replay.player[slots] == 0, result, -result)
    outcome = replay.outcome.at[slots].set(jnp.where(known, z, replay.outcome[slots]))
    last = jnp.max(jnp.where(end, past[:, None] + 1, 0), axis=0)
    return replay._replace(outcome=outcome, finished=jnp.maximum(replay.finished, last))


def counts(replay: Positions) -> jax.Array:
    """How many positions of each stream can be drawn, int32 `[B]`."""
    return jnp.maximum(replay.finished - _oldest(replay), 0)


def _oldest(replay: Positions) -> jax.Array:
    return jnp.maximum(replay.written - replay.end.shape[0], 0)


def draw(replay: Positions, key: Key, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(slots, streams) int32 `shape` of positions of finished games, each with equal chance; there must be some."""
    upto = jnp.cumsum(counts(replay))
    number = jax.random.randint(key, shape, 0, jnp.maximum(upto[-1], 1))
    stream = jnp.minimum(jnp.searchsorted(upto, number, side="right"), len(upto) - 1).astype(jnp.int32)
    before = jnp.where(stream > 0, upto[jnp.maximum(stream - 1, 0)], 0)
    return ((_oldest(replay) + number - before) % replay.end.shape[0]).astype(jnp.int32), stream


def read_at(replay: Positions, slots: Any, streams: Any) -> Sample:
    """The positions at these places."""
    return Sample(*(getattr(replay, name)[slots, streams] for name in Sample._fields))


def turned(sample: Sample, board: Any, action: Any) -> Sample:
    """Each position turned: cell i becomes cell `board[n, i]`, action a `action[n, a]` (`envs.games.Symmetries`, a row for each
    position)."""
    return sample._replace(
        obs=turned_obs(sample.obs, board),
        policy=jnp.take_along_axis(sample.policy, action, axis=1),
        legal=jnp.take_along_axis(sample.legal, action, axis=1),
    )


def turned_obs(obs: Any, board: Any) -> jax.Array:
    """Observations `[n, rows, cols, planes]` whose cell i is their cell `board[n, i]`."""
    cells = obs.reshape(obs.shape[0], -1, obs.shape[-1])
    return jnp.take_along_axis(cells, board[:, :, None], axis=1).reshape(obs.shape)
