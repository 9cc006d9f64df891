"""AlphaZero on Othello, Gardner's chess, animal shogi and Go 9x9: two hours of training, then matches.

    python -m benchmarks.games.two_hours train othello [--minutes 10] [--seed 0]    # as often as it takes; kill it whenever you like
    python -m benchmarks.games.two_hours test othello [--seed 0] [--opponents ...]  # the matches of the newest checkpoint

Training stops for good where its own clock (what it spent in all pieces, compiling included) passes two hours. Matches are of 100 games
each, every opening in both colours, the network with 100 simulations a move. Engines that are not installed are left out, and said.
A match that the result file has of the same checkpoint is not played again, so that a test may be cut between two. The bars below were
set beforehand.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax

import flatirons as fi
from benchmarks.games import pieces
from benchmarks.record import header, write
from flatirons.envs import games
from flatirons.run import match, players
from flatirons.types import FlatironsError

MINUTES = 120.0
GAMES = 100
SIMULATIONS = 100
MINOR_CHESS: dict[str, tuple[float, float] | None] = {
    "random": (0.9, 1.0), "mcts:100": (0.9, 1.0), **{f"uci:fairy-stockfish?nodes=100&Skill Level={level}": None for level in (-20, -10, 0)},
}  # fmt: skip
OPPONENTS: dict[str, dict[str, tuple[float, float] | None]] = {
    "othello": {"mcts:1000": (0.70, 0.95)},
    "gardner_chess": MINOR_CHESS,
    "animal_shogi": MINOR_CHESS,
    "go_9x9": {"random": None, "mcts:100": None, "gtp:gnugo?level=1": None},
}
"""By game and opponent: the share of points to reach, and to aim at; None where it is only told."""


def test(args: argparse.Namespace, path: Path) -> None:
    """Every match, into the result file, which is written anew after each."""
    head, run, game, rows = header(f"two_hours_{args.game}", "benchmarks.games.two_hours"), fi.load(path), games.make(args.game), {}
    file, ours = args.out / f"two_hours_{args.game}.json", pieces.result(run, path, args.seed, SIMULATIONS, {})
    if file.exists():
        earlier = json.loads(file.read_text())
        same = all(earlier.get(name) == ours[name] for name in ("seed", "moves", "minutes", "simulations", "config"))
        rows = earlier["matches"] if same else {}
    mine = players.player(f"{path}?simulations={SIMULATIONS}", game)
    for spec, bars in OPPONENTS[args.game].items():
        if spec in rows or (args.opponents and spec not in args.opponents):
            continue
        began = time.perf_counter()
        try:
            other = players.player(spec, game)
        except FlatironsError as missing:
            print(f"{spec} is left out: {missing}", flush=True)
            continue
        row = match.play(game, mine, other, GAMES, seed=args.seed).summary()
        other.close()
        if bars is not None:
            row |= pieces.verdict(row["score"], bars)
        rows[spec] = row
        print(spec, row, f"{time.perf_counter() - began:.0f} s", flush=True)
        found = head | {"game": args.game} | pieces.result(run, path, args.seed, SIMULATIONS, rows)
        write(file, found)
        # Compiled programs are memory mappings, of which a process may have 65,530: the fifth match of a small chess had none left.
        jax.clear_caches()


def main() -> None:
    """Train a piece, or test."""
    parser = pieces.parser(__doc__, MINUTES)
    parser.add_argument("game", choices=tuple(OPPONENTS))
    parser.add_argument("--opponents", nargs="+", default=(), metavar="PLAYER", help="these alone, named as in the result file")
    args = parser.parse_args()
    path = args.runs / f"{args.game.replace('_', '-')}-seed{args.seed}"
    pieces.train(args.game, args, path, MINUTES) if args.what == "train" else test(args, path)


if __name__ == "__main__":
    main()
