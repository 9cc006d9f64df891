"""Plain evaluations of positions for minimax: material in chess and shogi, corners and mobility in Othello, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatirons.envs.games import GameState

_CHESS = np.array([0, 1, 3, 3, 5, 9, 0], np.float32)
# Pawn, lance, knight, silver, bishop, rook, gold, king; then promoted. The usual round values of shogi programs.
_SHOGI = np.array([1, 3, 3, 5, 8, 10, 6, 0, 6, 6, 6, 6, 11, 13], np.float32)
_ANIMAL = np.array([1, 3, 3, 0, 4], np.float32)
_CORNERS = np.array([0, 7, 56, 63])
# The cell beside each corner on the diagonal: it gives the corner away.
_NEXT_TO_CORNERS = np.array([9, 14, 49, 54])


def evaluation(name: str) -> Callable[[GameState], jax.Array]:
    """A function of ONE position: float32 `[]`, higher is better for the player to move."""
    return {
        "chess": _chess, "gardner_chess": _gardner, "shogi": _shogi, "animal_shogi": _animal_shogi, "othello": _othello,
    }.get(name, _nothing)  # fmt: skip


def _nothing(state: GameState) -> jax.Array:
    return jnp.zeros_like(state.outcome)


def _signed(board: Any) -> jax.Array:
    return jnp.sum(jnp.sign(board) * jnp.asarray(_CHESS)[jnp.abs(board)])


def _chess(state: GameState) -> jax.Array:
    return _signed(state.inner["_x"].board)


def _gardner(state: GameState) -> jax.Array:
    return _signed(state.inner["_board"])


def _pieces(board: Any, hand: Any, values: np.ndarray) -> jax.Array:
    half = len(values)
    worth = jnp.concatenate([jnp.asarray(values), -jnp.asarray(values)])
    placed = jnp.where(board < 0, 0.0, worth[jnp.clip(board, 0, 2 * half - 1)])
    held = jnp.sum((hand[0] - hand[1]).astype(jnp.float32) * jnp.asarray(values)[: hand.shape[1]])
    return jnp.sum(placed) + held


def _shogi(state: GameState) -> jax.Array:
    x = state.inner["_x"]
    return _pieces(x.board, x.hand, _SHOGI)


def _animal_shogi(state: GameState) -> jax.Array:
    return _pieces(state.inner["_board"], state.inner["_hand"], _ANIMAL)


def _othello(state: GameState) -> jax.Array:
    board = jnp.sign(state.inner["_x"].board)
    cells = board.reshape(8, 8)
    corners = jnp.sum(board[_CORNERS]) * 25.0
    # Beside a corner that is empty.
    danger = jnp.sum(jnp.where(board[_CORNERS] == 0, board[_NEXT_TO_CORNERS], 0)) * 10.0
    mobility = (_mobility(cells) - _mobility(-cells)).astype(jnp.float32)
    return corners - danger + 2.0 * mobility


def _mobility(cells: Any) -> jax.Array:
    """How many moves the player of the positive discs has."""
    mine, theirs = jnp.pad(cells > 0, 1), jnp.pad(cells < 0, 1)
    found = jnp.zeros_like(mine)
    for row in (-1, 0, 1):
        for col in (-1, 0, 1):
            if row or col:
                reach = theirs & jnp.roll(mine, (row, col), (0, 1))
                for _ in range(5):
                    reach |= theirs & jnp.roll(reach, (row, col), (0, 1))
                found |= jnp.roll(reach, (row, col), (0, 1))
    return jnp.sum((found & ~mine & ~theirs)[1:9, 1:9])
