"""The rules: perft against the published counts, and random games beside OpenSpiel's rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.games.perft import KIWIPETE, PUBLISHED, perft
from flatirons.envs import games, notation


@pytest.mark.parametrize(("position", "depth"), [("", 3), (KIWIPETE, 2)])
def test_perft_of_chess(position: str, depth: int) -> None:
    # One position at a time, by the step that is compiled for other tests too. Shogi's takes too long to compile here: see
    # benchmarks/games/perft.py.
    assert perft(games.make("chess"), position, depth, width=1) == PUBLISHED["chess", position][:depth]


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
