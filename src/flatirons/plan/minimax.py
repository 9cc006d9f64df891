"""Minimax to a fixed depth: the plain opponent. Connect four counts open lines, on bitboards in NumPy; other games use alpha-beta over
an evaluation of positions that the caller brings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.types import FlatironsError

COLS, ROWS = 7, 6
WON = 1e9
"""Value of a game that is won, above every evaluation. Generic search takes a ply's worth off for each ply it takes."""

# Bit 7 * column + row, row 0 at the bottom; row 6 stays empty, so that shifted lines do not run into the next column.
_CELLS = [[1 << (7 * col + row) for row in range(ROWS)] for col in range(COLS)]
_BOARD = np.uint64(sum(sum(column) for column in _CELLS))
_COLUMN = [np.uint64(sum(column)) for column in _CELLS]
_BOTTOM = [np.uint64(column[0]) for column in _CELLS]
_FLOOR = np.uint64(sum(column[0] for column in _CELLS))
_STEPS = {1: (0, 1), 7: (1, 0), 8: (1, 1), 6: (1, -1)}
_STARTS = {
    shift: np.uint64(
        sum(1 << (7 * col + row) for col in range(COLS) for row in range(ROWS) if 0 <= col + 3 * dcol < COLS and 0 <= row + 3 * drow < ROWS)
    )
    for shift, (dcol, drow) in _STEPS.items()
}


def bitboards(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mine, theirs) uint64 `[B]` of connect-four boards `[B, 6, 7]`, row 0 at the top: 1 = mine, -1 = theirs, 0 = empty."""
    bits = np.array([[1 << (7 * col + ROWS - 1 - row) for col in range(COLS)] for row in range(ROWS)], np.uint64)
    return tuple(np.sum(np.where(cells == who, bits[None], np.uint64(0)), axis=(1, 2), dtype=np.uint64) for who in (1, -1))  # type: ignore[return-value]


def four(stones: np.ndarray) -> np.ndarray:
    """Whether there are four in a row, bool `[B]`."""
    found = np.zeros(stones.shape, bool)
    for shift in _STEPS:
        pairs = stones & (stones >> np.uint64(shift))
        found |= (pairs & (pairs >> np.uint64(2 * shift))) != 0
    return found


def open_lines(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Open lines of mine less those of theirs, int64 `[B]`: a line of four cells without a stone of the other counts 10 to the number of
    its stones. (AlphaZero.jl's baseline, `heuristic_value` of its connect four, times 1000.)"""
    return _lines_of(mine, theirs) - _lines_of(theirs, mine)


