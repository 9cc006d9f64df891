"""AlphaZero on connect four: an hour and a half of training on two cores, then matches.

    python -m benchmarks.games.connect_four train [--minutes 10] [--seed 0]    # as often as it takes; kill it whenever you like
    python -m benchmarks.games.connect_four test [--seed 0]                    # the matches of the newest checkpoint

Training stops for good where its own clock (what it spent in all pieces, compiling included) passes 90 minutes. Every match is over all
49 openings of two plies, in both colours, 98 games: the network with 100 simulations against UCT of 1,000 random rollouts (c = 1.4) and
against minimax of depth 5 (open lines, equal moves at random); the network alone (its likeliest move) against the same UCT; with 100
simulations against alone. The bars below were set beforehand. Beside the last, where bitbully is installed, what the perfect player gets
against the network alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatirons as fi
from benchmarks.games import pieces
from benchmarks.record import header, write
from flatirons import envs
from flatirons.envs import games
from flatirons.plan import minimax, uct
from flatirons.run import players
from flatirons.systems import alphazero
from flatirons.types import FlatironsError

MINUTES = 90.0
SIMULATIONS = 100
# share of points to reach, and to aim at
BARS = {
    "mcts-1000": (0.90, 1.00),
    "minimax-5": (0.80, 0.97),
    "network alone, mcts-1000": (0.60, 0.92),
    "search, network alone": (0.85, 0.95),
}
GAME = games.make("connect_four")

Player = Callable[[Any, Any], np.ndarray]
"""`player(states [B], key) -> actions [B]`."""


@jax.jit
def _step(states: Any, actions: Any) -> Any:
    return jax.vmap(GAME.step, in_axes=(None, 0, 0))(jax.random.key(0), states, actions)[0]


PLAY = {name: value for name, value in alphazero.PRESETS["alphazero-connect-four"].config.items() if name.startswith("play_")}
"""The preset's settings for playing for good: nothing was learnt with them, so a run made before they changed plays with these too."""


def network(run: Any, num_simulations: int) -> Player:
    """The trained network with that many simulations a move; the tree of a game's last move is gone on from."""
    task, config = envs.make("pgx:connect_four", 1), dataclasses.replace(run.config, **PLAY)
    if num_simulations == 0 or not config.play_keep_tree:
        return lambda states, key: np.asarray(
            alphazero.analyse(config, task, run.actor, states, key, num_simulations=num_simulations).action
        )
    tree: Any = None

    def choose(states: Any, key: Any) -> np.ndarray:
        nonlocal tree
        found, tree = alphazero.go_on(config, task, run.actor, states, key, num_simulations=num_simulations, before=tree)
        return np.asarray(found.action)

    return choose


def rollouts(num_simulations: int) -> Player:
    """UCT with random rollouts."""
    return lambda states, key: np.asarray(uct.search(GAME, states, key, num_simulations, 1.4).action)


def looking_ahead(depth: int) -> Player:
    """Minimax over open lines; among equal moves one at random."""

    def choose(states: Any, key: Any) -> np.ndarray:
        board, player = np.asarray(states.inner["_x"].board).reshape(-1, 6, 7), np.asarray(states.player)[:, None, None]
        cells = np.where(board < 0, 0, np.where(board == player, 1, -1))
        worth = minimax.connect_four(*minimax.bitboards(cells), depth)
        best = worth == np.nanmax(worth, axis=1, keepdims=True)
        return np.asarray(jax.random.categorical(key, jnp.where(jnp.asarray(best), 0.0, -jnp.inf), axis=-1)).astype(np.int32)

    return choose


def perfect() -> Player:
    """Connect four as it is solved; raises FlatironsError where bitbully is not installed."""
    solved = players.player("perfect", GAME)

    def choose(states: Any, key: Any) -> np.ndarray:
        going = np.flatnonzero(~np.asarray(states.terminated))
        actions = np.zeros(len(states.terminated), np.int32)
        actions[going] = solved.choose(jax.tree.map(lambda x: x[going], states), key).actions
        return actions

    return choose


def openings() -> Any:
    """The 49 positions after two plies."""
    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (49, *x.shape)), GAME.init(jax.random.key(0)))
    return _step(_step(start, jnp.arange(49) // 7), jnp.arange(49) % 7)


def match(first: Player, second: Player, key: Any) -> dict[str, Any]:
    """98 games in step: wins, draws, losses and the share of points of `first`."""
    games_, results = [openings(), openings()], []
    for side in (0, 1):
        states = games_[side]
        for ply in range(2, 42):
            if bool(np.asarray(states.terminated).all()):
                break
            key, key_move = jax.random.split(key)
            mover = first if ply % 2 == side else second
            states = _step(states, jnp.asarray(mover(states, key_move), jnp.int32))
        results.append(np.asarray(states.outcome) * (1 if side == 0 else -1))
    found = np.concatenate(results)
    wins, draws, losses = (int((found == value).sum()) for value in (1, 0, -1))
    return {"games": len(found), "wins": wins, "draws": draws, "losses": losses, "points": (wins + 0.5 * draws) / len(found)}


def test(args: argparse.Namespace, path: Path) -> None:
    """Every match, into the result file."""
    run = fi.load(path)
    mine, alone = network(run, SIMULATIONS), network(run, 0)
    pairs: dict[str, tuple[Player, Player]] = {
        "mcts-1000": (mine, rollouts(1000)),
        "minimax-5": (mine, looking_ahead(5)),
        "network alone, mcts-1000": (alone, rollouts(1000)),
        "search, network alone": (mine, alone),
    }
    try:
        pairs["perfect, network alone"] = (perfect(), alone)
    except FlatironsError as missing:
        print(missing)
    head, rows = header("connect_four", "benchmarks.games.connect_four"), {}
    for number, (name, (first, second)) in enumerate(pairs.items()):
        began = time.perf_counter()
        row = match(first, second, jax.random.key(number))
        rows[name] = row | (pieces.verdict(row["points"], BARS[name]) if name in BARS else {})
        print(name, rows[name], f"{time.perf_counter() - began:.0f} s", flush=True)
    write(args.out / "connect_four.json", head | pieces.result(run, path, args.seed, SIMULATIONS, rows) | {"play": PLAY})


def main() -> None:
    """Train a piece, or test."""
    args = pieces.parser(__doc__, MINUTES).parse_args()
    path = args.runs / f"connect-four-seed{args.seed}"
    pieces.train("connect_four", args, path, MINUTES) if args.what == "train" else test(args, path)


if __name__ == "__main__":
    main()
