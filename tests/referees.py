"""Random games beside the rules of OpenSpiel and cshogi. `test_rules.py` runs this file in a process of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flatirons.envs import games, notation


def _cell_of(name: str, action: int) -> int:
    """Our action as OpenSpiel numbers it."""
    if name == "go_9x9" and action < 81:
        return (8 - action // 9) * 9 + action % 9  # its rows count from the bottom
    return action


@pytest.mark.parametrize(
    ("name", "theirs", "count"),
    [
        ("tic_tac_toe", "tic_tac_toe", 4),
        ("connect_four", "connect_four", 4),
        ("othello", "othello", 2),
        ("hex", "hex(board_size=11)", 1),
        ("go_9x9", "go(board_size=9,komi=7.5)", 2),
    ],
)
def test_open_spiel_agrees(name: str, theirs: str, count: int) -> None:
    pyspiel: Any = pytest.importorskip("pyspiel", reason="OpenSpiel, the second opinion, is not installed: pip install open-spiel")
    rng = np.random.default_rng(1)
    for _ in range(count):
        ours, state = notation.Table(games.make(name)), pyspiel.load_game(theirs).new_initial_state()
        while not ours.over:
            legal = ours.legal.copy()
            if name == "hex" and len(ours.actions) == 1:
                legal[121] = False  # OpenSpiel's Hex has no swap
            known = {_cell_of(name, int(action)): int(action) for action in np.flatnonzero(legal)}
            assert not state.is_terminal() and ours.turn == state.current_player()
            assert set(known) == set(state.legal_actions()), f"after {ours.text()}"
            chosen = int(rng.choice(sorted(known)))
            ours.play(known[chosen])
            state.apply_action(chosen)
            if name == "go_9x9" and bool(ours.state.inner["_x"].is_psk):
                return  # there superko is forbidden, here it loses
        assert state.is_terminal() or name == "go_9x9"
        if state.is_terminal():
            assert ours.outcome == np.sign(state.returns()[0])


def test_cshogi_agrees() -> None:
    cshogi: Any = pytest.importorskip("cshogi", reason="cshogi, the second opinion, is not installed: pip install cshogi")
    rng = np.random.default_rng(0)
    board = cshogi.Board()
    for ply in range(1, 121):
        board.push(int(rng.choice(list(board.legal_moves))))
        if board.is_game_over():
            board.reset()
        if ply % 30:
            continue
        ours = notation.table(games.make("shogi"), board.sfen())
        assert set(notation.moves(ours.game, ours.board, ours.legal)) == {cshogi.move_to_usi(move) for move in board.legal_moves}
        assert ours.text() == board.sfen()