def _lines_of(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    total = np.zeros(own.shape, np.int64)
    free = ~other & _BOARD
    for shift, starts in _STARTS.items():
        cells = [own >> np.uint64(k * shift) for k in range(4)]
        is_open = free & starts
        for k in range(1, 4):
            is_open &= free >> np.uint64(k * shift)
        # The four cells' stones are added up, for all lines of a direction at once, as binary numbers of two digits.
        low_a, low_b, high_a, high_b = cells[0] ^ cells[1], cells[2] ^ cells[3], cells[0] & cells[1], cells[2] & cells[3]
        low = low_a ^ low_b
        high = high_a ^ high_b ^ (low_a & low_b)
        for weight, lines in ((1, ~low & ~high), (10, low & ~high), (100, ~low & high), (1000, low & high)):
            total += weight * np.bitwise_count(lines & is_open).astype(np.int64)
    return total


def connect_four(mine: np.ndarray, theirs: np.ndarray, depth: int) -> np.ndarray:
    """What each move is worth after `depth` plies of best play, float64 `[B, 7]`: open lines, inf for a game won, -inf for one lost, NaN
    for a full column. Every line of play is looked at, so that equal moves come out equal. Raises FlatironsError where depth < 1.

    As in AlphaZero.jl's baseline (`MinMax.Player(depth, amplify_rewards=true)`), a win now is worth no more than a later one.
    """
    if depth < 1:
        raise FlatironsError(f"minimax of depth {depth} looks at nothing: give at least 1")
    # So many at a time that what is worked on fits a processor's cache.
    room = 7 ** max(0, 6 - depth)
    parts = [_worth(mine[i : i + room], theirs[i : i + room], depth) for i in range(0, len(mine), room)]
    return np.concatenate(parts) if parts else np.zeros((0, COLS))


def _worth(mine: np.ndarray, theirs: np.ndarray, depth: int) -> np.ndarray:
    worth = np.full((len(mine), COLS), np.nan)
    taken = mine | theirs
    after, rows, cols = [], [], []
    for col in range(COLS):
        possible = np.flatnonzero((taken & _COLUMN[col]) != _COLUMN[col])
        stone = (taken[possible] + _BOTTOM[col]) & _COLUMN[col]
        moved = mine[possible] | stone
        won, full = four(moved), (taken[possible] | stone) == _BOARD
        worth[possible, col] = np.where(won, np.inf, 0.0)
        goes_on = ~won & ~full
        after.append(moved[goes_on])
        rows.append(possible[goes_on])
        cols.append(np.full(int(goes_on.sum()), col))
    moved, row, col = np.concatenate(after), np.concatenate(rows), np.concatenate(cols)
    if len(row):
        # Positions that are reached in several ways are looked at once. Stones and heights together name one.
        other = theirs[row]
        _, first, same = np.unique(moved + (moved | other) + _FLOOR, return_index=True, return_inverse=True)
        moved, other = moved[first], other[first]
        found = open_lines(moved, other) if depth == 1 else -np.nanmax(_worth(other, moved, depth - 1), axis=1)
        worth[row, col] = found[same]
    return worth


# --------------------------------------------------------------------------------------------------------- any other game

_WIDTH = 16
"""Moves looked at in one call: few are wasted where there are few, and one compilation serves every position."""


def alpha_beta(game: Any, evaluate: Callable[[Any], Any], state: Any, depth: int) -> np.ndarray:
    """What each move of ONE position is worth after `depth` plies, float64 `[A]`, NaN for an illegal one: `evaluate` (in-graph, one
    position to a float for the player to move), or plus and minus `WON` less the plies it takes.

    Moves that are not among the best may be worth less than is said, never more. Raises FlatironsError where depth < 1.
    """
    if depth < 1:
        raise FlatironsError(f"minimax of depth {depth} looks at nothing: give at least 1")
    expand = _expander(game, evaluate)

    def children(state: Any, legal: np.ndarray) -> tuple[np.ndarray, list[Any], np.ndarray, np.ndarray, np.ndarray]:
        actions = np.flatnonzero(legal)
        after, reward, ended, value = [], [], [], []
        for i in range(0, len(actions), _WIDTH):
            some = actions[i : i + _WIDTH]
            padded = np.concatenate([some, np.full(_WIDTH - len(some), some[0])]).astype(np.int32)
            new, *rest = jax.device_get(expand(state, padded))
            after += [jax.tree.map(lambda x, k=k: x[k], new) for k in range(len(some))]
            for known, column in zip((reward, ended, value), rest, strict=True):
                known.append(column[: len(some)])
        return actions, after, np.concatenate(reward), np.concatenate(ended), np.concatenate(value)

    def best(state: Any, depth: int, alpha: float, beta: float, ply: int) -> float:
        _, after, reward, ended, value = children(state, np.asarray(state.legal))
        # `value` is for the player who moves next.
        found = -np.inf
        for k in np.argsort(np.where(ended, -reward * WON, value), kind="stable"):
            worth = follow(after[k], float(reward[k]), bool(ended[k]), float(value[k]), depth, max(alpha, found), beta, ply)
            found = max(found, worth)
            if found >= beta:
                break
        return found

    def follow(state: Any, reward: float, ended: bool, value: float, depth: int, alpha: float, beta: float, ply: int) -> float:
        if ended:
            return reward * (WON - ply)
        return -value if depth == 1 else -best(state, depth - 1, -beta, -alpha, ply + 1)

    actions, after, reward, ended, value = children(state, np.asarray(state.legal))
    worth, found = np.full(game.num_actions, np.nan), -np.inf
    for k in np.argsort(np.where(ended, -reward * WON, value), kind="stable"):
        # A hair below the best so far: a move as good as that must show its whole worth.
        low = found - 1e-6 * max(1.0, abs(found)) if np.isfinite(found) else found
        one = follow(after[k], float(reward[k]), bool(ended[k]), float(value[k]), depth, low, np.inf, 0)
        worth[actions[k]] = one
        found = max(found, one)
    return worth


@functools.cache
def _expander(game: Any, evaluate: Callable[[Any], Any]) -> Callable:
    key = jax.random.key(0)

    @jax.jit
    def expand(state: Any, actions: Any) -> Any:
        new, reward, ended = jax.vmap(game.step, (None, None, 0))(key, state, actions)
        return new, reward, ended, jax.vmap(evaluate)(new).astype(jnp.float32)

    return expand
