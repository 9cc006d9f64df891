"""Connect four: how often a player's move changes the outcome of the game under perfect play, on 6 sets of 500 positions.

    python -m benchmarks.games.mistakes minimax:5 RUN?simulations=100 --out benchmarks/results/games/mistakes.json

The sets are by phase (plies played: beginning to 14, middle to 28, end) and difficulty (plies to the end under perfect play: easy below
14, medium below 28, hard from 28), those six of the nine that exist, as in Pons' and AlphaZero.jl's test. Positions are of random games
from a fixed seed, all different, solved by BitBully (`pip install bitbully`). A mistake is a move whose outcome (won, drawn, lost) is
not the best there is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.record import RESULTS, header, versions, write
from flatirons.envs import games, notation
from flatirons.plan import minimax
from flatirons.run import match, players

PHASES = {"beginning": (0, 14), "middle": (15, 28), "end": (29, 41)}
DIFFICULTIES = {"easy": (1, 13), "medium": (14, 27), "hard": (28, 42)}
SETS = [("beginning", "easy"), ("beginning", "medium"), ("beginning", "hard"), ("middle", "easy"), ("middle", "medium"), ("end", "easy")]
EACH = 500
SEED = 20_181_207


def remaining(score: float, plies: int) -> int:
    """Plies to the end under perfect play, from the score of the best move: what is won or lost ends the later the nearer to 0."""
    if score == 0:
        return 42 - plies
    # BitBully counts as Pons does: the winner ends it with his stone number 22 - |score|; the first player's k-th is ply 2k - 1.
    stone = 22 - int(abs(score))
    first_wins = (plies % 2 == 0) == (score > 0)
    return 2 * stone - first_wins - plies


def positions(each: int, seed: int) -> dict[tuple[str, str], tuple[list[list[int]], list[np.ndarray]]]:
    """By set: the moves to each position, and what each column is worth there, `[7]` (NaN where full)."""
    rng, solver = np.random.default_rng(seed), players.solver()
    found: dict[tuple[str, str], tuple[list[list[int]], list[np.ndarray]]] = {name: ([], []) for name in SETS}
    seen: set[bytes] = set()
    while any(len(lines) < each for lines, _ in found.values()):
        phase = str(rng.choice([p for p, d in SETS if len(found[p, d][0]) < each]))
        line = random_line(rng, int(rng.integers(PHASES[phase][0], PHASES[phase][1] + 1)))
        if line is None:
            continue
        board = board_after(line)
        if board.cells.tobytes() in seen:
            continue
        worth = players.scores(solver, board)
        plies = remaining(float(np.nanmax(worth)), len(line))
        difficulty = next(name for name, (low, high) in DIFFICULTIES.items() if low <= plies <= high)
        if (phase, difficulty) in found and len(found[phase, difficulty][0]) < each:
            seen.add(board.cells.tobytes())
            found[phase, difficulty][0].append(line)
            found[phase, difficulty][1].append(worth)
    return found


def random_line(rng: np.random.Generator, plies: int) -> list[int] | None:
    """Random legal columns, or None where the game ended on the way."""
    cells, heights, line = np.zeros((1, 6, 7), np.int64), np.zeros(7, np.int64), []
    for ply in range(plies):
        column = int(rng.choice(np.flatnonzero(heights < 6)))
        cells[0, 5 - heights[column], column] = 1 if ply % 2 == 0 else -1
        heights[column] += 1
        line.append(column)
        mine, theirs = minimax.bitboards(cells)
        if minimax.four(mine)[0] or minimax.four(theirs)[0]:
            return None
    return line


def board_after(line: Sequence[int]) -> notation.Board:
    """The board after these columns."""
    cells, heights = np.zeros((6, 7), np.int64), np.zeros(7, np.int64)
    for ply, column in enumerate(line):
        cells[5 - heights[column], column] = 1 if ply % 2 == 0 else -1
        heights[column] += 1
    return notation.Board(len(line) % 2, cells, np.zeros((2, 0), np.int64))


def mistakes(player: players.Player, lines: Sequence[Sequence[int]], worth: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Whether the player's move is a mistake, bool `[N]`."""
    game = games.make("connect_four")
    step = match.stepper(game)
    states = match.starts(game, len(lines))
    longest = max(map(len, lines))
    for ply in range(longest):
        # Who has arrived waits.
        after = step(states, np.array([line[ply] if ply < len(line) else 0 for line in lines], np.int32))
        moves = np.array([ply < len(line) for line in lines])
        states = jax.tree.map(
            lambda new, old, moves=moves: jax.numpy.where(moves.reshape(-1, *[1] * (new.ndim - 1)), new, old), after, states
        )
    chosen = player.choose(states, jax.random.key(seed), lines).actions
    outcomes = np.sign(np.stack(worth))
    return outcomes[np.arange(len(lines)), chosen] < np.nanmax(outcomes, axis=1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("players", nargs="+", help="as in `flatirons match`")
    parser.add_argument("--each", type=int, default=EACH)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=RESULTS / "games" / "mistakes.json")
    chosen = parser.parse_args(argv)
    before, began = header("mistakes", "benchmarks.games.mistakes"), time.monotonic()
    sets = positions(chosen.each, chosen.seed)
    made = round(time.monotonic() - began, 1)
    digest = hashlib.sha256(json.dumps([[list(line) for line in sets[name][0]] for name in SETS]).encode()).hexdigest()
    game, rows = games.make("connect_four"), []
    for spec in chosen.players:
        player = players.player(spec, game)
        for phase, difficulty in SETS:
            began = time.monotonic()
            wrong = mistakes(player, *sets[phase, difficulty], seed=chosen.seed)
            rows.append({
                "player": spec, "phase": phase, "difficulty": difficulty, "positions": len(wrong), "mistakes": int(wrong.sum()),
                "percent": 100 * float(wrong.mean()), "seconds": round(time.monotonic() - began, 1),
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
        player.close()
    record: dict[str, Any] = {
        **before, "versions": versions(["flatirons", "jax", "numpy", "pgx", "bitbully", "bitbully-databases"]),
        "seed": chosen.seed, "each": chosen.each, "positions_sha256": digest, "positions_seconds": made, "rows": rows,
    }  # fmt: skip
    write(chosen.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
