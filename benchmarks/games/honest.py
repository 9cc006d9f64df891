"""Is our MCTS as good an opponent as another library's? Connect four against OpenSpiel's MCTSBot, the same UCT (c = 1.4, one rollout),
the same simulations: about half the points are expected. Needs `pip install open-spiel`.

    python -m benchmarks.games.honest --out benchmarks/results/games/honest.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import header, versions, write
from flatirons.envs import games
from flatirons.envs.games import Game, GameState
from flatirons.run import match
from flatirons.run.players import Chosen, Mcts


class OpenSpiel:
    """Its MCTSBot (the C++ one behind `pyspiel`), asked for one game after the other. Columns have the same numbers."""

    def __init__(self, game: Game, simulations: int, *, solve: bool, seed: int) -> None:
        import pyspiel

        self.name = f"open_spiel:mcts:{simulations}{':solve' if solve else ''}"
        self.game = pyspiel.load_game(game.name)
        evaluator = pyspiel.RandomRolloutEvaluator(1, seed)
        self.bot = pyspiel.MCTSBot(self.game, evaluator, 1.4, simulations, 1000, solve, seed, False, pyspiel.ChildSelectionPolicy.UCT)

    def choose(self, states: GameState, key: Any, histories: Sequence[Sequence[int]] = ()) -> Chosen:
        chosen = []
        for actions in histories:
            state = self.game.new_initial_state()
            for action in actions:
                state.apply_action(action)
            chosen.append(self.bot.step(state))
        return Chosen(np.array(chosen, np.int32))

    def close(self) -> None:
        pass


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--games", type=int, default=196)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(argv)
    game, rows = games.make("connect_four"), []
    for solve in (False, True):
        began = time.monotonic()
        ours, theirs = Mcts(game, chosen.simulations), OpenSpiel(game, chosen.simulations, solve=solve, seed=chosen.seed)
        found = match.play(game, ours, theirs, chosen.games, seed=chosen.seed)
        rows.append({"a": ours.name, "b": theirs.name, **found.summary(), "seconds": round(time.monotonic() - began, 1)})
        print(json.dumps(rows[-1]), flush=True)
    if chosen.out is not None:
        write(
            chosen.out,
            {
                **header("honest", "benchmarks.games.honest"),
                "seed": chosen.seed,
                "rows": rows,
                "versions": versions(["flatirons", "jax", "pgx", "open_spiel"]),
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
