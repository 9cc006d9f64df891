"""AlphaZero on Othello, Gardner's chess, animal shogi and Go 9x9: two hours of training, then matches.

    python -m benchmarks.games.two_hours othello train [--minutes 10] [--seed 0]    # as often as it takes; kill it whenever you like
    python -m benchmarks.games.two_hours othello test [--seed 0]                    # the matches of the newest checkpoint

Training stops for good where its own clock (what it spent in all pieces, compiling included) passes two hours. Matches are of 100 games
each, every opening in both colours, the network with 100 simulations a move. Engines that are not installed are left out, and said.
The bars below were set beforehand.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import flatirons as fi
from benchmarks.record import RESULTS, ROOT, header, versions, write
from flatirons.envs import games
from flatirons.run import folder, match, players
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


def train(args: argparse.Namespace, path: Path) -> None:
    """One piece of the training."""
    began = time.perf_counter()

    def enough(run: Any, metrics: Any) -> bool:
        del run
        return metrics["seconds"] < 60 * MINUTES and time.perf_counter() - began < 60 * args.minutes

    if (path / folder.CONFIG).exists():
        run = fi.resume(path, callbacks=[enough])
    else:
        run = fi.train("alphazero", f"pgx:{args.game}", seed=args.seed, out=path, callbacks=[enough])
    print(f"{run.step:_} moves, {run.metrics[-1]['seconds'] / 60:.1f} minutes in all")


def test(args: argparse.Namespace, path: Path) -> None:
    """Every match, into the result file."""
    head, run, game, rows = header(f"two_hours_{args.game}", "benchmarks.games.two_hours"), fi.load(path), games.make(args.game), {}
    for spec, bars in OPPONENTS[args.game].items():
        began = time.perf_counter()
        mine = players.player(f"{path}?simulations={SIMULATIONS}", game)
        try:
            other = players.player(spec, game)
        except FlatironsError as missing:
            print(f"{spec} is left out: {missing}", flush=True)
            continue
        row = match.play(game, mine, other, GAMES, seed=args.seed).summary()
        other.close()
        if bars is not None:
            reach, aim = bars
            row |= {"reach": reach, "reached": row["score"] >= reach, "aim": aim, "aim_reached": row["score"] >= aim}
        rows[spec] = row
        print(spec, row, f"{time.perf_counter() - began:.0f} s", flush=True)
    found = head | {
        "versions": versions(["jax", "jaxlib", "numpy", "pgx", "mctx"]), "game": args.game, "seed": args.seed, "moves": run.step,
        "minutes": round(run.metrics[-1]["seconds"] / 60, 1), "simulations": SIMULATIONS,
        "config": folder.read_json(path / folder.CONFIG)["config"],
        "matches": rows, "reached": all(row["reached"] for row in rows.values() if "reached" in row),
    }  # fmt: skip
    write(args.out / f"two_hours_{args.game}.json", found)


def main() -> None:
    """Train a piece, or test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", choices=tuple(OPPONENTS))
    parser.add_argument("what", choices=("train", "test"))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of this piece")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="where the run folder is")
    parser.add_argument("--out", type=Path, default=RESULTS / "games", help="folder of the result file")
    args = parser.parse_args()
    path = args.runs / f"{args.game.replace('_', '-')}-seed{args.seed}"
    (train if args.what == "train" else test)(args, path)


if __name__ == "__main__":
    main()
